"""The rules of a fleet: one small hash in the store, read by every worker every few seconds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import anyio
import msgspec
import structlog
from redis.exceptions import RedisError

from askonce_queue import names, queue_scripts
from askonce_queue.store import Store
from askonce_worker.hits.rules import MOST_RULES, Rule, keeper_out
from askonce_worker.tasks import Task

READ_EVERY_S = 2.0

log = structlog.get_logger("askonce.rules")

_decode = msgspec.json.Decoder(Rule).decode


class TooManyRules(Exception):
    """There are as many rules as there may be."""


class RuleBook:
    """The rules in a store. They stand on its first shard, because they are few."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key = names.rules(store.tags[0])

    async def read(self) -> list[Rule]:
        """All rules, the oldest first. Raises redis-py's errors; what is no rule is left out."""
        flat: list[bytes] = await self._store.send(self._key, "HGETALL", self._key)
        rules: list[Rule] = []
        for data in flat[1::2]:
            try:
                rules.append(_decode(data))
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                log.warning("a rule cannot be read", error=str(error))
        return sorted(rules, key=lambda rule: (rule.at_ms, rule.id))

    async def add(self, rule: Rule) -> None:
        """Add a rule; twice is harmless. Raises `TooManyRules`, and redis-py's errors."""
        call = queue_scripts.add_rule(
            self._store.tags[0], rule.id, msgspec.json.encode(rule), MOST_RULES
        )
        if not await self._store.run(call):
            raise TooManyRules(f"there are {MOST_RULES} rules already: remove one first")

    async def remove(self, rule_id: str) -> bool:
        """Remove a rule; whether it was there. Raises redis-py's errors."""
        return bool(await self._store.send(self._key, "HDEL", self._key, rule_id))


class AppliedRules:
    """Keeps the tasks of one worker on the rules of the store."""

    def __init__(self, book: RuleBook, tasks: Mapping[str, Task]) -> None:
        self._book = book
        self._tasks = tasks
        self._applied: list[Rule] = []

    async def run(self) -> None:
        """Read them every few seconds, for ever; while that fails, those read last hold."""
        while True:
            await anyio.sleep(READ_EVERY_S)
            await self.follow()

    async def follow(self) -> None:
        """Read and apply them. Never raises for what the store does."""
        try:
            rules = await self._book.read()
        except (RedisError, OSError) as error:
            log.warning("rules cannot be read: the old ones hold", error=str(error))
            return
        if rules == self._applied:
            return
        self._applied = rules
        by_task: defaultdict[str, list[Rule]] = defaultdict(list)
        for rule in rules:
            by_task[rule.task].append(rule)
        for name, task in self._tasks.items():
            task.kept_out = keeper_out(by_task[name])
        log.info("rules applied", rules=len(rules))
