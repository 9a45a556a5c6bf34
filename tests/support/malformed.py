"""Malformed entries: valid ones, damaged as foreign writers, other versions and bad disks would.

One seed gives the same entries on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from askonce_queue.job import MAX_JOB_BYTES

Fields = list[bytes]
"""Names and values in turn, as a stream entry holds them."""

TASKS = ("echo", "trim")
"""The tasks that well-formed payloads ask."""

OVERSIZED = 1 / 200
"""One payload in so many is blown up: they cost more than all others."""

_NAMES = (b"v", b"c", b"i", b"p", b"r", b"n", b"g", b"d")
_NUMBERS = (
    *(b"0", b"-0", b"1e999", b"-1e999", b"NaN", b"Infinity", b"-Infinity", b"1e-400", b"01"),
    *(b"9" * 30, b"9" * 5000, b"1" + b"0" * 400, b"0.1" + b"3" * 900, b"0x10", b"1_000", b"+1"),
)
_STRINGS = (
    *(rb'"\ud800"', rb'"\udfff\ud800"', rb'"\u0000"', rb'"\x41"', b'"\xff\xfe"', b'"\xed\xa0\x80"'),
    *(b'"\xf4\x90\x80\x80"', b'"\xc0\xaf"', b'"a', b'"\n"', b'""', b'"\xef\xbb\xbf"', b"'a'"),
)
_VALUES = (*_NUMBERS, *_STRINGS, b"null", b"true", b"[]", b"{}", b"[{}]", b"[[]]", b'{"":{}}', b"")


class Malformed:
    """Draws entries."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def fields(self, job_id: str, client: str = "client") -> Fields | None:
        """The fields of an entry, as a client library could hand them over: nearly all are bad."""
        rng = self._rng
        if rng.random() < 0.01:
            return rng.choice([None, [], [self.blob()], [b"v"]])
        fields = self.written(job_id, client)
        if rng.random() < 0.03:
            fields.append(self.blob())  # an odd count, which no server would send
        return fields

    def written(self, job_id: str, client: str = "client") -> Fields:
        """Fields that a server takes: pairs, at least one."""
        rng = self._rng
        payload = self.payload()
        pairs = [[b"v", b"1"], [b"c", client.encode()], [b"i", job_id.encode()], [b"p", payload]]
        damages = rng.choice((0, 0, 1, 1, 2, 3)) if payload else 0
        for _ in range(damages):
            rng.choice(_ENVELOPE_DAMAGES)(self, rng, pairs)
        return [word for pair in pairs for word in pair] or [b"", b""]

    def payload(self) -> bytes:
        """A payload, damaged in most cases."""
        rng = self._rng
        data = self._valid_payload()
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            data = rng.choice(_PAYLOAD_DAMAGES)(self, rng, data)
        return _oversized(rng, data) if rng.random() < OVERSIZED else data

    def blob(self, most: int = 40) -> bytes:
        """Random bytes, sometimes none."""
        return self._rng.randbytes(self._rng.randrange(most))

    def flipped(self, data: bytes) -> bytes:
        """`data` with up to four bits flipped."""
        changed = bytearray(data)
        for _ in range(self._rng.randint(1, 4) if changed else 0):
            changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    def cut(self, data: bytes) -> bytes:
        """The beginning of `data`."""
        return data[: self._rng.randrange(len(data) + 1)]

    def damaged(self, data: bytes) -> bytes:
        """`data` flipped, cut, replaced, or with random bytes in or after it."""
        at = self._rng.randrange(len(data) + 1)
        return self._rng.choice(
            (
                self.flipped(data),
                self.cut(data),
                self.blob(200),
                data + self.blob(),
                data[:at] + self.blob() + data[at:],
                data[at:],
                b"",
            )
        )

    def _valid_payload(self) -> bytes:
        rng = self._rng
        job: dict[str, object] = {"task": rng.choice(TASKS)}
        text = f"text {rng.randrange(1000)}"
        if rng.random() < 0.6:
            job["text"] = text
        else:
            job["messages"] = [{"role": "user", "content": text}]
        if rng.random() < 0.3:
            job["params"] = {"seed": rng.randrange(9), "stop": ["a", None, 1.5, {"b": [True]}]}
        return msgspec.json.encode(job)


