"""LangChain: `RedisCache` of langchain-redis as the cache of a chat model, asked by `ainvoke`.

It needs a store with JSON commands; on one without, the peer is skipped and says so.
"""

from contextlib import asynccontextmanager

from drivers import cache_steps
from harness import order, serve, skip
from langchain_core.caches import BaseCache  # noqa: F401 -- the cache's models refer to it
from langchain_core.language_models.llms import LLM
from langchain_redis import RedisCache
from recipe import ask_model, ask_model_sync
from redis.exceptions import ResponseError

TTL_S = 3_600


class StandIn(LLM):
    """A model of LangChain's that asks the stand-in model server."""

    model_url: str

    @property
    def _llm_type(self):
        return "stand-in"

    def _call(self, prompt, stop=None, run_manager=None, **_):
        return ask_model_sync(self.model_url, prompt)

    async def _acall(self, prompt, stop=None, run_manager=None, **_):
        return await ask_model(self.model_url, prompt)


@asynccontextmanager
async def asker(order):
    """The steps of a process that asks."""
    cache = RedisCache(redis_url=order.store_url, ttl=TTL_S)
    model = StandIn(model_url=order.model_url, cache=cache)
    yield cache_steps(model.ainvoke, order)


if __name__ == "__main__":
    try:
        RedisCache(redis_url=order().store_url).lookup("is there JSON?", "")
    except ResponseError as error:
        skip(f"the store has no JSON commands, which it needs ({error})"[:200])
    serve(asker)
