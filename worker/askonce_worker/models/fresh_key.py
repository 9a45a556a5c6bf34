"""An API key that may be rotated while a worker runs: looked up again, but not for every call."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from askonce_queue.errors import ConfigError
from askonce_worker.clock import Clock, SystemClock

REREAD_S = 1.0
"""How long a key is used before it is looked up again: reading a file holds up the event loop."""

log = structlog.get_logger("askonce.keys")


class FreshKey:
    """The key that `read` finds, at most `REREAD_S` old.

    One that cannot be read any more is used on, with one warning: a file that is replaced without
    care is gone for a moment, and a wrong key is the API's to refuse. Raises `ConfigError` when
    there is none at first.
    """

    def __init__(self, read: Callable[[], str | None], clock: Clock | None = None) -> None:
        self._read = read
        self._clock = clock or SystemClock()
        self._key = read()
        self._due = self._clock.monotonic() + REREAD_S
        self._missing = False

    def __repr__(self) -> str:
        return "FreshKey(***)"

    def __call__(self) -> str | None:
        """The key; None for a model that needs none."""
        now = self._clock.monotonic()
        if now >= self._due:
            self._due = now + REREAD_S
            try:
                self._key = self._read()
                self._missing = False
            except ConfigError as error:
                if not self._missing:
                    log.warning("a key cannot be read: the one of before is used", error=str(error))
                self._missing = True
        return self._key
