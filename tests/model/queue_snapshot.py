"""Everything a job shard holds, read in one round trip, and compared with its model."""

from __future__ import annotations

from typing import Any

import redis

from askonce_queue import names
from askonce_queue.scripts import send_sync
from tests.model.model_queue import QueueModel
from tests.model.queue_actors import EVERY_LANE, POOL
from tests.support.virtual_scripts import TAG

_HASHES = (
    names.ids(TAG, POOL),
    names.owed(TAG),
    names.clients(TAG),
    names.beats(TAG, POOL),
    names.solo(TAG, POOL),
)
_READ_ALL = """
local all = {}
for i = 1, 4 do
  all[#all + 1] = redis.call('XRANGE', KEYS[i], '-', '+')
  all[#all + 1] = redis.call('XPENDING', KEYS[i], ARGV[1], '-', '+', 1000)
end
for i = 5, 9 do all[#all + 1] = redis.call('HGETALL', KEYS[i]) end
all[#all + 1] = redis.call('XRANGE', KEYS[10], '-', '+')
for _, key in ipairs(redis.call('KEYS', ARGV[2])) do
  all[#all + 1] = key
  all[#all + 1] = redis.call('XRANGE', key, '-', '+')
end
return all
"""


def compare(client: redis.Redis, model: QueueModel) -> None:
    """Fail unless the server holds what the model holds; teach the model the new entries' ids."""
    keys = [*(lane.stream for lane in EVERY_LANE), *_HASHES, names.dead(TAG, POOL)]
    pattern = names.replies(TAG, "*")
    all_ = send_sync(client, "EVAL", _READ_ALL, len(keys), *keys, names.GROUP, pattern)
    results = iter(all_)
    for lane in EVERY_LANE:
        _compare_lane(model, lane.lane, next(results), next(results))
    records, owed, holders, beats, solo = (_pairs(next(results)) for _ in _HASHES)
    assert records == {field: entry.place for field, entry in model.records.items()}
    assert owed == {client: str(count) for client, count in model.owed.items() if count}
    assert holders == {
        client: f"{held.token}/{held.deadline_ms:.0f}" for client, held in model.names.items()
    }
    assert beats == {consumer: f"{ms:.0f}" for consumer, ms in model.beats.items()}
    assert solo == {place: f"{count}/{token}" for place, (count, token) in model.solo.items()}
    letters = [(one[1][1].decode(), tuple(one[1][8:])) for one in next(results)]
    assert letters == model.dead
    mail = {key.decode().split(":", 2)[2]: rows for key, rows in zip(results, results, strict=True)}
    for address in mail.keys() | model.mail.keys():
        _compare_mail(model, address, mail.get(address, []))


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


def _pairs(words: list[bytes]) -> dict[str, str]:
    pairs = zip(words[::2], words[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}
