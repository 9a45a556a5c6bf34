"""A proxy that garbles replies: what reaches the client is no longer what the store has said."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from tests.support.proxy import Command, Proxy, _read_frame

Garble = Callable[[random.Random, bytes], tuple[bytes, str]]
"""From a frame to what is sent in its place, and what follows: go on, close, hang, pour."""
POURED_BYTES = 1 << 16


class GarblingProxy(Proxy):
    """Garbles about every `1 / rate`-th reply, in one of the ways in `kinds`, while `rate` > 0."""

    def __init__(self, upstream_url: str, kinds: Mapping[str, Garble], seed: int) -> None:
        super().__init__(upstream_url)
        self.rate = 0.0
        self.replies = 0
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
            self.replies += 1
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


def _random_bytes(rng: random.Random, _: bytes) -> tuple[bytes, str]:
    return rng.choice(b"\x00\n@GHx\x80\xff").to_bytes() + rng.randbytes(rng.randrange(64)), "go on"


def _one_of(*texts: bytes, after: str = "go on") -> Garble:
    return lambda rng, _: (rng.choice(texts), after)


_PAGE = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n<html>Bad Request</html>\r\n"

BROKEN: Mapping[str, Garble] = {
    "cut": lambda rng, frame: (_cut(rng, frame), "close"),
    "half open": lambda rng, frame: (_cut(rng, frame), "hang"),
    "random bytes": _random_bytes,
    "no store": _one_of(_PAGE, after="close"),
    "no number": _one_of(b"$x\r\n", b"*y\r\n", b":z\r\n", b"$-2\r\n", b"*-3\r\n", b"$\r\n", b"*\r\n"),
}
"""What no parser takes for a reply."""
HUGE: Mapping[str, Garble] = {
    "huge array": _one_of(b"*4294967295\r\n", b"*1000000000\r\n", b"*1\r\n*2000000000\r\n:1\r\n", after="hang"),
    "huge bulk": _one_of(b"$9223372036854775807\r\n", b"$1000000000000\r\nabc", after="hang"),
    "deep": _one_of(b"*1\r\n" * 100_000, after="hang"),
    "endless": _one_of(b"$500000000000\r\n", b"*2\r\n$500000000000\r\n", after="pour"),
}
"""Lengths that nobody can mean."""
WRONG: Mapping[str, Garble] = {
    "number": _one_of(b":0\r\n", b":1\r\n", b":-7\r\n", b":99999999999999999\r\n"),
    "text": _one_of(b"+OK\r\n", b"+\r\n", b"$3\r\nabc\r\n", b"$0\r\n\r\n"),
    "nothing": _one_of(b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"_\r\n"),
    "array": _one_of(b"*1\r\n:1\r\n", b"*2\r\n$1\r\na\r\n*1\r\n$-1\r\n", b"*3\r\n*0\r\n*-1\r\n+a\r\n"),
    "newer type": _one_of(b"#t\r\n", b",inf\r\n", b",nan\r\n", b"(123\r\n", b"%1\r\n:1\r\n:2\r\n", b"~1\r\n:1\r\n", b"=7\r\ntxt:abc\r\n", b">1\r\n+x\r\n"),
}
"""Replies that other commands have."""


def flip(rng: random.Random, frame: bytes) -> tuple[bytes, str]:
    """Flip one bit."""
    changed = bytearray(frame)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed), "go on"
