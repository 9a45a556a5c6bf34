"""Paraphrases: the same question in other words, which an exact cache cannot know are the same.

Only the surface changes (a greeting, politeness, case, punctuation): what people
type differently without meaning anything by it. No model wrote these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from askonce_loadtest.workloads.ask import Ask

_BEFORE = ("", "hi, ", "hello! ", "please: ", "hey ", "quick question: ", "sorry, ")
_AFTER = ("", " please", "?", " thanks", "!!", " asap", "...")
_CASES: tuple[Callable[[str], str], ...] = (str, str.upper, str.capitalize)
MAX_PHRASINGS = len(_BEFORE) * len(_AFTER) * len(_CASES) - 1
"""Wordings of a question besides its own."""


def paraphrases(
    next_time: Callable[[], float],
    next_rank: Callable[[], int],
    phrasings: int,
    share: float,
    rng: Random,
) -> Iterator[Ask]:
    """Yield asks without end; `share` of them in one of `phrasings` other wordings."""
    assert 1 <= phrasings <= MAX_PHRASINGS
    while True:
        t = next_time()
        other = rng.random() < share
        yield Ask(t, next_rank(), 1 + rng.randrange(phrasings) if other else 0)


def phrased(text: str, phrasing: int) -> str:
    """`text` in wording number `phrasing` (0 to `MAX_PHRASINGS`); 0 leaves it alone."""
    rest, before = divmod(phrasing, len(_BEFORE))
    case, after = divmod(rest, len(_AFTER))
    return f"{_BEFORE[before]}{_CASES[case](text)}{_AFTER[after]}"
