"""The proxy process: all links of a run, told by its parent what to do to them.

    python -m askonce_loadtest.chaos.proxy

One JSON line in, one line out. The first line is the `Order`; the reply has the port of every
link. Then `SetFault` after `SetFault`, each answered with the `State` of all links. It is a process
of its own, so that neither a busy parent nor its garbage collector delays anybody. End of input
ends it.
"""

from __future__ import annotations

import asyncio
import random
import sys

import msgspec
import uvloop

from askonce_loadtest.chaos.links import Address, Link, LinkFault


class Order(msgspec.Struct):
    """The links to open: name → the servers behind it, by name."""

    seed: int
    links: dict[str, dict[str, Address]]


class Ports(msgspec.Struct):
    """Where the links listen: link → server → address."""

    links: dict[str, dict[str, Address]]


class SetFault(msgspec.Struct):
    """Begin a fault on all servers of a link; None ends the one there is. '' changes nothing."""

    link: str
    fault: LinkFault | None = None


class State(msgspec.Struct):
    """Of every link: how often each fault has struck, and how many connections are open."""

    struck: dict[str, dict[str, int]]
    open: dict[str, int]


async def serve(reader: asyncio.StreamReader) -> None:
    """Obey until the end of input."""
    order = msgspec.json.decode(await reader.readline(), type=Order)
    links = {
        name: {
            server: Link(upstream, random.Random(f"{order.seed}:{name}:{server}"))
            for server, upstream in servers.items()
        }
        for name, servers in order.links.items()
    }
    every = [link for servers in links.values() for link in servers.values()]
    try:
        for link in every:
            await link.open()
        _say(Ports({n: {s: link.address for s, link in ls.items()} for n, ls in links.items()}))
        while line := await reader.readline():
            change = msgspec.json.decode(line, type=SetFault)
            for link in links.get(change.link, {}).values():
                await link.set_fault(change.fault)
            _say(_state(links))
    finally:
        for link in every:
            await link.close()


def _state(links: dict[str, dict[str, Link]]) -> State:
    struck: dict[str, dict[str, int]] = {}
    for name, servers in links.items():
        counts = struck[name] = {}
        for link in servers.values():
            for kind, count in link.struck.items():
                counts[kind] = counts.get(kind, 0) + count
    return State(
        struck,
        {name: sum(link.open_connections for link in s.values()) for name, s in links.items()},
    )


def _say(message: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


async def _main() -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        await serve(reader)
    finally:
        transport.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
