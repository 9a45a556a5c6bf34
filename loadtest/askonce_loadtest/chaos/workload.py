"""What is asked, and what the right answer is: pure functions, the same in every process.

The answer to a question depends on its text and on the *epoch* of the text's group. Before a group
is invalidated its epoch is raised at the model, so an answer tells when it was computed: a label
of an older epoch was built before the invalidation, one of another text is plainly wrong.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal, NamedTuple

from askonce_loadtest.chaos.plan import DEADLY_TASK, TASK
from askonce_queue.job import Job

Kind = Literal["question", "calm", "die"]
"""`calm` and `die` go to the deadly task; a `die` kills the worker that asks it."""

GROUPS = 8
HOT_TEXTS = 200
FRESH_PER_S = 3.0
"""New texts a second that all producers ask for at the same time: every one is a small stampede."""
FRESH_FOR_S = 2.0
"""How long a new text is asked for, on average: what was asked too early is asked again later."""
DEADLINE_S = 1800.0
"""The deadline of some jobs: far away, so that none passes, but all that minds them takes part."""
_FIRST_FRESH = 10_000
_FIRST_UNIQUE = 10_000_000
_CALM_SHARE, _FRESH_SHARE, _UNIQUE_SHARE = 0.10, 0.30, 0.05


class Asked(NamedTuple):
    """What a job asks: all else follows from it."""

    kind: Kind
    number: int

    @property
    def text(self) -> str:
        """The input."""
        if self.kind == "question":
            return f"group {self.number % GROUPS}: question {self.number}"
        return f"{self.kind} {self.number}"

    @property
    def task(self) -> str:
        """The task."""
        return TASK if self.kind == "question" else DEADLY_TASK

    @property
    def group(self) -> int | None:
        """The group by which its answer is invalidated; None when it is in none."""
        return self.number % GROUPS if self.kind == "question" else None

    def job(self, job_id: str) -> Job:
        """The job of that id."""
        group = self.group
        tags = () if group is None else (group_tag(group),)
        deadline_s = DEADLINE_S if self.number % 3 == 0 else None
        return Job(id=job_id, task=self.task, text=self.text, tags=tags, deadline_s=deadline_s)


def group_tag(group: int) -> str:
    """The tag that all questions of a group carry."""
    return f"group:{group}"


def group_of(text: str) -> int | None:
    """The group of a question's text; None for any other text."""
    head, colon, _ = text.partition(":")
    word, _, number = head.partition(" ")
    return int(number) if colon and word == "group" and number.isdecimal() else None


def label_of(text: str, epoch: int) -> str:
    """The right label of a text in an epoch of its group."""
    return f"{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}.{epoch}"


def epoch_of(text: str, label: str) -> int | None:
    """The epoch in which `label` was right for `text`; None when it never was."""
    _, _, epoch = label.partition(".")
    if not epoch.isdecimal() or label != label_of(text, int(epoch)):
        return None
    return int(epoch)


def lane_of(job_id: str) -> str:
    """The lane of a job: part of what it is, so that it is the same when it is enqueued again."""
    digest = hashlib.blake2b(job_id.encode(), digest_size=1).digest()
    return "bulk" if digest[0] % 4 == 0 else "interactive"


def choose(rng: random.Random, since_start_s: float) -> Asked:
    """What to ask next: mostly hot texts, and at any moment a new one that everybody asks."""
    chance = rng.random()
    if chance < _CALM_SHARE:
        return Asked("calm", _zipf(rng))
    chance -= _CALM_SHARE
    if chance < _FRESH_SHARE:
        asked_since_s = max(0.0, since_start_s - rng.expovariate(1 / FRESH_FOR_S))
        return Asked("question", _FIRST_FRESH + int(asked_since_s * FRESH_PER_S))
    chance -= _FRESH_SHARE
    if chance < _UNIQUE_SHARE:
        return unique(rng)
    return Asked("question", _zipf(rng))


def unique(rng: random.Random) -> Asked:
    """A question that nobody has asked and nobody will ask again."""
    return Asked("question", _FIRST_UNIQUE + rng.getrandbits(40))


def _zipf(rng: random.Random) -> int:
    """A number below `HOT_TEXTS`, small ones most often (a power law by inversion)."""
    return min(HOT_TEXTS - 1, int(HOT_TEXTS ** rng.random()) - 1)
