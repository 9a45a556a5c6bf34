"""Every exception askonce raises on purpose, under one root.

Each message ends with what the reader can do next. Failures of a *job* are not exceptions: they
travel as an `ErrorInfo` in the reply (see `reply.py`), because one bad job must not stop its batch.
"""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 5
"""Job ids that a message names; the exception has them all."""


class AskonceError(Exception):
    """The root of all askonce exceptions."""


class ConfigError(AskonceError):
    """The configuration cannot be used. The message names file, key and what was expected."""


class StoreUnavailable(AskonceError):
    """The store (Redis or Valkey) cannot be reached, or is not one askonce can run on."""


class InvalidJob(AskonceError):
    """A job was refused before it was enqueued: wrong type, too large, or not valid Unicode."""


class QueueFull(AskonceError):
    """The backlog, the client's unread replies or the store's memory reached its bound.

    `job_ids` names exactly the jobs that were not accepted; every other job of the call was.
    Enqueue those again later, or add workers.
    """

    def __init__(self, job_ids: Sequence[str], reason: str) -> None:
        self.job_ids = tuple(job_ids)
        self.reason = reason
        super().__init__(
            f"{len(self.job_ids)} job(s) not accepted: {reason}. "
            "The others were. Enqueue these again later, or add workers."
        )


class IdConflict(AskonceError):
    """A job id is in use by an unsettled job with another content, or awaited by another caller.

    `conflicting` names those jobs. `job_ids` names all that were not accepted: these, and any that
    did not fit (see `QueueFull`); every other job of the call was accepted.
    """

    def __init__(self, conflicting: Sequence[str], refused: Sequence[str] = ()) -> None:
        self.conflicting = tuple(conflicting)
        self.job_ids = (*self.conflicting, *refused)
        shown = ", ".join(self.conflicting[:SHOWN])
        more = " …" if len(self.conflicting) > SHOWN else ""
        super().__init__(
            f"job id(s) already in use: {shown}{more}. Choose other ids, or wait for the replies."
        )


class ClientNameInUse(AskonceError):
    """Another live client holds this client name. Choose another name, or stop the other client."""


class ReplyTimeout(AskonceError):
    """No reply within the caller's time limit. The job is still accepted and will be answered."""
