"""Everything a job shard holds, read in one round trip, and compared with its model."""

from __future__ import annotations

from typing import Any, cast

import redis

from askonce_queue import names
from tests.model.model_queue import QueueModel
from tests.model.queue_actors import EVERY_LANE, POOL
from tests.support.virtual_scripts import TAG


def compare(client: redis.Redis, model: QueueModel) -> None:
    """Fail unless the server holds what the model holds; teach the model the new entries' ids."""
    addresses = sorted(address for address, mail in model.mail.items() if mail)
    pipe = client.pipeline(transaction=False)
    for lane in EVERY_LANE:
        pipe.execute_command("XRANGE", lane.stream, "-", "+")
        pipe.execute_command("XPENDING", lane.stream, names.GROUP, "-", "+", 1000)
    for address in addresses:
        pipe.execute_command("XRANGE", names.replies(TAG, address), "-", "+")
    for key in (
        names.ids(TAG, POOL),
        names.owed(TAG),
        names.clients(TAG),
        names.beats(TAG, POOL),
        names.solo(TAG, POOL),
    ):
        pipe.execute_command("HGETALL", key)
    pipe.execute_command("XRANGE", names.dead(TAG, POOL), "-", "+")
    pipe.execute_command("KEYS", names.replies(TAG, "*"))
    results = iter(cast("list[Any]", pipe.execute()))
    for lane in EVERY_LANE:
        _compare_lane(model, lane.lane, next(results), next(results))
    for address in addresses:
        _compare_mail(model, address, next(results))
    records, owed, holders, beats, solo = (_decoded(next(results)) for _ in range(5))
    assert records == {field: entry.place for field, entry in model.records.items()}
    assert owed == {client: str(count) for client, count in model.owed.items() if count}
    assert holders == {
        client: f"{held.token}/{held.deadline_ms:.0f}" for client, held in model.names.items()
    }
    assert beats == {consumer: f"{ms:.0f}" for consumer, ms in model.beats.items()}
    assert solo == {place: f"{count}/{token}" for place, (count, token) in model.solo.items()}
    letters = [(one[1][1].decode(), tuple(one[1][8:])) for one in next(results)]
    assert letters == model.dead
    streams = {key.decode().split(":", 2)[2] for key in next(results)}
    assert streams >= set(addresses)
    assert streams <= set(model.mail)


def _compare_lane(model: QueueModel, lane: str, rows: list[Any], pending: list[Any]) -> None:
    entries = model.streams[lane]
    assert [tuple(fields) for _, fields in rows] == [entry.fields for entry in entries]
    for (entry_id, _), entry in zip(rows, entries, strict=True):
        entry.entry_id = entry.entry_id or entry_id
        assert entry.entry_id == entry_id
    held = [
        (entry.entry_id, entry.consumer, entry.deliveries) for entry in entries if entry.consumer
    ]
    assert [(row[0], row[1].decode(), row[3]) for row in pending] == held


def _compare_mail(model: QueueModel, address: str, rows: list[Any]) -> None:
    mail = model.mail[address]
    told = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in rows]
    assert [tuple(one[b"r"].splitlines()) for one in told] == [one.lines for one in mail]
    assert [int(one[b"n"]) for one in told] == [len(one.lines) for one in mail]
    for (entry_id, _), one in zip(rows, mail, strict=True):
        one.entry_id = one.entry_id or entry_id
        assert one.entry_id == entry_id


def _decoded(rows: Any) -> dict[str, str]:
    pairs = rows.items() if isinstance(rows, dict) else zip(rows[::2], rows[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}
