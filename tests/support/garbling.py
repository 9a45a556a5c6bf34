"""Garbled replies: what reaches a client is no longer what the store has said."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping

from tests.support.proxy import Command, Proxy, _read_frame

Garble = Callable[[random.Random, bytes], tuple[bytes, str]]
"""From a frame to what is sent in its place, and what follows: go on, close, hang, pour."""
POURED_BYTES = 1 << 16


class GarblingProxy(Proxy):
    """A proxy that garbles the `rate`-th part of all replies, in one of the ways in `kinds`."""

    def __init__(self, upstream_url: str, kinds: Mapping[str, Garble], seed: int) -> None:
        super().__init__(upstream_url)
        self.rate = 0.0
        self.garbled: Counter[str] = Counter()
        self._kinds = kinds
        self._names = sorted(kinds)
        self._rng = random.Random(seed)

    async def _send_down(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        commands: deque[Command],
    ) -> None:
        while True:
            frame = await _read_frame(reader)
            commands.popleft()
            after = "go on"
            if self._rng.random() < self.rate:
                name = self._rng.choice(self._names)
                self.garbled[name] += 1
                frame, after = self._kinds[name](self._rng, frame)
            writer.write(frame)
            await writer.drain()
            if after == "close":
                return
            if after == "hang":
                await asyncio.Event().wait()
            while after == "pour":
                writer.write(bytes(POURED_BYTES))
                await writer.drain()


def _cut(rng: random.Random, frame: bytes) -> bytes:
    return frame[: rng.randrange(len(frame))]


def _noise(rng: random.Random, _: bytes) -> tuple[bytes, str]:
    """Bytes of which the first is no type of a reply."""
    return rng.choice(b"\0\n@GHx\x80\xff").to_bytes() + rng.randbytes(rng.randrange(64)), "go on"


def _one_of(*texts: bytes, after: str = "go on") -> Garble:
    return lambda rng, _: (rng.choice(texts), after)


_PAGE = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n<html>Bad Request</html>\r\n"
_NO_NUMBERS = (
    b"$x\r\n",
    b"*y\r\n",
    b":z\r\n",
    b"$-2\r\n",
    b"*-3\r\n",
    b"$\r\n",
    b"*\r\n",
    b":\r\n",
)

BROKEN: Mapping[str, Garble] = {
    "cut": lambda rng, frame: (_cut(rng, frame), "close"),
    "half open": lambda rng, frame: (_cut(rng, frame), "hang"),
    "noise": _noise,
    "another protocol": _one_of(_PAGE, after="close"),
    "no number": _one_of(*_NO_NUMBERS),
}
"""What no parser takes for a reply."""

HUGE: Mapping[str, Garble] = {
    "large array": _one_of(b"*1000000\r\n", b"*1\r\n*1000000\r\n:1\r\n", after="hang"),
    "huge bulk": _one_of(b"$9223372036854775807\r\n", b"$1000000000000\r\nabc", after="hang"),
    "deep": _one_of(b"*1\r\n" * 100_000, after="hang"),
    "endless": _one_of(b"$500000000000\r\n", b"*2\r\n$500000000000\r\n", after="pour"),
}
"""Lengths that nobody can mean. hiredis makes room for an array at once, 8 bytes an item."""


class Frames:
    """Draws replies of any shape, and damages many of them. One seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def draw(self) -> bytes:
        """One reply, more or less."""
        rng = self._rng
        frame = self._value(0)
        match rng.randrange(20):
            case 0:
                return _cut(rng, frame)
            case 1:
                return frame + rng.randbytes(rng.randrange(9))
            case 2:
                at = rng.randrange(len(frame))
                return frame[:at] + bytes([frame[at] ^ 1 << rng.randrange(8)]) + frame[at + 1 :]
            case 3:
                return rng.choice([*_NO_NUMBERS, _PAGE, b"*1\r\n" * 1000, rng.randbytes(20)])
            case _:
                return frame

    def _value(self, depth: int) -> bytes:
        rng = self._rng
        kind = rng.randrange(6 if depth < 4 else 5)
        if kind == 0:
            return b":%d\r\n" % rng.choice((0, 1, -1, 2**63 - 1, -(2**63)))
        if kind == 1:
            return b"+%b\r\n" % rng.choice((b"", b"OK", b"\xff\xfe", b"QUEUED", b"x" * 5000))
        if kind == 2:
            return b"-%b\r\n" % rng.choice(
                (b"", b"ERR \xff\xfe", b"x", b"NOSCRIPT", b"WRONGTYPE a")
            )
        if kind == 3:
            return rng.choice((b"$-1\r\n", b"*-1\r\n", b"$0\r\n\r\n", b"*0\r\n"))
        if kind == 4:
            data = rng.randbytes(rng.randrange(40))
            return b"$%d\r\n%b\r\n" % (len(data), data)
        items = [self._value(depth + 1) for _ in range(rng.randrange(5))]
        return b"*%d\r\n%b" % (len(items), b"".join(items))
