"""askonce's worker, and the cache as a library.

Every distinct question reaches the model once; everyone who asked gets the answer. The daemon is
the `askonce` command; in your own process:

    async with AnswerCache("redis://127.0.0.1:6379/0") as cache:
        result = await cache.get_or_call("summaries", {"document": text}, lambda: summarise(text))
"""

from askonce_worker.calling import CallFailed
from askonce_worker.decorator import cached
from askonce_worker.library import AnswerCache, Result

__all__ = ["AnswerCache", "CallFailed", "Result", "cached"]
