"""GPTCache with exact matches: its `get` and `put`, in threads, as it blocks.

Settings: its map of answers, in each process's own memory, which is its default; its storage in
Redis needs JSON and search commands. It has no lock against stampedes.
"""

import os
from pathlib import Path

from drivers import cache_steps_sync
from gptcache import cache
from gptcache.adapter.api import get, put
from gptcache.manager import get_data_manager
from gptcache.processor.pre import get_prompt
from harness import serve_sync
from recipe import ask_model_sync

MAX_ANSWERS = 1_000_000


def asker(order):
    """The steps of a process that asks."""
    data = Path(order.config).with_name(f"gptcache-{os.getpid()}")
    cache.init(
        pre_embedding_func=get_prompt,
        data_manager=get_data_manager(data_path=str(data), max_size=MAX_ANSWERS),
    )

    def ask(text):
        answer = get(text)
        if answer is None:
            answer = ask_model_sync(order.model_url, text)
            put(text, answer)
        return answer

    return cache_steps_sync(ask, order)


if __name__ == "__main__":
    serve_sync(asker)
