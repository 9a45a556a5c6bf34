"""LiteLLM: `acompletion` with `litellm.cache` on Redis, as its documentation sets it up.

The cache is part of the call, so a look-up is a whole `acompletion`; it asks the same model server
through its chat API. No retries, no telemetry, no price list from the network.
"""

import json
import os
from contextlib import asynccontextmanager

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from drivers import cache_steps
from harness import serve
from litellm.caching.caching import Cache

TTL_S = 3_600


@asynccontextmanager
async def asker(order):
    """The steps of a process that asks."""
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.cache = Cache(
        type="redis", host=order.host, port=str(order.port), ttl=TTL_S, max_connections=1_000
    )
    schema = {"type": "object", "properties": {"label": {"enum": list(order.labels)}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}

    async def ask(text):
        response = await litellm.acompletion(
            model="openai/stand-in-1",
            api_base=f"{order.model_url}/v1",
            api_key="none",
            messages=[{"role": "user", "content": text}],
            response_format=wanted,
            max_retries=0,
            caching=True,
        )
        return json.loads(response.choices[0].message.content)["label"]

    yield cache_steps(ask, order)


if __name__ == "__main__":
    serve(asker)
