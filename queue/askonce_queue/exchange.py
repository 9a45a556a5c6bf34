"""What to do about the store's replies and failures: the decisions, without any I/O.

An `Exchange` holds requests for one shard. A shell sends what `commands()` gives and reports what
came of it; the exchange says what next. Everything that is re-sent is idempotent.

| the store says | then |
| --- | --- |
| NOSCRIPT | the source is sent instead of the hash, at once |
| MOVED | the new address, at once; the map is read again |
| ASK | this once at the new address, behind ASKING |
| CLUSTERDOWN, TRYAGAIN, MASTERDOWN, READONLY, NOREPLICAS, BUSY, UNBLOCKED | map, pause, again |
| LOADING, a refused or lost connection | map, pause, again; never for a blocking read |
| nothing, until the time-out | once more, on a new connection; never for a blocking read, a probe |
| NOAUTH, WRONGPASS, NOPERM, OOM, NOGROUP and other refusals | the caller is told |
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    DataError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    TryAgainError,
)
from redis.exceptions import (
    TimeoutError as StoreTimeout,
)

from askonce_queue.connections import RETRIES, RETRY_BASE_S, RETRY_CAP_S, Role, Words
from askonce_queue.store_config import Address
from askonce_queue.topology import NotKnown

MOST_REDIRECTS = 5
_PASSING = (ClusterDownError, TryAgainError, ReadOnlyError)
_PASSING_CODES = ("BUSY ", "NOREPLICAS ", "UNBLOCKED ")


class Request(Protocol):
    """One command for a shard."""

    def command(self, verb: str) -> Words:
        """Its words; `verb` is EVALSHA or EVAL, for a script."""
        ...


class Next(NamedTuple):
    """What the shell does before it asks `commands()` again."""

    pause_s: float = 0.0
    learn: bool = False
    """Ask which server holds the shard."""
    renew: bool = False
    """Close idle connections: they may lead nowhere."""


class Exchange:
    """Requests of one shard on their way to results. `results` has an exception for a failure.

    `together`: when one has to be sent again, all are, because the last speaks of those before it.
    `second_chance`: whether there is another try after a time-out; a probe needs none.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        role: Role,
        rng: random.Random,
        *,
        together: bool = False,
        second_chance: bool = True,
    ) -> None:
        self.results: list[Any] = [None] * len(requests)
        self.moved_to: Address | None = None
        """Set by a MOVED: where the shard is."""
        self.detour: Address | None = None
        """Set by an ASK: where the next commands go, this once."""
        self.unreachable: Exception | None = None
        """Set when it was given up because the shard could not be reached."""
        self.answered = False
        """Whether the shard has said anything."""
        self._requests = requests
        self._left = list(range(len(requests)))
        self._by_source: set[int] = set()
        self._together = together
        self._resends = role == "commands"
        self._rng = rng
        self._tries = self._redirects = 0
        self._timeouts_left = 1 if second_chance else 0

    @property
    def done(self) -> bool:
        """Whether every request has its result."""
        return not self._left

    def commands(self) -> list[Words]:
        """What is to be sent now; the detour is taken up with it."""
        words = [
            self._requests[i].command("EVAL" if i in self._by_source else "EVALSHA")
            for i in self._left
        ]
        if self.detour is None:
            return words
        return [part for one in words for part in (("ASKING",), one)]

    def replied(self, replies: Sequence[Any]) -> Next:
        """Take the replies to `commands()`, in order."""
        self.answered = True
        if self.detour is not None:
            replies, self.detour = replies[1::2], None
        asked, self._left = self._left, []
        passing: Exception | None = None
        redirected = False
        for i, reply in zip(asked, replies, strict=True):
            if not isinstance(reply, Exception):
                self.results[i] = reply
            elif isinstance(reply, NoScriptError) and i not in self._by_source:
                self._by_source.add(i)
                self._left.append(i)
            elif isinstance(reply, AskError) and self._redirects < MOST_REDIRECTS:
                self._redirect(reply)
                redirected = True
                self.results[i] = reply
                self._left.append(i)
            elif _is_passing(reply):
                passing = reply
                self.results[i] = reply
                self._left.append(i)
            else:
                self.results[i] = reply
        if redirected:
            self._redirects += 1
        if self._left and self._together:
            self._left = list(range(len(self._requests)))
        return self._again(passing) if passing else Next(learn=self.moved_to is not None)

    def _redirect(self, reply: AskError) -> None:
        if isinstance(reply, MovedError):
            self.moved_to = (reply.host, reply.port)
        else:
            self.detour = (reply.host, reply.port)

    def failed(self, error: Exception) -> Next:
        """The connection failed: which commands were executed is unknown."""
        self.detour = None
        if isinstance(error, DataError):  # what cannot be packed says nothing of the shard
            return self._end(error)
        if isinstance(error, AuthenticationError | AuthorizationError):
            return self._give_up(error)
        if not self._resends and not isinstance(error, NotKnown):
            return self._give_up(error)
        if isinstance(error, StoreTimeout | TimeoutError):
            if not self._timeouts_left:
                return self._give_up(error)
            self._timeouts_left -= 1
            return Next(learn=True, renew=True)
        return self._again(error)

    def _again(self, error: Exception) -> Next:
        if self._tries == RETRIES:
            return self._give_up(error)
        most_s = min(RETRY_CAP_S, RETRY_BASE_S * 2**self._tries)
        self._tries += 1
        return Next(self._rng.uniform(0.5, 1.0) * most_s, learn=True)

    def _give_up(self, error: Exception) -> Next:
        self.unreachable = error
        self._end(error)
        # Who re-sends has asked before every try; who does not learns for the next request.
        return Next(learn=not self._resends)

    def _end(self, error: Exception) -> Next:
        for i in self._left:
            self.results[i] = error
        self._left = []
        return Next()


def _is_passing(reply: Exception) -> bool:
    """Whether the server refused everything for now: nothing was executed."""
    return isinstance(reply, _PASSING) or str(reply).startswith(_PASSING_CODES)
