"""When a worker is to be restarted, and when it is only not ready."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from askonce_queue.store import SECOND_CHANCE_S
from askonce_queue.store_config import StoreConfig
from askonce_worker.config import WorkerConfig
from askonce_worker.observe.health import (
    LOOK_EVERY_S,
    READY_READ_AGE_S,
    Health,
    Limits,
    ModelVitals,
    ShardVitals,
    Signs,
    Vitals,
    Watch,
    live,
    ready,
)
from askonce_worker.observe.lag import SUSTAINED, LoopLag
from askonce_worker.observe.observer import limits_of
from askonce_worker.pool.intake import BLOCK_MS

LIMITS = Limits(read_age_s=60.0, loop_lag_s=5.0)


def shard(tag: str = "0", read_age_s: float | None = 0.2, **options: Any) -> ShardVitals:
    return ShardVitals(tag=tag, read_age_s=read_age_s, **options)


def vitals(*shards: ShardVitals, **options: Any) -> Vitals:
    given: dict[str, Any] = {"consumer": "c", "started": True, "stopping": False}
    return Vitals(shards=shards or (shard(),), **(given | options))


def signs(given: Vitals, *, lag_s: float = 0.0, **unread_s: float) -> Signs:
    """`unread_s` by shard, as `s0=61`."""
    return Signs(given, {tag.removeprefix("s"): s for tag, s in unread_s.items()}, lag_s)


# Ready


def test_a_worker_that_serves_is_live_and_ready() -> None:
    assert live(signs(vitals(), s0=0.2), LIMITS) == (True, ())
    assert ready(signs(vitals(), s0=0.2), LIMITS) == (True, ())


def test_a_model_that_is_down_is_told_and_makes_no_worker_unfit() -> None:
    down = {
        name: ModelVitals(circuit=circuit, openings=1, probes=0, limit=1)
        for name, circuit in {"a": "open", "b": "closed", "c": "half_open"}.items()
    }
    given = vitals(models=down)
    assert ready(signs(given, s0=0.2), LIMITS) == (True, ())
    health = Health(lambda: given, LoopLag(FrozenClock()), LIMITS, FrozenClock())
    assert [note.split(":")[0] for note in health.notes()] == [
        "model a is down",
        "model c is down",
    ]


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        (vitals(shard(read_age_s=None), started=False), ("starting",)),
        (vitals(stopping=True), ("draining",)),
        # What it says is what people can act on: not each shard that a draining worker leaves.
        (vitals(shard(unreachable="gone"), stopping=True), ("draining",)),
        (vitals(shard(read_age_s=None)), ("shard 0 was not read yet",)),
        (vitals(shard(read_age_s=READY_READ_AGE_S + 1)), ("shard 0 was not read for 11 s",)),
        (
            vitals(shard("a", unreachable="refused"), shard("b"), shard("c", read_age_s=30.0)),
            ("shard a cannot be reached: refused", "shard c was not read for 30 s"),
        ),
    ],
)
def test_not_ready_and_why(given: Vitals, reasons: tuple[str, ...]) -> None:
    assert ready(signs(given), LIMITS) == (False, reasons)
    assert live(signs(given), LIMITS).ok


@pytest.mark.parametrize("waits", ["full", "paused"])
def test_a_worker_with_its_hands_full_is_ready(waits: str) -> None:
    busy = vitals(shard(read_age_s=500.0), **{waits: True})
    assert ready(signs(busy), LIMITS).ok
    gone = vitals(shard(read_age_s=500.0, unreachable="refused"), **{waits: True})
    assert not ready(signs(gone), LIMITS).ok


def test_the_limit_of_readiness_is_never_above_that_of_life() -> None:
    limits = Limits(read_age_s=4.0, loop_lag_s=5.0)
    assert ready(signs(vitals(shard(read_age_s=3.0))), limits).ok
    assert not ready(signs(vitals(shard(read_age_s=5.0))), limits).ok


# Live


def test_a_shard_that_could_be_read_and_is_not() -> None:
    given = vitals(shard("a"), shard("b", read_age_s=61.0))
    assert live(signs(given, sa=0.2, sb=60.0), LIMITS).ok
    verdict = live(signs(given, sa=0.2, sb=61.0), LIMITS)
    assert verdict.reasons == (
        (
            "shard b was not read for 61 s although the store answers "
            "(at most 60 s, by max_read_age_s and the store's timeout_s)"
        ),
    )
    assert not verdict.ok
    assert verdict.reasons[0] in ready(signs(given, sa=0.2, sb=61.0), LIMITS).reasons


def test_a_loop_that_does_not_keep_up() -> None:
    assert live(signs(vitals(), lag_s=5.0), LIMITS).ok
    verdict = live(signs(vitals(), lag_s=5.1), LIMITS)
    assert verdict.reasons == (
        "the event loop is 5.1 s late, again and again (at most 5 s, by max_loop_lag_s)",
    )
    assert not verdict.ok


def test_limits_can_be_configured() -> None:
    given = signs(vitals(), lag_s=5.1, s0=61.0)
    assert len(live(given, LIMITS).reasons) == 2
    assert live(given, Limits(read_age_s=120.0, loop_lag_s=10.0)).ok


def test_a_store_that_hangs_is_known_to_before_its_worker_is_given_up() -> None:
    least_s, most_timeout_s = 10.0, 60.0  # as configurable
    store = StoreConfig(url="redis://localhost", timeout_s=most_timeout_s)
    limits = limits_of(WorkerConfig(max_read_age_s=least_s, max_loop_lag_s=9.0), store)
    known_after_s = store.timeout_s + SECOND_CHANCE_S + BLOCK_MS / 1000
    assert limits.read_age_s > known_after_s + 2 * LOOK_EVERY_S
    assert limits.loop_lag_s == 9.0


# What counts as a shard that could be read


class Story:
    """Looks at a worker again and again on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.watch = Watch(LIMITS)

    def look(self, *shards: ShardVitals, **options: Any) -> dict[str, float]:
        return self.watch.look(vitals(*shards, **options), self.now)

    def pass_by(self, seconds: int, shards: Sequence[ShardVitals], **options: Any) -> float:
        """For how long shard 0 could have been read and was not, after some time of the same."""
        unread_s = 0.0
        for _ in range(seconds):
            self.now += 1
            unread_s = self.look(*shards, **options)["0"]
        return unread_s


