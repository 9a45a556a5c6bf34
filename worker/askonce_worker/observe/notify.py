"""What a service manager is told: ready, stopping, alive. The protocol of sd_notify(3).

Its environment decides: without `NOTIFY_SOCKET` nothing is sent. `Supervisor` plays the manager for
the processes it starts.
"""

from __future__ import annotations

import os
import socket

import anyio

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def notify(state: str) -> bool:
    """Send `state` to the service manager; False when there is none, or it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # Linux's abstract namespace
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        try:
            channel.sendto(state.encode(), address)
        except OSError:
            return False
    return True


def watchdog_s() -> float | None:
    """Within how many seconds the service manager wants a sign of life; None when it does not."""
    try:
        wanted_us = int(os.environ.get("WATCHDOG_USEC", ""))
        process = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return wanted_us / 1e6 if wanted_us > 0 and process == os.getpid() else None


async def show_life_forever() -> None:
    """Send signs of life from the event loop, twice as often as wanted; return if none are."""
    within_s = watchdog_s()
    while within_s is not None:
        notify(WATCHDOG)
        await anyio.sleep(within_s / 2)
