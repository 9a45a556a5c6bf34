"""`@cached`: equal calls of an async function share one result, across tasks and processes.

@cached(name="summaries", version="2")
async def summarise(text: str) -> Summary: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar, get_type_hints

from askonce_queue.errors import AskonceError
from askonce_worker.library import OPEN, AnswerCache

P = ParamSpec("P")
T = TypeVar("T")


def cached(
    *,
    name: str,
    version: str = "",
    cache: AnswerCache | None = None,
    ttl_s: float = 86_400.0,
    memory_ttl_s: float = 300.0,
    tags: Sequence[str] = (),
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Let equal calls of an async function share one result, across tasks and processes.

    The key is `name`, `version` and the arguments, which must be JSON values; change `version` when
    the function changes. The value is converted to the function's annotated return type. `cache`
    defaults to the one `AnswerCache` that is open when the function is called.

    Raises what `AnswerCache.get_or_call` raises, and `AskonceError` when no cache is open.
    """

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        signature = inspect.signature(function)
        returns: list[Any] = []

        @functools.wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            if not returns:  # at the first call, when every annotated name exists
                returns.append(get_type_hints(function).get("return", Any))
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            result = await (cache or _the_open_cache()).get_or_call(
                name,
                dict(bound.arguments),
                lambda: function(*args, **kwargs),
                returns=returns[0],
                version=version,
                tags=tags,
                ttl_s=ttl_s,
                memory_ttl_s=memory_ttl_s,
            )
            value: T = result.value
            return value

        return wrapper

    return decorate


def _the_open_cache() -> AnswerCache:
    if len(OPEN) != 1:
        raise AskonceError(
            f"{len(OPEN)} AnswerCaches are open: open one around the call "
            "(`async with AnswerCache(url):`), or give the decorator its `cache`"
        )
    return OPEN[0]