def _deep(rng: random.Random) -> bytes:
    depth = rng.choice((50, 300, 1100, 20_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return opened * depth + b"1" + closed * depth


def _value(garbage: Malformed, rng: random.Random) -> bytes:
    """A JSON value that is none, or of a type that nobody expects."""
    if rng.random() < 0.1:
        return _deep(rng)
    return rng.choice(_VALUES) if rng.random() < 0.9 else garbage.blob()


def _replace_part(garbage: Malformed, rng: random.Random, data: bytes) -> bytes:
    """Put something else where a member, or what stands in one, has its value."""
    name = rng.choice(
        (b'"task":', b'"text":', b'"messages":', b'"params":', b'"role":', b'"seed":')
    )
    head, colon, rest = data.partition(name)
    end = min((at for at in (rest.find(b","), rest.find(b"}")) if at >= 0), default=len(rest))
    return head + colon + _value(garbage, rng) + rest[end:] if colon else data


def _add_member(garbage: Malformed, rng: random.Random, data: bytes) -> bytes:
    """A member more: unknown, or one that is there already."""
    name = rng.choice(
        (b'"task"', b'"text"', b'"messages"', b'"params"', b'"x"', b'"\\ud800"', b"1")
    )
    return b"{" + name + b":" + _value(garbage, rng) + b"," + data[1:]


def _oversized(rng: random.Random, data: bytes) -> bytes:
    size = rng.choice((1_001, 2_001, 70_000, MAX_JOB_BYTES - len(data), MAX_JOB_BYTES + 1))
    filling = rng.choice((b"x", b" ", b"\xc3\xa9", b"\0"))
    return data[:-2] + filling * (size // len(filling)) + data[-2:]


def _damage(garbage: Malformed, rng: random.Random, data: bytes) -> bytes:
    del rng
    return garbage.damaged(data)


_PAYLOAD_DAMAGES: Sequence[Callable[[Malformed, random.Random, bytes], bytes]] = (
    *(_replace_part, _replace_part, _replace_part, _replace_part, _replace_part, _replace_part),
    *(_add_member, _add_member, _add_member, _damage, _damage, _damage),
    lambda _, rng, data: rng.choice((b"\xef\xbb\xbf", b"\0", b" \r\n", b"[", b"{}")) + data,
    lambda _, rng, data: data + rng.choice((b"\0", b" \r\n", b"]", b"}", data)),
    lambda _, rng, data: data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32"))),
    lambda _, rng, data: data.replace(b'"', rng.choice((b"'", b"", b'\\"'))),
    lambda _, rng, data: data.replace(b"text ", rng.choice(_STRINGS)[1:-1]),
    lambda _, rng, data: data.replace(b"echo", rng.choice((b"nope", b"", b"ECHO", b"x" * 5000))),
    lambda garbage, rng, _: _value(garbage, rng),
)

_ADDRESSES = (
    *(b"", b"@", b"@@", b"client\n", b"@a\nb", b"@" + b"x" * 101, b"@" + b"x" * 70_000, b"@{1}"),
    *(b"@a b", b"@\xff\xfe", b"@sp\xc3\xa4t", b"*", b"../x", b"@-x", b"nobody", b"\0", b"@ok"),
)
_TAGS = (
    *(b"", b"\n", b"a\n\nb", b"a\n", b"\na", b"a\r\nb", b"\n".join([b"t"] * 17), b"x" * 201),
    *(b"\xff", b"a\0b", b"\xc2\x85", b"\xe2\x80\xa8", b"t", b"a\nb"),
)
_DEADLINES = (
    *(b"", b"never", b"-1", b"1e9", b"9" * 30, b"9" * 5000, b"NaN", b"0x1", b" 1 ", b"1_0"),
    *(b"\xd9\xa3", b"\xff"),
)
_VERSIONS = (b"", b"0", b"2", b"11", b"01", b"1 ", b"\x01", b"one", b"\xff" * 3000, b"-1", b"77")


def _set(name: bytes, values: Sequence[bytes]) -> Callable[..., None]:
    """Give a field one of these values, whether it was there or not."""

    def damage(_: Malformed, rng: random.Random, pairs: list[Fields]) -> None:
        value = rng.choice(values)
        for pair in pairs:
            if pair[0] == name:
                pair[1] = value
                return
        pairs.append([name, value])

    return damage


def _drop(_: Malformed, rng: random.Random, pairs: list[Fields]) -> None:
    if len(pairs) > 1:
        del pairs[rng.randrange(len(pairs))]


def _double(garbage: Malformed, rng: random.Random, pairs: list[Fields]) -> None:
    name = rng.choice(_NAMES)
    pairs.insert(rng.randrange(len(pairs) + 1), [name, garbage.blob()])


def _damage_one(garbage: Malformed, rng: random.Random, pairs: list[Fields]) -> None:
    pair = rng.choice(pairs)
    which = rng.randrange(2)
    pair[which] = garbage.damaged(pair[which])


def _swap_values(_: Malformed, rng: random.Random, pairs: list[Fields]) -> None:
    one, other = rng.choice(pairs), rng.choice(pairs)
    one[1], other[1] = other[1], one[1]


def _add_many(garbage: Malformed, rng: random.Random, pairs: list[Fields]) -> None:
    pairs += [[garbage.blob(8), garbage.blob(8)] for _ in range(rng.choice((1, 5, 150)))]


def _shuffle(_: Malformed, rng: random.Random, pairs: list[Fields]) -> None:
    rng.shuffle(pairs)


_IDENTITIES = (
    b"",
    b"\n",
    b"\0",
    b"\xff",
    b"a/b",
    b"/",
    b"a\nb",
    b"\xc3\xa9",
    b"x" * 5000,
    b'"',
    b"@",
    b"@@",
)
_ENVELOPE_DAMAGES: Sequence[Callable[[Malformed, random.Random, list[Fields]], None]] = (
    *(_drop, _drop, _double, _double, _damage_one, _damage_one, _swap_values, _add_many, _shuffle),
    _set(b"v", _VERSIONS),
    _set(b"r", _ADDRESSES),
    _set(b"n", (b"\0", b"x" * 201, b"\xff", b"a\nb", b"acme")),
    _set(b"g", _TAGS),
    _set(b"d", _DEADLINES),
    _set(b"i", _IDENTITIES),
    _set(b"c", _IDENTITIES),
)
