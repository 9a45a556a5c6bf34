"""Free ports on loopback for servers: below the ones that the system gives to outgoing connections.

So a port stays free while its server is down, and a restarted server finds it again.
"""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
PORTS = range(11_000, 22_000)
BUS_OFFSET = 10_000
"""A cluster node's bus listens at its port plus this."""
TRIES = 200

_random = random.SystemRandom()  # two test runs must not try the same ports in the same order
_taken: set[int] = set()


def free_port() -> int:
    """A port nobody listens on, nor on the bus port that belongs to it, and not given out before.

    Raises `OSError` when none is found.
    """
    for _ in range(TRIES):
        port = _random.choice(PORTS)
        if port not in _taken and _is_free(port) and _is_free(port + BUS_OFFSET):
            _taken.add(port)
            return port
    raise OSError(f"no free port found between {PORTS.start} and {PORTS.stop}")


def give_back(port: int) -> None:
    """Let a port be chosen again."""
    _taken.discard(port)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: connections that have just been closed do not keep a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
