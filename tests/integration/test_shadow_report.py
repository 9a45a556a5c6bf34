"""What `askonce stats` says of shadow checks."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from askonce_queue.embedded import EmbeddedStore
from askonce_queue.store import Store
from askonce_worker.cache.policy import Policy
from askonce_worker.observe.counters import Counters
from askonce_worker.shadow.report import TaskChecks, describe, read_checks
from askonce_worker.shadow.verdicts import VerdictReader
from tests.support.askonce_command import Askonce

POLICY = Policy(verify_share=0.01, max_disagreement=0.02)


async def report(store: Store, *counted: tuple[str, int, int]) -> TaskChecks:
    """What is read of verdicts: where, how many agree, how many differ."""
    counters = Counters()
    for place, agree, differ in counted:
        counters.count("t", f"verify_agree:{place}", agree)
        counters.count("t", f"verify_differ:{place}", differ)
    await counters.flush(store, store.tags[0])
    return (await read_checks(VerdictReader(store), {"t": POLICY}))["t"]


async def test_rates_are_cumulative_by_age_and_by_label(askonce_store: Store) -> None:
    found = await report(askonce_store, ("1h:a", 996, 4), ("24h:a", 500, 0), ("24h:b", 492, 8))
    assert describe(found) == [
        "hits up to 24 h old: 0.6% (0.3% to 1.0%) differ from a fresh answer",
        "hits up to 1 h old: 0.4% (0.2% to 1.0%) differ from a fresh answer",
        "2,000 hits checked",
    ]
    assert found.by_age[-1].disagreement == pytest.approx(0.006)
    assert [one.checks for one in found.by_label["a"]] == [1000, 1500]
    assert [one.checks for one in found.by_label["b"]] == [500]
    assert found.age_limit_s is None


async def test_few_checks_are_no_rate(askonce_store: Store) -> None:
    found = await report(askonce_store, ("anyage:", 9, 1))
    assert describe(found) == [
        "hits of any age: 1 of 10 differ, too few checks for a rate",
        "10 hits checked",
    ]
    assert found.by_age[0].max_age_s is found.by_age[0].low is None


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("24h:a", "ONLY ANSWERS UP TO 6 h OLD ARE SERVED (max_disagreement 2.0%)"),
        ("1m:a", "THE CACHE IS OFF (max_disagreement 2.0%)"),
    ],
)
async def test_a_limit_comes_first(askonce_store: Store, place: str, said: str) -> None:
    found = await report(askonce_store, (place, 900, 100))
    assert describe(found)[0] == said
    assert max(map(len, describe(found))) <= 72


async def test_nothing_is_said_without_checks(askonce_store: Store) -> None:
    assert await read_checks(VerdictReader(askonce_store), {"t": POLICY}) == {}


def test_the_command_shows_it(tmp_path: Path) -> None:
    async def count(url: str) -> None:
        store, counters = Store(url), Counters()
        counters.count("size", "verify_agree:1m:long", 95)
        counters.count("size", "verify_differ:1m:long", 5)
        await counters.flush(store, "0")
        await store.aclose()

    with Askonce(tmp_path) as askonce, EmbeddedStore(askonce.store) as embedded:
        asyncio.run(count(embedded.url))
        shown = askonce("stats", "askonce.toml").stdout
        assert "hits up to 1 m old: 5.0% (2.2% to 11.2%) differ from a fresh answer" in shown
        checks = json.loads(askonce("stats", "askonce.toml", "--json").stdout)["checks"]
        assert checks["size"]["by_label"]["long"][0]["differ"] == 5
