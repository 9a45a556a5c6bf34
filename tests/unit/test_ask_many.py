"""The window of `ask_many`, against the real ledger and a queue that says what a test wants."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from askonce_queue.ask_many import AskMany
from askonce_queue.errors import IdConflict, QueueFull
from askonce_queue.job import Job
from askonce_queue.ledger import Enqueue, Ledger, Limits
from askonce_queue.reply import WireReply, encode_replies
from askonce_queue.scripts import CHUNK


class Asking:
    """One `ask_many` under test."""

    def __init__(
        self, jobs: Iterator[Job], *, window: int, ordered: bool = False, room: int = 1 << 30
    ) -> None:
        self.ledger = Ledger("c", pool="default", shards=1, limits=Limits())
        self.sent: list[str] = []
        self.room = room
        self.error: IdConflict | None = None
        self._entry = 0
        self.many = AskMany(self.ledger, self._send, jobs, "bulk", window, ordered=ordered)

    async def _send(self, calls: Sequence[Enqueue]) -> QueueFull | IdConflict | None:
        ids = [job_id for one in calls for job_id in one.job_ids]
        fit, refused = ids[: self.room], ids[self.room :]
        self.room -= len(fit)
        self.sent += fit
        return self.error or (QueueFull(refused, "full") if refused else None)

    def reply(self, *job_ids: str) -> None:
        self._entry += 1
        lines = encode_replies([WireReply(id=job_id) for job_id in job_ids])
        self.ledger.receive("0", b"1-%d" % self._entry, lines)

    def taken(self) -> list[str]:
        found: list[str] = []
        while (delivered := self.many.take()) is not None:
            self.ledger.handed(delivered.source)
            found.append(delivered.reply.id)
        return found


def jobs(count: int) -> Iterator[Job]:
    return (Job(task="t", text="a", id=str(n)) for n in range(count))


async def test_the_window_bounds_what_is_outstanding() -> None:
    source = jobs(100)
    asking = Asking(source, window=10)
    await asking.many.feed()
    await asking.many.feed()
    assert asking.sent == [str(n) for n in range(10)]
    assert next(source).id == "10"  # jobs are read as they are needed


async def test_what_is_not_taken_counts_in_the_window() -> None:
    asking = Asking(jobs(100), window=10)
    await asking.many.feed()
    asking.reply(*map(str, range(10)))
    await asking.many.feed()
    assert len(asking.sent) == 10
    assert len(asking.taken()) == 10
    await asking.many.feed()
    assert len(asking.sent) == 20


async def test_a_large_window_is_filled_in_parts() -> None:
    asking = Asking(jobs(2 * CHUNK + 1), window=10 * CHUNK)
    for count in (CHUNK, 2 * CHUNK, 2 * CHUNK + 1):
        await asking.many.feed()
        assert len(asking.sent) == count
    assert not asking.many.done
    asking.reply(*asking.sent)
    asking.taken()
    assert asking.many.done


async def test_ordered_holds_back_until_the_first_is_there() -> None:
    asking = Asking(jobs(3), window=10, ordered=True)
    await asking.many.feed()
    asking.reply("2", "1")
    assert asking.taken() == []
    asking.reply("0")
    assert asking.taken() == ["0", "1", "2"]
    assert asking.many.done


async def test_refused_jobs_are_sent_again_before_others() -> None:
    asking = Asking(jobs(20), window=10, room=4)
    await asking.many.feed()
    assert asking.sent == ["0", "1", "2", "3"]
    asking.room = 100
    await asking.many.feed()
    assert asking.sent == [str(n) for n in range(10)]


async def test_a_full_queue_is_waited_for_and_not_spun_on() -> None:
    asking = Asking(jobs(1), window=10, room=0)
    await asking.many.feed()
    began = asyncio.get_running_loop().time()
    await asking.many.wait()
    assert asyncio.get_running_loop().time() - began >= 0.01


async def test_wait_returns_for_a_reply() -> None:
    asking = Asking(jobs(1), window=10)
    await asking.many.feed()
    waiting = asyncio.ensure_future(asking.many.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    asking.reply("0")
    await waiting


async def test_abandoned_replies_are_done_with() -> None:
    asking = Asking(jobs(3), window=10)
    await asking.many.feed()
    asking.reply("0", "1")
    asking.many.abandon()
    assert asking.ledger.outstanding == 0
    assert [entries for entries, _, _ in asking.ledger.take_handed()] == [[(b"1-1", 2)]]
    asking.reply("2")
    assert [entries for entries, _, _ in asking.ledger.take_handed()] == [[(b"1-2", 1)]]


async def test_conflicts_are_raised() -> None:
    asking = Asking(jobs(1), window=10)
    asking.error = IdConflict(["0"])
    with pytest.raises(IdConflict):
        await asking.many.feed()


async def test_early_replies_are_not_asked_for_again() -> None:
    asking = Asking(jobs(3), window=10)
    asking.reply("1")
    await asking.many.feed()
    assert asking.sent == ["0", "2"]
    assert asking.taken() == ["1"]


async def test_an_id_that_comes_twice_cannot_block_the_order() -> None:
    ids = [*map(str, range(CHUNK)), "0", "last"]
    asking = Asking((Job(task="t", text="a", id=i) for i in ids), window=10 * CHUNK, ordered=True)
    try:
        while not asking.many._exhausted:
            await asking.many.feed()
    except IdConflict:
        return
    asking.reply(*dict.fromkeys(ids))
    asking.taken()
    assert asking.many.done


async def test_an_id_that_somebody_else_waits_for_stays_theirs() -> None:
    asking = Asking(jobs(3), window=10)
    found: list[str] = []
    asking.ledger.expect(["1"], lambda delivered: found.append(delivered.reply.id))
    with pytest.raises(IdConflict):
        await asking.many.feed()
    asking.many.abandon()
    asking.reply("1")
    assert found == ["1"]
