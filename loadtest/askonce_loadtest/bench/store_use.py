"""What the store has done so far: its CPU time and the commands it ran."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import Any, NamedTuple, Self

from askonce_queue.scripts import AsyncStore

_OURS = frozenset({"info"})
"""What reading these figures costs."""


class StoreUse(NamedTuple):
    """Totals since the server started, or the difference of two of them."""

    cpu_s: float
    client_commands: int
    """Commands that clients sent; one call of a script is one."""
    script_commands: int
    """Commands that scripts made."""

    def since(self, before: Self) -> StoreUse:
        """What was used between `before` and this one."""
        return StoreUse(
            self.cpu_s - before.cpu_s,
            self.client_commands - before.client_commands,
            self.script_commands - before.script_commands,
        )


async def store_use(store: AsyncStore) -> StoreUse:
    """Read the totals from the server's own statistics."""
    cpu: dict[str, float] = await store.info("cpu")
    stats: dict[str, Any] = await store.info("commandstats")
    clients = scripts = 0
    for row, counts in stats.items():
        command = row.removeprefix("cmdstat_").partition("|")[0]
        if command in _made_by_scripts():
            scripts += int(counts["calls"])
        elif command not in _OURS:
            clients += int(counts["calls"])
    return StoreUse(cpu["used_cpu_user"] + cpu["used_cpu_sys"], clients, scripts)


@functools.cache
def _made_by_scripts() -> frozenset[str]:
    """The commands in our scripts, in lower case.

    The server does not tell the two apart, but nearly all commands are only ever one of them: a
    worker at work sends none of these itself, but for a few HINCRBY a second (its counters).
    """
    sources = [file.read_text() for file in (files("askonce_queue") / "lua").iterdir()]
    return frozenset(
        name.lower() for text in sources for name in re.findall(r"redis\.p?call\('(\w+)'", text)
    )
