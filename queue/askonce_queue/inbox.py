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
        """Await the replies of a call; its ids that were not awaited before, for `end`.

        Raises `IdConflict` as `Ledger.expect`, and then there is nothing to end.
        """
        ids = self._ledger.expect(job_ids, self.put)
        self._calls.append(ids)
        return ids

    def end(self, ids: set[str], failed: Collection[str]) -> None:
        """A call has ended; those of its ids that are in `failed` were not accepted, or not known
        to be.
        """
        self._calls = [other for other in self._calls if other is not ids]
        if failed:
            lost = ids.intersection(failed)
            for job_id in lost:
                self._ledger.forget(job_id)
            for job_id in lost.intersection(self._kept):
                self._ledger.handed(self._kept.pop(job_id).source)
            ids = ids - lost
        for other in self._calls:
            other.difference_update(ids)  # they stay awaited, whatever becomes of other calls
        for job_id in ids.intersection(self._kept):
            self.put(self._kept.pop(job_id))
