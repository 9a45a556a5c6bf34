"""A producer's memory of its jobs, across its own deaths: rebuilt from its journal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from askonce_loadtest.chaos import journal
from askonce_loadtest.chaos.journal import Accepted, Attempted, Began, Replied
from askonce_loadtest.chaos.workload import Asked


class Books:
    """Which jobs were made, which of them still need an enqueue, which still wait for a reply."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.made = 0
        self.asked: dict[str, Asked] = {}
        """Jobs without a reply, by id: what they ask."""
        self.unsure: dict[str, None] = {}
        """Those of them of which it is not known that they are accepted, oldest first."""

    @classmethod
    def read(cls, path: Path) -> Books:
        """The books at the end of a journal; empty ones where there is none."""
        books = cls()
        for line in journal.read_journal(path, journal.producer_lines):
            match line:
                case Began(incarnation=incarnation):
                    books.incarnation = incarnation
                case Attempted(jobs=jobs):
                    for job_id, kind, number in jobs:
                        if not books.knows(job_id):
                            books.add(job_id, Asked(kind, number))
                case Accepted(ids=ids):
                    books.accepted(ids)
                case Replied(id=job_id):
                    books.replied(job_id)
                case _:
                    pass
        return books

    def knows(self, job_id: str) -> bool:
        """Whether a job of this id was made before: ids end in the number of the job."""
        return int(job_id.rpartition("-")[2]) <= self.made

    def add(self, job_id: str, asked: Asked) -> None:
        """A job was made, and is not enqueued yet."""
        self.made = max(self.made, int(job_id.rpartition("-")[2]))
        self.asked[job_id] = asked
        self.unsure[job_id] = None

    def accepted(self, job_ids: Iterable[str]) -> None:
        """Jobs are enqueued."""
        for job_id in job_ids:
            self.unsure.pop(job_id, None)

    def replied(self, job_id: str) -> bool:
        """A job has its reply; False when it had one before, or is none of ours."""
        self.unsure.pop(job_id, None)
        return self.asked.pop(job_id, None) is not None

    @property
    def waiting(self) -> int:
        """How many jobs have no reply yet."""
        return len(self.asked)
