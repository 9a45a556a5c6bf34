"""A stored answer: its header in the store, and the form in which a worker keeps it in memory.

Layout in the store (little-endian), read by `look_up.lua` and written by `fill.lua`:

| offset | type | field |
| --- | --- | --- |
| 0 | u8 | version, 1 |
| 1 | u8 | flags; 1: read since it was filled |
| 2 | f64 | `created`, server Unix ms |
| 10 | f64 | `built`, stamp (server µs) of the lease under which it was computed |
| 18 | f64 | `fresh_until`, server Unix ms |
| 26 | f64 | `stale_until`, server Unix ms; the key's TTL ends here too |
| 34 | u16 | length of the tags |
| 36 | bytes | tags, joined by line breaks |
| … | bytes | the answer: MessagePack array of `StoredAnswer` |
"""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec

from askonce_queue.reply import Answer, Usage
from askonce_worker.observe.tally import ONE_HIT, worth_of

HEADER = struct.Struct("<BBddddH")
VERSION = 1
READ = 1
"""The flag of an entry that somebody was served from."""
MOST_TAG_BYTES = 60_000
"""Longest text of tags in a header; an answer with more askers' tags than that is not kept."""
MEMORY_OVERHEAD_BYTES = 650
"""What an entry takes in a worker beside its JSON: its objects, with label, score, model and usage.
Measured with tracemalloc on CPython 3.11; the memory tier adds what it needs itself."""


class StoredAnswer(msgspec.Struct, array_like=True):
    """`Answer` as it is kept: positions instead of names, a third of the JSON's size."""

    label: str | None
    score: float | None
    model: str | None
    tokens: tuple[int, int] | None = None
    scores: dict[str, float] | None = None
    value: Any = None


class Entry:
    """An answer in a worker's hands; `json` is its `Answer` as replies carry it.

    `born` is the monotonic time of its creation, so that its age needs no server.
    `kept` is the monotonic time until which the memory tier may serve it, `fresh_until` that until
    which it is fresh. `created_ms` is the server's time of its creation; `unread`: nobody has been
    served from it yet, as far as we know. `cost_nano` is what the call cost that has just made it,
    in billionths; 0 for one that was there.
    """

    __slots__ = (
        "answer",
        "born",
        "built",
        "cost_nano",
        "created_ms",
        "fresh_until",
        "json",
        "kept",
        "shard",
        "tags",
        "unread",
        "worth",
    )

    def __init__(
        self,
        answer: Answer,
        json: msgspec.Raw,
        *,
        born: float,
        built: float,
        kept: float,
        tags: tuple[str, ...],
        shard: int,
        fresh_until: float,
        created_ms: float = 0.0,
        unread: bool = False,
        cost_nano: int = 0,
    ) -> None:
        self.answer = answer
        self.json = json
        self.born = born
        self.built = built
        self.kept = kept
        self.tags = tags
        self.shard = shard
        self.fresh_until = fresh_until
        self.created_ms = created_ms
        self.unread = unread
        self.cost_nano = cost_nano
        usage = answer.usage
        self.worth = worth_of(usage.input_tokens, usage.output_tokens) if usage else ONE_HIT
        """What a hit on it saves, packed (see `tally.py`)."""

    @property
    def size_bytes(self) -> int:
        """What it takes in the memory tier, about."""
        return len(bytes(self.json)) + MEMORY_OVERHEAD_BYTES


_json = msgspec.json.Encoder()
_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(StoredAnswer)


def encode_json(answer: Answer) -> msgspec.Raw:
    """The answer as replies carry it. Raises as `encode_body`.

    Also for scores that are no numbers: the encoder would write null, and nobody could read that.
    """
    if answer.scores is not None and not all(map(math.isfinite, answer.scores.values())):
        raise ValueError("a score is not a number")
    try:
        return msgspec.Raw(_json.encode(answer))
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {error}") from error


def encode_body(answer: Answer) -> bytes:
    """The body of an entry.

    Raises `ValueError`, `TypeError`, `OverflowError` or `MsgspecError` for what is not JSON.
    """
    usage = answer.usage
    stored = StoredAnswer(
        label=answer.label,
        score=answer.score,
        model=answer.model,
        tokens=(usage.input_tokens, usage.output_tokens) if usage else None,
        scores=answer.scores,
        value=answer.value,
    )
    try:
        return _pack.encode(stored)
    except RecursionError as error:
        raise ValueError(f"nested too deeply: {error}") from error


def decode_body(body: bytes) -> Answer:
    """The inverse of `encode_body`. Raises `msgspec.MsgspecError` on anything else."""
    kept = _unpack.decode(body)
    return Answer(
        label=kept.label,
        score=kept.score,
        scores=kept.scores,
        value=kept.value,
        model=kept.model,
        usage=Usage(*kept.tokens) if kept.tokens else None,
    )


def decode_entry(
    data: bytes, *, now_ms: float, monotonic: float, memory_ttl_s: float, shard: int
) -> Entry:
    """Read an entry as the look-up returned it at server time `now_ms`.

    Raises `struct.error` or `msgspec.MsgspecError` when it was not written by this version, or has
    been damaged so that no reply could carry it.
    """
    version, flags, created, built, fresh, _over, tag_bytes = HEADER.unpack_from(data)
    if version != VERSION:
        raise struct.error(f"entry version {version} is not known here")
    if not math.isfinite(created + built + fresh):
        raise struct.error("its times are no numbers")
    end = HEADER.size + tag_bytes
    fresh_s = (fresh - now_ms) / 1000
    try:
        tags = data[HEADER.size : end].decode()
        answer = decode_body(data[end:])
        json = encode_json(answer)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # MessagePack has values that JSON has not.
        raise msgspec.DecodeError(f"not an answer: {error}") from error
    return Entry(
        answer,
        json,
        born=monotonic - max(0.0, now_ms - created) / 1000,
        built=built,
        kept=monotonic + min(memory_ttl_s, fresh_s),
        tags=tuple(tags.split("\n")) if tags else (),
        shard=shard,
        fresh_until=monotonic + fresh_s,
        created_ms=created,
        unread=not flags & READ,
    )
