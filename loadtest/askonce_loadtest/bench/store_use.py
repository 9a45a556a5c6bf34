"""What the store has done so far: its CPU time and the commands it ran."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self, cast

from askonce_queue.scripts import AsyncStore

_OURS = frozenset({"cmdstat_info", "cmdstat_client|list", "cmdstat_client"})
"""The commands of this file."""


class StoreUse(NamedTuple):
    """Totals since the server started, or the difference of two of them."""

    cpu_s: float
    commands: float
    """All calls in commandstats, those inside scripts included, but for those made to read it."""
    client_commands: float
    """Commands sent by the connected clients; NaN where the server does not count them."""

    def since(self, before: Self) -> StoreUse:
        """What was used between `before` and this one."""
        return StoreUse(
            self.cpu_s - before.cpu_s,
            self.commands - before.commands,
            self.client_commands - before.client_commands,
        )


async def store_use(store: AsyncStore) -> StoreUse:
    """Read the totals."""
    cpu: dict[str, float] = await store.info("cpu")
    stats: dict[str, dict[str, float]] = await store.info("commandstats")
    clients = cast("list[dict[str, Any]]", await store.client_list())
    return StoreUse(
        cpu["used_cpu_user"] + cpu["used_cpu_sys"],
        sum(row["calls"] for name, row in stats.items() if name not in _OURS),
        sum(float(row.get("tot-cmds", math.nan)) for row in clients if row.get("cmd") not in _OWN),
    )


_OWN = ("client|list", "client")
"""The last command of the connection that reads the list: its own."""
