"""The tables of `askonce stats`, from counts in a real store, as terminals have them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from askonce_queue.errors import ConfigError
from askonce_queue.store import Store
from askonce_worker.cli.budgets_shown import described
from askonce_worker.cli.stats import shown, terms_of
from askonce_worker.cli.stats_view import ALL, View, amount
from askonce_worker.config import load_settings
from askonce_worker.observe.budget import Budget, Budgets
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.fields import of_lane
from askonce_worker.observe.money import NANO, Price
from askonce_worker.observe.tally import worth_of
from askonce_worker.observe.totals import NO_TERMS, Terms, read_fleet
from tests.support.askonce_command import CONFIG

PRICE = Price(input=2.0, output=10.0)


async def seen(
    store: Store,
    counters: Counters,
    *,
    prompt: str = "",
    window: str = "24h",
    task: str | None = None,
    columns: int = 80,
    terms: Terms = NO_TERMS,
) -> str:
    """What is shown when that is counted."""
    await counters.flush(store, "0")
    state = await read_fleet(store, "default", terms)
    console = Console(width=columns, color_system=None, file=io.StringIO())
    with console.capture() as captured:
        console.print(shown(View(state, window, task, {"size": prompt})))
    return captured.get()


def counted(hits: int, misses: int, task: str = "size", tenant: str = "") -> Counters:
    counters = Counters()
    if hits:
        counters.tally(task, PRICE).memory[tenant] = hits * worth_of(400, 20)
    counters.count(task, "model", misses)
    counters.paid(task, PRICE, tenant, calls=misses, tokens=(misses * 400, misses * 20))
    return counters


async def test_nothing_was_counted(askonce_store: Store) -> None:
    text = await seen(askonce_store, Counters())
    assert "live workers" in text
    assert "verdict" not in text


async def test_few_answers_have_no_verdict(askonce_store: Store) -> None:
    assert "No verdict yet: 50 answers" in await seen(askonce_store, counted(20, 30))


async def test_a_cache_that_is_not_worth_it_says_so_and_why(askonce_store: Store) -> None:
    text = await seen(askonce_store, counted(9, 91), prompt="Today is 2026-11-21.")
    text = " ".join(text.split())
    assert "The cache is running Redis for sport (9.0% hits, last 24h)" in text
    assert "prefix caching" in text
    assert "A smaller model" in text
    assert "size: its system prompt has a date: '2026-11-21'" in text


async def test_the_worst_task_is_advised_about(askonce_store: Store) -> None:
    counters = counted(900, 100)
    await counted(20, 80, task="other").flush(askonce_store, "0")
    text = await seen(askonce_store, counters, prompt="Judge {user_id}.")
    assert "The cache is paying (83.6% hits, last 24h)" in text
    assert "  size: paying (90.0%)" in text
    assert "  other: paying, barely (20.0%)" in text
    assert "normalize it away" in text
    text = await seen(askonce_store, Counters(), task="size")
    assert "other" not in text
    assert "normalize it away" not in text


async def test_tokens_without_prices(askonce_store: Store) -> None:
    counters = Counters()
    counters.count("size", "model")
    counters.paid("size", Price(), "", calls=1, tokens=(400, 20))
    text = await seen(askonce_store, counters)
    assert "tokens in" in text
    assert "No money is counted: give models a price" in text
    assert "spent on calls" not in text


async def test_tenants_have_accounts(askonce_store: Store) -> None:
    for number in range(12):
        await counted(100 + number, 1, tenant=f"tenant {number}").flush(askonce_store, "0")
    text = await seen(askonce_store, Counters(), window=ALL)
    assert text.index("tenant tenant 11") < text.index("tenant tenant 3")
    assert "2 more: --json" in text
    assert "since the store was set up" in text


@pytest.mark.parametrize("columns", [80, 160])
async def test_it_fits(askonce_store: Store, columns: int) -> None:
    """Side by side where there is room."""
    text = await seen(askonce_store, counted(100, 200), columns=columns)
    lines = text.splitlines()
    assert all(len(line) <= columns for line in lines)
    assert any("All tasks" in line and "Money" in line for line in lines) == (columns > 80)
    many = counted(500_000, 100_000, task="a.task-with_a.long-name", tenant="x" * 20)
    text = await seen(askonce_store, many, columns=columns)
    assert all(len(line) <= columns for line in text.splitlines())
    assert "600,300" in text


@pytest.mark.parametrize(
    ("money", "expected"),
    [(None, "-"), (0.0, "0"), (1234.5, "1,234.50"), (12.34567, "12.3457"), (0.000123, "0.00012")],
)
def test_amounts_of_money(money: float | None, expected: str) -> None:
    assert amount(money) == expected


# The configuration


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("[models.sizes.price]\ninput = -1", "models.sizes.price.input: expected float >= 0"),
        ("[models.sizes.price]\nimput = 1", "unknown key 'imput' (did you mean 'input'?)"),
        ("[costs]\nstore_per_hour = 'much'", "costs.store_per_hour: expected float"),
    ],
)
def test_prices_are_checked(tmp_path: Path, wrong: str, said: str) -> None:
    path = tmp_path / "askonce.toml"
    path.write_text(f"{CONFIG}\n{wrong}")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert said in str(caught.value)


def test_lives_are_those_of_the_longest_answer(tmp_path: Path) -> None:
    path = tmp_path / "askonce.toml"
    cache = 'cache = {ttl = "1h", ttl_by_label = {long = "2h"}, stale_if_error = "10m"}'
    path.write_text(CONFIG.replace('labels = ["long", "short"]', f'labels = ["long"]\n{cache}'))
    assert terms_of(load_settings(path)).lives_s == {"size": 2 * 3600 + 600}


async def test_budgets_of_today(askonce_store: Store) -> None:
    terms = Terms(budgets={"size": (5.0, 0.8), "tone": (5.0, 0.8), "intent": (5.0, 0.8)})
    for task, spent in (("size", 1.25), ("tone", 4.5), ("intent", 5.5)):
        budget = Budget(task, 5.0)
        budget.spend(round(spent * NANO))
        await Budgets(askonce_store, [budget]).flush()
    text = await seen(askonce_store, Counters(), terms=terms)
    rows = {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}
    assert "Budgets (USD), today (UTC)" in text
    assert rows["size"] == ["1.2500", "5", "25.0%"]
    assert rows["tone"] == ["4.5000", "5", "90.0%", "near"]
    assert rows["intent"] == ["5.5000", "5", "110.0%", "used", "up"]
    assert "Budgets" not in await seen(askonce_store, Counters())
    state = await read_fleet(askonce_store, "default", terms)
    said = {task: described(one, "USD") for task, one in state.budgets.items()}
    assert said["size"] == "1.2500 of 5 USD spent today (25.0%), renewed at 0:00 UTC"
    assert "will get budget_exceeded" in said["tone"]
    assert "raise [tasks.NAME.budget] per_day" in said["intent"]


async def test_accounts_of_lanes(askonce_store: Store) -> None:
    counters = counted(5, 5)
    for lane, calls in (("interactive", 1), ("bulk", 4)):
        counters.count("size", of_lane(lane, "calls"), calls)
        counters.paid("size", PRICE, "", lane=lane, calls=calls, tokens=(calls * 10**6, 0))
    text = await seen(askonce_store, counters)
    assert [line.split() for line in text.splitlines() if "lane " in line] == [
        ["lane", "interactive", "2.0000"],
        ["lane", "bulk", "8.0000"],
    ]
    state = await read_fleet(askonce_store, "default")
    assert state.windows["1h"].tasks["size"].by_lane["bulk"].input_tokens == 4 * 10**6
    assert state.total.by_lane["bulk"].spent == 8.0
