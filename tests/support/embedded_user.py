"""A process that uses the embedded store: opens it, prints the server's pid, closes it on EOF.

With a number as second argument it does so that many times, increments `count` each time, and
prints nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from askonce_queue.connections import connect_sync
from askonce_queue.embedded import EmbeddedStore


def main(folder: Path, rounds: int | None) -> None:
    """Run the process."""
    for _ in range(rounds or 1):
        with EmbeddedStore(folder) as embedded:
            client = connect_sync(embedded.url, role="commands")
            if rounds is None:
                print(client.info("server")["process_id"], flush=True)  # noqa: T201
                client.close()
                sys.stdin.read()
            else:
                client.incr("count")
                client.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
