"""askonce: every distinct question reaches the model once, everyone who asked gets the answer, and
nothing accepted is lost.

This package is the producer's side, and what producers and workers share:

    async with Client("redis://127.0.0.1:6379/0") as client:
        reply = await client.ask(Job(task="intent", text="I lost my card"))

`askonce_queue.sync.Client` is its synchronous twin. The daemon lives in `askonce_worker`.
"""

from askonce_queue.client import Client
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.errors import (
    AskonceError,
    ClientNameInUse,
    ConfigError,
    IdConflict,
    InvalidJob,
    QueueFull,
    ReplyTimeout,
    StoreUnavailable,
)
from askonce_queue.job import CacheControl, Job
from askonce_queue.ledger import Limits
from askonce_queue.reply import Answer, ErrorInfo, Reply, Usage

__all__ = [
    "Answer",
    "AskonceError",
    "CacheControl",
    "Client",
    "ClientNameInUse",
    "ConfigError",
    "EmbeddedStore",
    "ErrorInfo",
    "IdConflict",
    "InvalidJob",
    "Job",
    "Limits",
    "QueueFull",
    "Reply",
    "ReplyTimeout",
    "StoreUnavailable",
    "Usage",
]
