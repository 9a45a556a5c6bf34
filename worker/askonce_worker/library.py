"""The cache without the queue: any async function, with the same tiers, flights and leases.

    async with AnswerCache("redis://127.0.0.1:6379/0") as cache:
        result = await cache.get_or_call("summaries", {"document": text}, lambda: summarise(text))

    @cached(name="summaries", version="2")
    async def summarise(text: str) -> Summary: ...

Equal calls in flight anywhere on the store run once; everyone gets the value. A value must be JSON,
or a type that msgspec turns into JSON and back (structs, dataclasses, typed dicts).
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    ParamSpec,
    Self,
    TypeVar,
    overload,
)

import anyio
import msgspec
from redis.exceptions import RedisError

from askonce_queue.checks import check_shards, check_store
from askonce_queue.errors import AskonceError, ConfigError, InvalidJob
from askonce_queue.host import Host
from askonce_queue.job import (
    MAX_TAG_CHARS,
    CacheControl,
    check_control,
    check_envelope,
    source_tag,
    valid_name,
)
from askonce_queue.reply import ErrorInfo, Source
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_worker.backend import Backend
from askonce_worker.cache.globs import is_glob
from askonce_worker.cache.invalidation import Invalidation, invalidate
from askonce_worker.cache.key import KeyMaker, task_digest
from askonce_worker.cache.policy import Policy
from askonce_worker.cache.sources import Sources
from askonce_worker.cache.survey import Limits
from askonce_worker.cache.tags import task_tag
from askonce_worker.calling import CallAsk, CallModel, CallQuestion
from askonce_worker.clock import SystemClock
from askonce_worker.config import LimitsConfig
from askonce_worker.models.protocol import Prompt, Question
from askonce_worker.models.retry import RetryPolicy
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.log import hand_to_standard_logging
from askonce_worker.observe.money import Price
from askonce_worker.quotas import Quotas
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task, WithoutStore

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_PATIENCE_S = 600.0


class Result(msgspec.Struct, Generic[T], frozen=True):
    """A value and where it came from; `age_s` is how old it is, in seconds."""

    value: T
    source: Source
    age_s: float


class AnswerCache:
    """Caches the results of async functions on a store; owns the renewal of its leases.

    `memory_bytes` bounds the memory tier, `max_calls` the calls in flight in this process.
    `depends_on` says which sources are built on which others, by name.
    `without_store` says what to do while the store cannot be asked: `"call"` calls once for all who
    ask in this process and keeps nothing (counted as `without_store`); `"raise"` raises
    `StoreUnavailable`. `price_per_call` is what one call costs, for `askonce stats`.
    `concurrency` and `requests_per_minute` bound the calls of all processes on the store that share
    the name `limits_of` (docs/MODELS.md, "Limits"); while the store is away, such calls wait.
    Raises `ConfigError` for a limit below 1; on entry: `StoreUnavailable`, `ConfigError` (another
    shard count).
    """

    def __init__(
        self,
        store: str | StoreConfig,
        *,
        shards: int = 1,
        memory_bytes: int = 64 << 20,
        max_calls: int = 256,
        stamp_bound_s: float = 0.5,
        lease_ttl_s: float = 10.0,
        without_store: Literal["call", "raise"] = "call",
        price_per_call: float = 0.0,
        concurrency: int | None = None,
        requests_per_minute: int | None = None,
        limits_of: str = "calls",
        depends_on: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.counters = Counters()
        self._price = Price(per_call=price_per_call)
        self._store = Store(store, shards=shards)
        self._without_store: WithoutStore = without_store
        self._sources = Sources(depends_on or {})
        self._resolver = Resolver(
            self._store,
            memory_bytes=memory_bytes,
            stamp_bound_s=stamp_bound_s,
            lease_ttl_s=lease_ttl_s,
            lease_renew_s=lease_ttl_s * 0.3,
            counters=self.counters,
            rng=random.Random(),
        )
        self._backend = Backend(
            limits_of,
            CallModel(),
            max_calls,
            DEFAULT_PATIENCE_S,
            shared=_limits(concurrency, requests_per_minute, limits_of),
        )
        self._quotas = Quotas(
            self._store,
            [self._backend],
            holder=secrets.token_hex(8),
            ttl_s=lease_ttl_s,
            clock=SystemClock(),
            rng=random.Random(),
        )
        self._tasks: dict[tuple[object, ...], Task] = {}
        self._waiting: set[CallAsk] = set()
        self._opened = False
        self._host = Host(self._running())

    @asynccontextmanager
    async def _running(self) -> AsyncGenerator[None]:
        """Run the resolver, and close the store after it: in the host's task, as nobody cancels
        that one, and its last requests would open connections anew.
        """
        try:
            async with self._quotas.running(), self._resolver.running(), self._counting():
                yield
        finally:
            with anyio.CancelScope(shield=True):
                await self._store.aclose()

    @asynccontextmanager
    async def _counting(self) -> AsyncGenerator[None]:
        """Add what is counted here to the fleet's totals, at the end for the last time."""
        store, counters = self._store, self.counters
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(counters.flush_forever, store, store.tags[0])
            for shard in range(len(store.tags)):
                tasks.start_soon(counters.first_reads.tell_forever, store, shard)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
        with suppress(RedisError, OSError):
            await counters.finish(store)

    async def __aenter__(self) -> Self:
        hand_to_standard_logging()
        try:
            await check_store(self._store)
            await check_shards(self._store)
            ended = await self._host.open()
        except BaseException:
            with anyio.CancelScope(shield=True):  # anyio would cancel this as well
                await self._store.aclose()
            raise
        ended.add_done_callback(self._fail_all)
        self._opened = True
        OPEN.append(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened = False
        OPEN.remove(self)
        await self._host.close()

    def _fail_all(self, _ended: object) -> None:
        """The resolver has ended, because of us or of a fault: nobody waits for ever."""
        for ask in list(self._waiting):
            ask.failed(ErrorInfo("internal", "the cache was closed"), None)

    @overload
    async def get_or_call(
        self,
        name: str,
        key: Any,
        call: Callable[[], Awaitable[T]],
        *,
        returns: type[T],
        version: str = "",
        tenant: str = "",
        tags: Sequence[str] = (),
        sources: Sequence[str] = (),
        ttl_s: float = 86_400.0,
        memory_ttl_s: float = 300.0,
        stale_while_revalidate_s: float = 0.0,
        stale_if_error_s: float = 0.0,
        remember_failure_s: float = 1.0,
        control: CacheControl | None = None,
    ) -> Result[T]: ...

    @overload
    async def get_or_call(
        self,
        name: str,
        key: Any,
        call: Callable[[], Awaitable[Any]],
        *,
        version: str = "",
        tenant: str = "",
        tags: Sequence[str] = (),
        sources: Sequence[str] = (),
        ttl_s: float = 86_400.0,
        memory_ttl_s: float = 300.0,
        stale_while_revalidate_s: float = 0.0,
        stale_if_error_s: float = 0.0,
        remember_failure_s: float = 1.0,
        control: CacheControl | None = None,
    ) -> Result[Any]: ...

    async def get_or_call(
        self,
        name: str,
        key: Any,
        call: Callable[[], Awaitable[Any]],
        *,
        returns: Any = Any,
        version: str = "",
        tenant: str = "",
        tags: Sequence[str] = (),
        sources: Sequence[str] = (),
        ttl_s: float = 86_400.0,
        memory_ttl_s: float = 300.0,
        stale_while_revalidate_s: float = 0.0,
        stale_if_error_s: float = 0.0,
        remember_failure_s: float = 1.0,
        control: CacheControl | None = None,
    ) -> Result[Any]:
        """The value for `key` in the namespace `name` + `version`, calling only if nobody has it.

        `key` is any JSON value that holds all that can change the result. `returns` is the type to
        convert the value to (default: plain JSON). `tags` and `sources` are what the value can be
        invalidated by. For `stale_while_revalidate_s` after its TTL a value is still returned while
        one process refreshes it; for `stale_if_error_s`, if the call fails. `remember_failure_s`:
        how long other processes are told of a failure instead of calling again. `control`: what
        this caller accepts. Cancelling one caller cancels nobody else.

        Raises what `call` raised, `CallFailed` for a failure elsewhere, `InvalidJob` for a key or
        tag that cannot be used, `TypeError` for a value that is not JSON.
        """
        if not self._opened:
            raise AskonceError("this AnswerCache is not open: use it inside `async with`")
        if not valid_name(name, MAX_TAG_CHARS):
            raise InvalidJob(f"names are 1 to {MAX_TAG_CHARS} printable characters: {name!r:.60}")
        all_tags = (*tags, *map(source_tag, sources))
        check_envelope(tenant, all_tags)
        all_tags = self._sources.close(all_tags)
        if control is not None:
            check_control(control)
        times = _Times(ttl_s, memory_ttl_s, stale_while_revalidate_s, stale_if_error_s)
        task = self._task(name, version, times, remember_failure_s)
        question = CallQuestion(params={"key": key}, call=call)
        ask = CallAsk(
            task,
            task.key_maker.question_key(question, tenant, control.namespace if control else ""),
            question,
            tags=(task.tag, *all_tags),
            tenant=tenant,
            cacheable=control is None or control.cacheable is not False,
            control=task.policy.control(control) if control is not None else None,
        )
        self._waiting.add(ask)
        try:
            self._resolver.resolve([ask])
            entry, source, age_s = await ask.outcome
        finally:
            self._waiting.discard(ask)
        # Each caller gets a value of its own: what one does to it is nothing to the others.
        stored = msgspec.to_builtins(entry.answer.value)
        try:
            value = msgspec.convert(stored, returns)
        except msgspec.ValidationError as error:
            raise TypeError(
                f"the cached value of {name!r} is not a {returns}: {error}; "
                "give the function a new version when its return type changes"
            ) from error
        return Result(value, source, age_s)

    def key_of(
        self, name: str, key: Any, *, version: str = "", tenant: str = "", namespace: str = ""
    ) -> str:
        """The cache key, in hex, under which `get_or_call` keeps the value for `key`.

        Raises `InvalidJob` for a key that is not JSON.
        """
        question = Question(params={"key": key})
        return _key_maker(name, version).question_key(question, tenant, namespace).hex()

    async def invalidate(
        self,
        *,
        keys: Sequence[str] = (),
        names: Sequence[str] = (),
        tags: Sequence[str] = (),
        sources: Sequence[str] = (),
        patterns: Sequence[str] = (),
        everything: bool = False,
        dry_run: bool = False,
        count: bool = False,
        limits: Limits | None = None,
    ) -> Invalidation:
        """Never return again, anywhere, what was built until now; what is under way is not kept.

        By `keys` (see `key_of`), `names` (as given to `get_or_call`; with `*` or `?`: all that
        match), `tags`, `sources` (and all that depends on them), `patterns` (over tags: `*` is any
        bytes, `?` one), or `everything`. This process follows at once, others within their
        `stamp_bound_s`.

        `count`: say how many values that took; `dry_run`: say how many it would take, and take
        nothing. Counting walks the whole store, a page at a time, within `limits`, and needs the
        right to (see docs/ACL.md).

        Returns what was done; look at its `complete`. It never raises for a store that fails.
        Raises `ValueError` for what cannot be invalidated, and when nothing is named.
        """
        if not self._opened:
            raise AskonceError("this AnswerCache is not open: use it inside `async with`")
        if everything == bool(keys or names or tags or sources or patterns):
            raise ValueError("say what to invalidate, or everything=True")
        done = await invalidate(
            self._store,
            [
                *tags,
                *[task_tag(name) for name in names if not is_glob(name)],
                *[tag for source in sources for tag in self._sources.dependents(source)],
            ],
            keys=[bytes.fromhex(key) for key in keys],
            globs=[*patterns, *[task_tag(name) for name in names if is_glob(name)]],
            everything=everything,
            dry_run=dry_run,
            count=(limits or Limits()) if count or dry_run else None,
        )
        if not dry_run:
            await self._resolver.see_invalidations()
        return done

    def _task(self, name: str, version: str, times: _Times, remember_s: float) -> Task:
        spec = (name, version, times, remember_s)
        task = self._tasks.get(spec)
        if task is None:
            task = self._tasks[spec] = Task(
                name,
                backend=self._backend,
                prompt=Prompt(),
                key_maker=_key_maker(name, version),
                policy=Policy(**times._asdict()),
                retry=RetryPolicy(max_attempts=1),
                remember_rejection_s=remember_s,
                remember_exhausted_s=remember_s,
                without_store=self._without_store,
                price=self._price,
            )
        return task


def _limits(concurrency: int | None, requests_per_minute: int | None, name: str) -> LimitsConfig:
    """The shared limits. Raises `ConfigError`."""
    for option, limit in (
        ("concurrency", concurrency),
        ("requests_per_minute", requests_per_minute),
    ):
        if limit is not None and limit < 1:
            raise ConfigError(f"{option}: expected at least 1, got {limit}")
    if not valid_name(name, MAX_TAG_CHARS):
        raise ConfigError(f"limits_of: expected 1 to {MAX_TAG_CHARS} printable characters")
    return LimitsConfig(concurrency=concurrency, requests_per_minute=requests_per_minute)


class _Times(NamedTuple):
    """The part of a policy that a caller states."""

    ttl_s: float
    memory_ttl_s: float
    stale_while_revalidate_s: float
    stale_if_error_s: float


def _key_maker(name: str, version: str) -> KeyMaker:
    digest = task_digest(
        model_identity={"kind": "call", "name": name, "version": version},
        prompt=Prompt(),
        normalize=(),
    )
    return KeyMaker(digest, shared=False, opaque_params=True)


OPEN: list[AnswerCache] = []
"""The caches of this process that are open."""
