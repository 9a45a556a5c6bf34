"""One worker process: starts the loops in order, and stops them in reverse.

    quotas → resolver → outbox → heartbeat → intakes → reclaim → sweep → rules → hit log → counters
    → shadow checks

Drain: no more fetches; what is under way gets the grace period; the rest is handed to `returned`;
replies are settled; the consumer leaves. A second signal cuts the grace period short.
"""

from __future__ import annotations

import functools
import os
import random
import secrets
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress

import anyio
import structlog
from anyio.abc import TaskGroup
from redis.exceptions import RedisError

from askonce_queue import queue_scripts
from askonce_queue.checks import check_shards, check_store
from askonce_queue.queue_scripts import LANES, Lane
from askonce_queue.scripts import CHUNK
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_worker.cache.sources import Sources
from askonce_worker.clock import Clock, SystemClock
from askonce_worker.config import WorkerConfig
from askonce_worker.hits.log import HitLog
from askonce_worker.hits.rulebook import AppliedRules, RuleBook
from askonce_worker.observe.budget import Budgets
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.health import QuotaVitals, ShardVitals, Vitals
from askonce_worker.observe.money import NANO
from askonce_worker.pool.beat import Beat
from askonce_worker.pool.decode import Decoder
from askonce_worker.pool.deferred import Deferred
from askonce_worker.pool.delivery import DeliveryEnd
from askonce_worker.pool.gate import Gate
from askonce_worker.pool.held import Held
from askonce_worker.pool.intake import BLOCK_MS, Intake
from askonce_worker.pool.outbox import Outbox
from askonce_worker.pool.reclaim import Reclaim
from askonce_worker.pool.sweep import Sweep
from askonce_worker.quotas import Quotas
from askonce_worker.resolver import Resolver
from askonce_worker.shadow.guard import Guard
from askonce_worker.shadow.sampler import ShadowChecks
from askonce_worker.tasks import Task

BURST_CHECK_S = 0.05
FLUSH_LIMIT_S = 5.0

log = structlog.get_logger("askonce.worker")


