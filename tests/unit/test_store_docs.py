"""docs/STORE.md is held to the code: keys, defaults, bounds, and what each error leads to."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
from msgspec import NODEFAULT

from askonce_queue import breaker, exchange, store
from askonce_queue.connections import RETRIES, RETRY_BASE_S
from askonce_queue.shards import MAX_SHARDS
from askonce_queue.store_config import MAX_TIMEOUT_S, MAX_WAIT_REPLICAS, StoreConfig

TEXT = (Path(__file__).parents[2] / "docs" / "STORE.md").read_text(encoding="utf-8")
CODES = re.compile(r"\b[A-Z]{3,}\b")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its first two lines."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shown(default: Any) -> str:
    if default is NODEFAULT or default is None:
        return "\u2013"
    if default == ():
        return "`[]`"
    text = f'"{default}"' if isinstance(default, str) else str(default)
    return f"`{text.lower() if isinstance(default, bool) else text}`"


def test_every_key_is_there_with_its_default() -> None:
    fields = msgspec.structs.fields(StoreConfig)
    table = rows("All keys of `[redis]`")
    assert [row[:2] for row in table] == [
        [f"`{field.name}`", shown(field.default)] for field in fields
    ]


def test_the_bounds_are_those_of_the_code() -> None:
    meanings = {row[0].strip("`"): row[2] for row in rows("All keys of `[redis]`")}
    assert f"1 to {MAX_SHARDS}" in meanings["shards"]
    assert f"at most {MAX_TIMEOUT_S}" in meanings["timeout_s"]
    assert f"at most {MAX_WAIT_REPLICAS}" in meanings["wait_replicas"]


def test_the_examples_can_be_loaded() -> None:
    examples = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        msgspec.convert(tomllib.loads(example)["redis"], StoreConfig)


def test_every_error_is_there_that_the_code_tells_apart() -> None:
    documented = {code for row in rows("What happens when") for code in CODES.findall(row[0])}
    table = [line for line in (exchange.__doc__ or "").splitlines() if line.startswith("|")]
    decided = {code for line in table for code in CODES.findall(line.split("|")[1])}
    assert len(decided) >= 15
    assert decided <= documented


def test_the_numbers_are_those_of_the_code() -> None:
    longest_s = sum(RETRY_BASE_S * 2**number for number in range(RETRIES))
    assert f"up to {RETRIES} more tries in {longest_s:g} s" in TEXT
    assert f"`timeout_s` + {store.SECOND_CHANCE_S:g} s the first time" in TEXT
    assert f"for {store.SECOND_CHANCE_S:g} s; a blocking read" in TEXT
    probes = f"every {breaker.FIRST_PAUSE_S:g} to {breaker.LONGEST_PAUSE_S:g} s"
    assert f"{probes}, for at most {store.SECOND_CHANCE_S:g} s" in " ".join(TEXT.split())
