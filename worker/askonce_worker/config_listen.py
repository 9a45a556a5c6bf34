"""Where a server of ours listens: `127.0.0.1:9464`, `[::1]:9464`."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

MAX_PORT = 65_535
_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>\d{1,5})", re.ASCII | re.IGNORECASE
)


class ListenAddress(NamedTuple):
    """An IP address and a port; port 0 is any free one."""

    host: str
    port: int

    def of_process(self, index: int) -> ListenAddress:
        """The address of one of several processes: each has the port after the one before it."""
        return self._replace(port=self.port + index) if self.port else self

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_listen(text: str) -> ListenAddress:
    """Read `IP:port`. Raises `ValueError`: a name can stand for several addresses."""
    match = _ADDRESS.fullmatch(text)
    try:
        if match and int(match["port"]) <= MAX_PORT:
            host = ipaddress.ip_address(match["v6"] or match["v4"])
            return ListenAddress(str(host), int(match["port"]))
    except ValueError:
        pass
    raise ValueError(
        'expected an IP address and a port, like "127.0.0.1:9464" or "[::1]:9464", '
        f'or "" for none, got {text!r}'
    )
