"""Replies to enqueued jobs on their way to `replies()`, each to an id whose enqueue succeeded.

Who is told that the store did not confirm jobs enqueues the same ids again. Had they been accepted
and answered all the same, that makes new jobs, and replies to both would be handed over. So the
replies of a call wait until it has succeeded, and go with it if it fails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from askonce_queue.ledger import Delivered, Ledger


class Inbox:
    """What has arrived for `replies()`, which takes it from `arrived` when `ring` was called."""

    def __init__(self, ledger: Ledger, ring: Callable[[], None]) -> None:
        self.arrived: deque[Delivered] = deque()
        self._ledger = ledger
        self._ring = ring
        self._calls: list[set[str]] = []
        """The ids that each call under way has made awaited."""
        self._kept: dict[str, Delivered] = {}

    def put(self, delivered: Delivered) -> None:
        """The mailbox of enqueued jobs."""
        for ids in self._calls:
            if delivered.reply.id in ids:
                self._kept[delivered.reply.id] = delivered
                return
        self.arrived.append(delivered)
        self._ring()

    def begin(self, job_ids: Sequence[str]) -> set[str]:
        """Await the replies of a call; return the ids that were not awaited before, for `end`.

        Raises `IdConflict` as `Ledger.expect`, and then there is nothing to end.
        """
        new = self._ledger.expect(job_ids, self.put)
        self._calls.append(new)
        return new

    def end(self, new: set[str], job_ids: Sequence[str], failed: Collection[str]) -> None:
        """A call has ended; its ids in `failed` were not accepted, or it is not known."""
        self._calls = [other for other in self._calls if other is not new]
        if failed:
            lost = new.intersection(failed)
            for job_id in lost:
                self._ledger.forget(job_id)
            for job_id in lost.intersection(self._kept):
                self._ledger.handed(self._kept.pop(job_id).source)
        if self._calls:  # whatever becomes of them: what is accepted here stays awaited
            accepted = set(job_ids).difference(failed)
            for other in self._calls:
                other.difference_update(accepted)
        if self._kept:
            for job_id in new.intersection(self._kept).difference(failed):
                self.put(self._kept.pop(job_id))
