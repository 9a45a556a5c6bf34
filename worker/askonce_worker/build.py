"""From a checked configuration to what runs: models, tasks and the store."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from askonce_queue.embedded import EmbeddedStore
from askonce_queue.job import source_tag
from askonce_queue.store_config import StoreConfig
from askonce_worker.backend import Backend
from askonce_worker.cache.key import KeyMaker, task_digest
from askonce_worker.cache.normalize import normalizer
from askonce_worker.cache.policy import Policy
from askonce_worker.cache.sources import Sources
from askonce_worker.clock import SystemClock
from askonce_worker.config import (
    AnthropicModelConfig,
    ApiModelConfig,
    BatchConfig,
    HitLogConfig,
    ModelConfig,
    PriceConfig,
    PythonModelConfig,
    Settings,
    TaskConfig,
)
from askonce_worker.models.adaptive import AdaptiveLimit
from askonce_worker.models.anthropic import AnthropicMessages
from askonce_worker.models.availability import Availability
from askonce_worker.models.batching import BatchedModel, ManyModel
from askonce_worker.models.chat import ChatCompletions
from askonce_worker.models.circuit import CircuitBreaker, CircuitPolicy
from askonce_worker.models.fresh_key import FreshKey
from askonce_worker.models.hold import Hold
from askonce_worker.models.http_many import HttpManyModel, ManyDialect
from askonce_worker.models.http_model import Dialect, HttpModel
from askonce_worker.models.moderations import Moderations
from askonce_worker.models.predict import Predict
from askonce_worker.models.protocol import Model, Prompt
from askonce_worker.models.python import PythonModel, load_call
from askonce_worker.models.python_many import PythonManyModel
from askonce_worker.models.responses import Responses
from askonce_worker.models.retry import RetryPolicy
from askonce_worker.observe.budget import Budget
from askonce_worker.observe.money import Price
from askonce_worker.tasks import Task

PATIENCE_FACTOR = 3.0
"""A waiter's patience with a live leader, in multiples of what all its attempts may take."""


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncGenerator[StoreConfig]:
    """Where the configured store is; the embedded one is started, shared and stopped.

    Raises `StoreUnavailable` when the embedded store cannot be started.
    """
    if settings.redis is not None:
        yield settings.redis
        return
    maxmemory = str(settings.embedded.maxmemory)
    async with EmbeddedStore(settings.embedded_folder, maxmemory=maxmemory) as store:
        yield StoreConfig(url=store.url)


@asynccontextmanager
async def open_models(settings: Settings) -> AsyncGenerator[dict[str, Backend]]:
    """Build every model, over one shared HTTP session. Raises `ConfigError`."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                # Concurrency is bounded by the flight slots of each model. Common servers close
                # idle connections after 5 s; a request sent at that moment would fail.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
                trust_env=False,
            )
        )
        backends: dict[str, Backend] = {}
        for name, config in settings.models.items():
            model = build_model(settings, name, session)
            stack.push_async_callback(model.aclose)
            attempts = settings.worker.max_attempts
            attempt_s = config.timeout_s + settings.worker.lease_ttl_s
            patience_s = PATIENCE_FACTOR * attempts * attempt_s
            backends[name] = Backend(
                name,
                model,
                config.max_concurrency,
                patience_s,
                shared=config.limits,
                availability=build_availability(name, config, attempts),
            )
        yield backends


def build_availability(name: str, config: ModelConfig, attempts: int) -> Availability:
    """What decides whether a model may be asked; a question may fail `attempts` times."""
    clock, breaker = SystemClock(), None
    if config.breaker is not None and config.breaker.enabled:
        policy = CircuitPolicy(
            failures=config.breaker.failures,
            # Of a lone question, too, it is to open before its attempts are used up.
            unreachable=min(2, attempts, config.breaker.failures),
            open_s=config.breaker.open_s,
            longest_open_s=config.breaker.longest_open_s,
            probes=config.breaker.probes,
        )
        breaker = CircuitBreaker(policy, clock, random.Random())
    return Availability(
        name,
        clock=clock,
        breaker=breaker,
        adaptive=AdaptiveLimit(config.max_concurrency) if config.adaptive else None,
        hold=Hold(clock, RetryPolicy().retry_after_cap_s),
    )


def build_model(settings: Settings, name: str, session: aiohttp.ClientSession) -> Model:
    """Build one model. Raises `ConfigError`: a missing key, file or function."""
    config = settings.models[name]
    if isinstance(config, PythonModelConfig):
        call = load_call(config.call, settings.source.folder)
        bounds: dict[str, Any] = {"timeout_s": config.timeout_s}
        bounds["max_threads"] = config.max_concurrency
        if config.batch is not None:
            return batched(PythonManyModel(call, name=name, **bounds), config.batch)
        return PythonModel(call, name=name, **bounds)
    connection: dict[str, Any] = {
        "base_url": config.base_url,
        "model": config.model,
        # A key that is missing is found at the start, not at the first miss.
        "api_key": FreshKey(lambda: settings.api_key(name)),
        "timeout_s": config.timeout_s,
    }
    if config.batch is not None:
        many = HttpManyModel(session, MANY_DIALECTS[config.kind], **connection)
        return batched(many, config.batch)
    return HttpModel(session, dialect_of(config), **connection)


def batched(model: ManyModel, config: BatchConfig) -> BatchedModel:
    """A model that is asked several questions at once."""
    return BatchedModel(model, size=config.size, wait_s=config.wait_ms / 1000)


def dialect_of(config: ApiModelConfig) -> Dialect:
    """How a model's API is spoken to."""
    if isinstance(config, AnthropicModelConfig):
        return AnthropicMessages(config.api_version)
    return DIALECTS[config.kind]


