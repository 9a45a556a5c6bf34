"""The Python model of the deadly task: it answers calm texts, and ends its process on the others.

It ends as a crash of a C library does: at once, without a handler. Before that it appends its
process id to the file named by `ASKONCE_CHAOS_DEATHS`, so that the driver can tell this death from
one nobody has caused.
"""

from __future__ import annotations

import asyncio
import os
import signal

from askonce_loadtest.chaos.workload import label_of

DEATHS = "ASKONCE_CHAOS_DEATHS"
LATENCY_S = 0.02


async def classify(text: str) -> str:
    """Answer, or die."""
    await asyncio.sleep(LATENCY_S)
    if text.startswith("die"):
        deaths = os.open(os.environ[DEATHS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(deaths, f"{os.getpid()} {text}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    return label_of(text, 0)
