"""Whether the cache is worth having, in plain words, and what to do where it is not."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["paying", "paying, barely", "running Redis for sport"]

LEAST_ANSWERS = 100
"""Of fewer answers nobody can say much."""
BARELY_BELOW = 0.30
FOR_SPORT_BELOW = 0.10

_MOVE_IT_OUT = """Is there a date, a user's name or an id in the prompt or the inputs? Then equal \
questions are never equal: move it out, or normalize it away."""
_PREFIX_CACHING = """The provider's own prefix caching makes the equal beginning of long prompts \
cheap; it works beside this."""
_SMALLER_MODEL = """If the inputs do differ, nothing can be reused. A smaller model makes all \
calls cheap."""

ADVICE: dict[Verdict, tuple[str, ...]] = {
    "paying": (),
    "paying, barely": (_MOVE_IT_OUT, _PREFIX_CACHING),
    "running Redis for sport": (_MOVE_IT_OUT, _PREFIX_CACHING, _SMALLER_MODEL),
}
"""What to look at next."""


def verdict_of(hits: int, answered: int) -> Verdict | None:
    """What a hit rate means; None while there are too few answers."""
    if answered < LEAST_ANSWERS:
        return None
    rate = hits / answered
    if rate < FOR_SPORT_BELOW:
        return "running Redis for sport"
    return "paying, barely" if rate < BARELY_BELOW else "paying"
