"""Where a client reads on in its reply streams, after failures and failovers."""

from __future__ import annotations

from askonce_queue.ledger import Ledger, Limits
from askonce_queue.positions import Positions

HERE, THERE = ("127.0.0.1", 1), ("127.0.0.1", 2)
TAG = "0"


def positions_after(entry_id: bytes) -> Positions:
    positions = Positions(Ledger("c", pool="default", shards=1, limits=Limits()))
    key, _ = positions.read([TAG], 0.0)
    assert positions.take([[key, [[entry_id, [b"n", b"0", b"r", b""]]]]]) == 1
    positions.served_by([TAG], HERE)
    return positions


def next_id(positions: Positions) -> object:
    return positions.read([TAG], 0.0)[1][-1]


def test_it_reads_on_from_the_last_entry() -> None:
    positions = positions_after(b"5-1")
    positions.served_by([TAG], HERE)
    assert next_id(positions) == b"5-1"


def test_it_begins_anew_after_a_failure() -> None:
    positions = positions_after(b"5-1")
    positions.rewind([TAG])
    assert next_id(positions) == b"0"


def test_it_begins_anew_when_another_server_answers() -> None:
    """A failover may bring back what was deleted, without any failure that a client sees."""
    positions = positions_after(b"5-1")
    positions.served_by([TAG], THERE)
    assert next_id(positions) == b"0"