MANY_DIALECTS: dict[str, ManyDialect] = {
    "openai-moderations": Moderations(),
    "predict": Predict(),
}
"""Those of APIs that take several questions in one request."""
DIALECTS: dict[str, Dialect] = {
    "openai": ChatCompletions(),
    "openai-responses": Responses(),
    **MANY_DIALECTS,
}


def build_tasks(settings: Settings, backends: dict[str, Backend]) -> dict[str, Task]:
    """Compile every task, and its fallback."""
    sources = build_sources(settings)
    return {
        name: build_task(settings, name, config, backends, sources)
        for name, config in settings.tasks.items()
    }


def build_sources(settings: Settings) -> Sources:
    """What answers are built on, and what that depends on."""
    return Sources({name: config.depends_on for name, config in settings.sources.items()})


def build_task(
    settings: Settings,
    name: str,
    config: TaskConfig,
    backends: dict[str, Backend],
    sources: Sources,
    budget: Budget | None = None,
) -> Task:
    """Compile one task: its prompt, its share of the cache key, its cache policy, its sources.

    Its fallback is the same task with another model, and has its budget. Raises `ConfigError` for
    one that is the same model by another name.
    """
    budget = budget or build_budget(settings, name, config)
    fallback = fallback_of(config)
    if fallback and digest_of(settings, fallback) == digest_of(settings, config):
        # What is remembered of the first model, an answer or an error, would be the other's too.
        raise settings.source.error(
            f"tasks.{name}.fallback",
            f"expected another model than {config.model!r}: {fallback.model!r} is the same by "
            "another name, so their answers would have the same cache keys",
        )
    return Task(
        name,
        backend=backends[config.model],
        prompt=build_prompt(config),
        key_maker=KeyMaker(digest_of(settings, config), shared=config.shared),
        normalize=normalizer(config.normalize),
        policy=build_policy(config),
        max_input_bytes=int(config.max_input_bytes),
        retry=RetryPolicy(max_attempts=settings.worker.max_attempts),
        remember_rejection_s=settings.worker.remember_rejection_s,
        remember_exhausted_s=settings.worker.remember_exhausted_s,
        price=build_price(settings.models[config.model].price),
        tags=sources.close(map(source_tag, config.cache.sources)),
        hit_log=config.hit_log,
        budget=budget,
        fallback=(
            build_task(settings, name, fallback, backends, sources, budget) if fallback else None
        ),
    )


def fallback_of(config: TaskConfig) -> TaskConfig | None:
    """A task as its fallback model sees it; None if it has none. Its hits are neither logged nor
    checked: nobody should judge the first model by them.
    """
    if config.fallback is None:
        return None
    cache = msgspec.structs.replace(config.cache, verify_share=0.0, max_disagreement=None)
    return msgspec.structs.replace(
        config, model=config.fallback, fallback=None, cache=cache, hit_log=HitLogConfig(share=0.0)
    )


def build_budget(settings: Settings, name: str, config: TaskConfig) -> Budget | None:
    """What a task may spend a day; None: as much as it likes."""
    per_day = config.budget.per_day
    if per_day is None:
        return None
    return Budget(name, per_day, warn_at=config.budget.warn_at, currency=settings.costs.currency)


def build_prompt(config: TaskConfig) -> Prompt:
    """What a task tells its model beside the question."""
    return Prompt(
        system=config.system,
        labels=config.labels,
        temperature=None if config.temperature == "default" else config.temperature,
        max_tokens=config.max_tokens,
        params=config.params or None,
    )


def digest_of(settings: Settings, config: TaskConfig) -> bytes:
    """The task digest: it changes with all of a task that can change an answer."""
    return task_digest(
        model_identity=model_identity(settings, config.model),
        prompt=build_prompt(config),
        normalize=config.normalize,
    )


def build_price(config: PriceConfig) -> Price:
    """What a call of a model costs."""
    return Price(config.input, config.output, config.per_call)


def build_policy(config: TaskConfig) -> Policy:
    """What a task's answers may be kept for. One that samples has said whether they are."""
    cache = config.cache
    return Policy(
        cacheable=cache.cacheable,
        deterministic=cache.deterministic or config.temperature != 0,
        ttl_s=float(cache.ttl_s),
        memory_ttl_s=float(cache.memory_ttl_s),
        ttl_by_label_s={label: float(ttl) for label, ttl in cache.ttl_by_label_s.items()},
        jitter=cache.jitter,
        stale_while_revalidate_s=float(cache.stale_while_revalidate_s),
        stale_if_error_s=float(cache.stale_if_error_s),
        min_confidence=cache.min_confidence,
        never_cache_labels=frozenset(cache.never_cache_labels),
        hit_for_miss_s=float(cache.hit_for_miss_s),
        verify_share=cache.verify_share,
        max_disagreement=cache.max_disagreement,
    )


def model_identity(settings: Settings, name: str) -> dict[str, str]:
    """What of a model can change its answers: the model's share of the cache key."""
    config = settings.models[name]
    if isinstance(config, PythonModelConfig):
        return {"kind": config.kind, "callable": config.call, "version": config.version}
    identity = {"kind": config.kind, "base_url": config.base_url, "model": config.model}
    if isinstance(config, AnthropicModelConfig):
        identity["api_version"] = config.api_version
    return identity
