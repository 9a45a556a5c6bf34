"""Binds the Lua files: one `Script` a file, called by hash, loaded again when the server forgot it.

A script is one atomic step on one shard; all its keys share a hash tag. The typed stubs in
`queue_scripts.py` and `answer_scripts.py` are the only callers, so no call site counts arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Iterable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple, cast

import redis
import redis.asyncio
from redis.exceptions import NoScriptError, ResponseError

AsyncStore = redis.asyncio.Redis
SyncStore = redis.Redis
Arg = bytes | str | int | float
CHUNK = 500
"""Most jobs or keys in one call: bounds the time a script holds the server, and Lua's `unpack`."""

_LUA = files("askonce_queue") / "lua"
_PRELUDE = (_LUA / "now.lua").read_text()


class Script:
    """One Lua file, bound to its SHA-1."""

    def __init__(self, name: str, *, allow_oom: bool, prelude: str = _PRELUDE) -> None:
        flags = " flags=allow-oom" if allow_oom else ""
        body = (_LUA / f"{name}.lua").read_text()
        self.name = name
        self.source = f"#!lua{flags}\n{prelude}{body}".encode()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"Script({self.name})"


class Call(NamedTuple):
    """A script with its keys and arguments: what a stub returns, for a shell to send."""

    script: Script
    keys: Sequence[bytes]
    args: Sequence[Arg]

    def command(self, verb: str) -> tuple[Any, ...]:
        """The words of the command; `verb` is EVALSHA or EVAL."""
        code = self.script.sha if verb == "EVALSHA" else self.script.source
        return (verb, code, len(self.keys), *self.keys, *self.args)


class Plain(NamedTuple):
    """A command that is no script."""

    words: tuple[Any, ...]

    def command(self, verb: str) -> tuple[Any, ...]:
        """The words of the command."""
        del verb
        return self.words


async def send(store: AsyncStore, *words: Arg) -> Any:
    """Send one command and return the server's reply, as `store.connect` leaves it: raw."""
    return cast("Any", await store.execute_command(*words))


def send_sync(store: SyncStore, *words: Arg) -> Any:
    """Send one command on a synchronous client."""
    return cast("Any", store.execute_command(*words))


async def run(store: AsyncStore, call: Call) -> Any:
    """Run one call. Raises redis-py's errors."""
    try:
        return await send(store, *call.command("EVALSHA"))
    except NoScriptError:
        return await send(store, *call.command("EVAL"))


def run_sync(store: SyncStore, call: Call) -> Any:
    """Run one call on a synchronous client. Raises redis-py's errors."""
    try:
        return send_sync(store, *call.command("EVALSHA"))
    except NoScriptError:
        return send_sync(store, *call.command("EVAL"))


async def run_many(store: AsyncStore, calls: Sequence[Call]) -> list[Any]:
    """Run several calls in one round trip.

    Returns one result a call, in order; a call that the server refused has its error in its place.
    Raises redis-py's errors when the connection fails.
    """
    if len(calls) == 1:
        try:
            return [await run(store, calls[0])]
        except ResponseError as error:
            return [error]
    results = await _pipeline(store, calls, "EVALSHA")
    again = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
    if again:
        repeated = await _pipeline(store, [calls[i] for i in again], "EVAL")
        for i, result in zip(again, repeated, strict=True):
            results[i] = result
    return results


async def _pipeline(store: AsyncStore, calls: Iterable[Call], verb: str) -> list[Any]:
    async with store.pipeline(transaction=False) as pipe:
        for call in calls:
            pipe.execute_command(*call.command(verb))
        return await cast("Awaitable[list[Any]]", pipe.execute(raise_on_error=False))
