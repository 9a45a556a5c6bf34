"""Dead letters: jobs that could not be answered, kept for people to read, to retry, or to drop.

Every shard keeps those of a pool in one stream, bounded by `max_dead`. Nothing here prints.
"""

from askonce_worker.dead_letters.letter import DeadLetter, LetterId
from askonce_worker.dead_letters.search import Search, Wanted
from askonce_worker.dead_letters.shelf import BATCH, DEFAULT_REPLY_TO, DeadLetters, Retry

__all__ = [
    "BATCH",
    "DEFAULT_REPLY_TO",
    "DeadLetter",
    "DeadLetters",
    "LetterId",
    "Retry",
    "Search",
    "Wanted",
]
