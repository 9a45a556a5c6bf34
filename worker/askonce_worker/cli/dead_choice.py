"""Which dead letters a command is about, from the command line: ids, filters, or all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from askonce_queue import names
from askonce_queue.store import Store
from askonce_worker.cli.loop import Failed
from askonce_worker.cli.times import moment
from askonce_worker.dead_letters import LetterId, Wanted


@dataclass(frozen=True)
class Filters:
    """The options that choose letters, as given."""

    code: str | None
    task: str | None
    tenant: str | None
    client: str | None
    since: str | None
    until: str | None

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return any(option is not None for option in astuple(self))

    def wanted(self, now_ms: int) -> Wanted:
        """What they choose, at a time of the store. Raises `Failed`."""
        since_ms = moment("--since", self.since, now_ms)
        until_ms = moment("--until", self.until, now_ms)
        if since_ms is not None and until_ms is not None and since_ms > until_ms:
            raise Failed("--since is later than --until: nothing can be both")
        return Wanted(self.code, self.task, self.tenant, self.client, since_ms, until_ms)

    def __str__(self) -> str:
        """The options, as they were typed."""
        given = vars(self).items()
        return " ".join(f"--{name} {value}" for name, value in given if value is not None)


@dataclass(frozen=True)
class Choice:
    """Letters that are named, or chosen by filters, or all of them."""

    ids: Sequence[str]
    filters: Filters
    everything: bool

    def check(self) -> None:
        """Raise `Failed` unless it is exactly one of the three."""
        if sum((bool(self.ids), self.filters.given, self.everything)) != 1:
            raise Failed("say which dead letters: their ids, or options like --code, or --all")

    def letter_ids(self) -> list[LetterId]:
        """The named letters, each once. Raises `Failed`."""
        return list(dict.fromkeys(letter_id(text) for text in self.ids))


def letter_id(text: str) -> LetterId:
    """Read an id. Raises `Failed`."""
    found = LetterId.parse(text)
    if found is None:
        raise Failed(
            f"{text[:60]!r} is no id of a dead letter: they are like 0:1763726400000-0, "
            "see 'askonce dead list'"
        )
    return found


async def store_now_ms(store: Store) -> int:
    """The time of the store, Unix ms: letters are dated by it. Raises redis-py's errors."""
    seconds, micros = await store.send(names.META, "TIME")
    return int(seconds) * 1000 + int(micros) // 1000
