"""The wire between a machine's actors and the server: what becomes of requests and replies."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from hypothesis import strategies as st

from askonce_queue.scripts import Call

T = TypeVar("T")


class Fate(enum.Enum):
    """What becomes of one request."""

    FINE = "fine"
    TWICE = "the reply is lost, and the client library sends it again"
    UNHEARD = "the reply is lost, and with it who asked"
    ECHO = "a copy of it, sent again too early, arrives later, whoever has asked"


FATES = st.sampled_from([Fate.FINE, Fate.FINE, Fate.FINE, Fate.TWICE, Fate.UNHEARD, Fate.ECHO])


class Request(Generic[T]):
    """A call, what the model does in its place, and how to read the server's result."""

    def __init__(self, call: Call, model: Callable[[], T], read: Callable[[Any], T]) -> None:
        self.call = call
        self.model = model
        self.read = read


class Wire:
    """Executes requests on the server and on the model, and compares what they say."""

    def __init__(self, run: Callable[[Call], Any]) -> None:
        self._run = run
        self.echoes: list[Request[Any]] = []

    def send(
        self, call: Call, model: Callable[[], T], read: Callable[[Any], T], fate: Fate
    ) -> T | None:
        """What the sender is told; `None` when it hears nothing."""
        request = Request(call, model, read)
        told = self.execute(request)
        match fate:
            case Fate.FINE:
                return told
            case Fate.TWICE:
                return self.execute(request)
            case Fate.UNHEARD:
                return None
            case Fate.ECHO:
                self.echoes.append(request)
                return told

    def execute(self, request: Request[T]) -> T:
        raw = self._run(request.call)
        expected = request.model()
        told = request.read(raw)
        assert told == expected, f"{request.call.script}: {told} instead of {expected}"
        return told