def consumer_name() -> str:
    """A name that no other incarnation of any worker has."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"


class Worker:
    """Serves the streams of one pool on a store, until `stop()`."""

    def __init__(
        self,
        store: str | StoreConfig,
        tasks: Mapping[str, Task],
        config: WorkerConfig,
        *,
        shards: int = 1,
        sources: Sources | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.consumer = consumer_name()
        self.counters = Counters()
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._commands = Store(store, shards=shards)
        self._tags = self._commands.tags
        self._blocking = Store(
            store,
            shards=shards,
            role="blocking",
            block_s=BLOCK_MS / 1000,
            max_connections=len(self._tags) + 1,
        )
        lanes = [Lane(tag, config.pool, lane) for tag in self._tags for lane in LANES]
        self.lanes = [*lanes, *(lane.deferred for lane in lanes)]
        self._gate = Gate()
        self._held = Held(config.max_held, config.most_waiting, config.lanes)
        self._hurry = anyio.Event()
        self._stop = anyio.Event()
        self.resolver = Resolver(
            self._commands,
            memory_bytes=int(config.memory_bytes),
            lease_ttl_s=config.lease_ttl_s,
            lease_renew_s=config.lease_renew_s,
            stamp_bound_s=config.stamp_bound_s,
            lanes=config.lanes,
            counters=self.counters,
            clock=self._clock,
            rng=self._rng,
        )
        self._outboxes = {
            tag: Outbox(
                self._commands,
                self._held,
                self._clock,
                self.counters,
                max_dead=config.max_dead,
                max_deferred=config.max_deferred,
            )
            for tag in self._tags
        }
        self._beat = Beat(
            self._commands,
            config.pool,
            self.consumer,
            self._clock,
            config.heartbeat_ttl_s,
        )
        self._task_table = tasks
        self._quotas = Quotas(
            self._commands,
            [task.backend for task in tasks.values()],
            holder=self.consumer,
            ttl_s=config.lease_ttl_s,
            clock=self._clock,
            rng=self._rng,
        )
        self._checks = ShadowChecks(
            self.resolver.verifier, tasks.values(), self.counters, self._clock, self._rng
        )
        if self._checks:
            self.resolver.watchers.append(self._checks.note)
        self._guard = Guard(
            self._commands,
            tasks.values(),
            forget=self.resolver.memory.clear,
            counters=self.counters,
            rng=self._rng,
        )
        self._sources = sources
        self._hit_log = HitLog(
            self._commands, tasks.values(), self._clock, self.counters, max_hits=config.max_hits
        )
        if self._hit_log.active:
            self.resolver.watchers.append(self._hit_log.note)
        self._rules = AppliedRules(RuleBook(self._commands), tasks)
        self.budgets = Budgets(
            self._commands, (task.budget for task in tasks.values() if task.budget is not None)
        )
        self._intakes: dict[str, Intake] = {}

    def stop(self) -> None:
        """Drain; called again: without the grace period."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def vitals(self) -> Vitals:
        """What this worker knows of itself now."""
        memory, now, down = self.resolver.memory, self._clock.monotonic(), self._commands.down()
        return Vitals(
            consumer=self.consumer,
            started=bool(self._intakes),
            stopping=self._stop.is_set() or self._gate.stopping,
            shards=tuple(
                ShardVitals.of(
                    tag,
                    read_at=self._intakes[tag].read_at if self._intakes else None,
                    now=now,
                    error=down.get(tag),
                    outbox=outbox.size,
                )
                for tag, outbox in self._outboxes.items()
            ),
            # As the intakes see it; asked of what is held, so that one that sleeps on is found.
            full=4 * self._held.room < min(self.config.batch, self._held.most),
            paused=self._gate.paused,
            held=len(self._held),
            flights=len(self.resolver.flights),
            leases=len(self.resolver.leases),
            slots_in_use={
                one.backend.name: one.backend.in_flight
                for task in self._task_table.values()
                for one in (task, task.fallback)
                if one is not None
            },
            budgets={
                name: (budget.spent_nano / NANO, budget.per_day)
                for name, task in self._task_table.items()
                if (budget := task.budget) is not None
            },
            quotas={
                model: QuotaVitals(quota.slots, quota.granted, quota.waited_s)
                for model, quota in self._quotas.by_model.items()
            },
            models={
                task.backend.name: task.backend.availability.vitals(task.backend.slots)
                for task in self._task_table.values()
            },
            memory_bytes=memory.size_bytes,
            memory_entries=len(memory),
            memory_evictions=memory.evictions,
        )

    async def run(self, *, burst: bool = False) -> None:
        """Serve until `stop()` or, with `burst`, until there is nothing left to do.

        Raises `StoreUnavailable` or `ConfigError` when the store is not fit for it at the start.
        """
        async with self.running():
            if burst:
                await self._until_empty()
            else:
                await self._stop.wait()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Worker]:
        """Serve for the length of a block; drain at its end."""
        try:
            await check_store(self._commands)
            await check_shards(self._commands)
            # A shard that is down gets its groups from its intake, when it is back.
            await self._commands.run_many(list(map(queue_scripts.ensure_group, self.lanes)))
            await self._rules.follow()  # before the first job
            with suppress(RedisError, OSError):  # else it goes by what it spends itself
                await self.budgets.flush()
            async with (
                self._quotas.running(),
                self.resolver.running(),
                anyio.create_task_group() as tasks,
            ):
                intakes = self._start(tasks)
                log.info("worker started", consumer=self.consumer, shards=len(self._tags))
                try:
                    yield self
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._drain(intakes)
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._commands.aclose()
                await self._blocking.aclose()
        log.info("worker stopped", consumer=self.consumer)

    def _start(self, tasks: TaskGroup) -> TaskGroup:
        for tag in self._tags:
            tasks.start_soon(self._outboxes[tag].run)
            tasks.start_soon(self._beat.run, tag)
        self._intakes = intakes = {tag: self._intake(tag) for tag in self._tags}
        for intake in intakes.values():
            tasks.start_soon(intake.run)
            deferred = Deferred(
                self._gate,
                self._held,
                intake.deferred_lanes,
                overdue=intake.take_overdue,
                fetch=intake.fetch_deferred,
                look=intake.look_at_deferred,
                outage=self._in_outage,
                clock=self._clock,
                shards=len(self._tags),
            )
            tasks.start_soon(deferred.run)
        reclaim = Reclaim(
            self._commands,
            self.lanes,
            beat=self._beat,
            gate=self._gate,
            held=self._held,
            outboxes=self._outboxes,
            counters=self.counters,
            intakes=intakes,
            poison_limit=self.config.poison_limit,
        )
        tasks.start_soon(reclaim.run)
        sweep = Sweep(
            self._commands,
            self.lanes,
            every_s=self.config.sweep_every_s,
            client_retain_s=self.config.client_retain_s,
            lease_ttl_s=self.config.lease_ttl_s,
            hit_retain_s=self.config.hit_retain_s,
            rng=self._rng,
        )
        tasks.start_soon(sweep.run)
        tasks.start_soon(self._rules.run)
        if self._hit_log.active:
            for shard in range(len(self._tags)):
                tasks.start_soon(self._hit_log.run, shard)
        tasks.start_soon(self.counters.flush_forever, self._commands, self._tags[0])
        for shard in range(len(self._tags)):
            tasks.start_soon(self.counters.first_reads.tell_forever, self._commands, shard)
        if self.budgets:
            tasks.start_soon(self.budgets.run)
        if self._checks:
            tasks.start_soon(self._checks.run)
        if self._guard:
            tasks.start_soon(self._guard.run)
        return tasks

    def _in_outage(self) -> bool:
        """Whether a model is down."""
        return any(
            one.backend.outage or one.backend.down
            for task in self._task_table.values()
            for one in (task, task.fallback)
            if one is not None
        )

    def _intake(self, tag: str) -> Intake:
        return Intake(
            self._blocking,
            self._commands,
            [lane for lane in self.lanes if lane.tag == tag and not lane.is_deferred],
            beat=self._beat,
            gate=self._gate,
            held=self._held,
            decoder=Decoder(
                self._task_table,
                self._outboxes[tag],
                sources=self._sources,
                moment=functools.partial(self._beat.moment, tag),
                now=self._clock.monotonic,
            ),
            resolve=self.resolver.resolve,
            outbox=self._outboxes[tag],
            clock=self._clock,
            batch=self.config.batch,
            weights=self.config.lanes,
        )

    async def _until_empty(self) -> None:
        """Return when no job is left in any stream, or at `stop()`."""
        while not self._stop.is_set():
            try:
                if len(self._held) == 0 and not await _backlog(self._commands, self.lanes):
                    return
            except (RedisError, OSError) as error:
                log.warning("the backlog cannot be read", error=str(error))
            with anyio.move_on_after(BURST_CHECK_S):
                await self._stop.wait()

    async def _drain(self, tasks: TaskGroup) -> None:
        log.info("draining", held=len(self._held), grace_s=self.config.drain_s)
        await self._gate.stop()
        with anyio.move_on_after(self.config.drain_s):
            await self._finished_or_hurried()
        returned = await self._give_back()
        with anyio.move_on_after(FLUSH_LIMIT_S):
            for outbox in self._outboxes.values():
                await outbox.wait_empty()
        tasks.cancel_scope.cancel()
        await self._leave()
        log.info("drained", returned=returned)

    async def _finished_or_hurried(self) -> None:
        async with anyio.create_task_group() as race:

            async def hurry() -> None:
                await self._hurry.wait()
                race.cancel_scope.cancel()

            race.start_soon(hurry)
            await self._held.wait_until(lambda held: not len(held))
            race.cancel_scope.cancel()

    async def _give_back(self) -> int:
        """Hand what is still under way to `returned`, from which any worker takes it at once."""
        parts = [
            (lane, entries[start : start + CHUNK])
            for lane in self.lanes
            for entries in [self._held.under_way(lane)]
            for start in range(0, len(entries), CHUNK)
        ]
        calls = [queue_scripts.give_back(lane, self.consumer, part) for lane, part in parts]
        returned = 0
        for (lane, part), result in zip(parts, await self._commands.run_many(calls), strict=True):
            if isinstance(result, Exception):  # reclaim finds them
                log.warning(
                    "could not hand jobs back", shard=lane.tag, jobs=len(part), error=str(result)
                )
            else:
                returned += int(result)
        if returned:
            self.counters.count("*", f"jobs_{DeliveryEnd.RETURNED.value}", returned)
        return returned

    async def _leave(self) -> None:
        calls = [
            queue_scripts.leave(
                [lane for lane in self.lanes if lane.tag == tag], self.consumer, only_if_dead=False
            )
            for tag in self._tags
        ]
        for result in await self._commands.run_many(calls):
            if isinstance(result, Exception):
                log.warning("the consumer could not be removed: a sweep will", error=str(result))
        await self._hit_log.flush_all()
        await self.budgets.finish()
        try:
            await self.counters.finish(self._commands)
        except (RedisError, OSError) as error:
            log.warning("the last counts are lost", error=str(error))


async def _backlog(store: Store, lanes: list[Lane]) -> int:
    """How many jobs are unsettled. Raises redis-py's errors."""
    backlog = 0
    for result in await store.send_many([(ln.stream, ("XLEN", ln.stream)) for ln in lanes]):
        if isinstance(result, Exception):
            raise result
        backlog += int(result)
    return backlog
