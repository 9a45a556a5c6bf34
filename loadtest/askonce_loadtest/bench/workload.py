"""What the bench asks: distinct texts of a message's length, repeated as in a Zipf distribution."""

from __future__ import annotations

import itertools
import random

from askonce_queue.job import Job
from askonce_queue.reply import Reply

TASK = "bench"
LABELS = ("billing", "delivery", "fraud", "login", "other", "praise", "refund", "spam")
_VOCABULARY = (
    "account again app bank card charged code could customer delivery email error help hello how "
    "last lost money month my not number order password payment please refund reset seen still "
    "stolen thank transfer twice verify waiting week what when why with wrong your"
)
_WORDS = _VOCABULARY.split()
_SHORTEST_WORDS, _LONGEST_WORDS = 6, 20


class WrongReplyError(Exception):
    """A job of the bench got an error, no answer or a label that it did not ask for."""


def distinct_texts(count: int, kind: str) -> list[str]:
    """Return `count` texts, about 75 characters each; other kinds have no text in common."""
    rng = random.Random(kind)
    return [
        f"{kind} {number}: "
        + " ".join(rng.choices(_WORDS, k=rng.randint(_SHORTEST_WORDS, _LONGEST_WORDS)))
        for number in range(count)
    ]


def zipf_texts(distinct: int, exponent: float, count: int, seed: int) -> list[str]:
    """Return `count` of `distinct` texts; the k-th comes with a chance of about 1 / k**exponent."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(rank**-exponent for rank in range(1, distinct + 1)))
    return rng.choices(distinct_texts(distinct, "warm"), cum_weights=weights, k=count)


def job(text: str) -> Job:
    """The job that asks `text`."""
    return Job(task=TASK, text=text)


def check_reply(reply: Reply) -> None:
    """Raise `WrongReplyError` unless the reply carries one of the task's labels."""
    if reply.answer is None or reply.answer.label not in LABELS:
        raise WrongReplyError(f"the bench expected a label, and got {reply}")