def aged(seconds: float) -> list[ShardVitals]:
    return [shard(read_age_s=seconds)]


def test_time_without_a_read_is_counted() -> None:
    story = Story()
    story.look(shard(read_age_s=0.4))
    story.now += 5
    assert story.look(shard(read_age_s=0.5)) == {"0": pytest.approx(0.5)}
    assert story.pass_by(61, aged(999)) == pytest.approx(61.5)
    story.now += 1
    assert story.look(shard(read_age_s=0.1))["0"] == pytest.approx(0.1)


def test_a_worker_that_has_never_read_is_counted_from_its_start() -> None:
    story = Story()
    assert story.pass_by(300, [shard(read_age_s=None)], started=False) == 0
    assert story.pass_by(61, [shard(read_age_s=None)]) == 61


@pytest.mark.parametrize("excuse", ["full", "paused", "stopping"])
def test_time_in_which_it_should_not_read_is_not_counted(excuse: str) -> None:
    story = Story()
    story.pass_by(5, aged(0.5))
    assert story.pass_by(3600, aged(3600), **{excuse: True}) == 0
    assert story.pass_by(10, aged(3610)) == 10


def test_an_outage_of_any_length_is_not_counted_and_its_end_begins_anew() -> None:
    story = Story()
    story.pass_by(5, aged(0.5))
    assert story.pass_by(3600, [shard(read_age_s=3600.0, unreachable="refused")]) == 0
    assert story.pass_by(60, aged(3660)) == 60
    assert live(Signs(vitals(), story.look(*aged(3660)), lag_s=0.0), LIMITS).ok
    assert story.pass_by(1, aged(3661)) == 61
    assert not live(Signs(vitals(), story.look(*aged(3661)), lag_s=0.0), LIMITS).ok


def test_each_shard_is_counted_for_itself() -> None:
    story = Story()
    found: dict[str, float] = {}
    for _ in range(30):
        story.now += 1
        found = story.look(
            shard("a", read_age_s=99.0), shard("b"), shard("c", read_age_s=99.0, unreachable="x")
        )
    assert found == {"a": pytest.approx(29), "b": pytest.approx(0.2), "c": 0}


def test_a_pause_of_the_whole_process_is_not_counted() -> None:
    story = Story()
    story.pass_by(5, aged(0.5))
    story.now += 600  # stopped, or the machine slept: nothing has run
    assert story.look(*aged(600.5)) == {"0": 0}


def test_a_look_that_is_a_little_late_does_not_start_anew() -> None:
    story = Story()
    story.look(*aged(0.5))
    unread_s = 0.0
    for _ in range(20):
        story.now += LOOK_EVERY_S + LIMITS.loop_lag_s
        unread_s = story.look(*aged(999))["0"]
    assert unread_s == pytest.approx(120)


# Lag


def test_one_late_turn_is_a_pause_and_several_are_a_loop_that_is_too_busy() -> None:
    lag = LoopLag(FrozenClock())
    for _ in range(SUSTAINED - 1):
        lag.record(30.0)
    assert lag.sustained_s == 0
    lag.record(0.01)
    assert lag.sustained_s == pytest.approx(0.01)
    for lag_s in (6.0, 7.0, 8.0):
        lag.record(lag_s)
    assert lag.sustained_s == 6.0


class FrozenClock:
    def monotonic(self) -> float:
        return 100.0

    def wall_ms(self) -> float:
        return 0.0


def test_health_looks_whenever_it_is_asked() -> None:
    lag = LoopLag(FrozenClock())
    given = [vitals(started=False), vitals(shard(read_age_s=0.1)), vitals(stopping=True)]
    health = Health(lambda: given[0], lag, LIMITS, FrozenClock())
    seen: list[tuple[bool, tuple[str, ...]]] = []
    while given:
        seen.append(health.ready())
        assert health.live().ok
        given.pop(0)
    assert seen == [(False, ("starting",)), (True, ()), (False, ("draining",))]
