"""The configuration files of a run: one for workers (through the proxies), one for the driver."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from askonce_loadtest.chaos.plan import (
    ANSWER_TTL_S,
    DEADLY_TASK,
    DRAIN_S,
    HEARTBEAT_TTL_S,
    LEASE_RENEW_S,
    LEASE_TTL_S,
    MAX_HELD,
    MAX_WAITING,
    MEMORY_TTL_S,
    MODEL_SLOTS,
    MODEL_TIMEOUT_S,
    REMEMBER_EXHAUSTED_S,
    STAMP_BOUND_S,
    SWEEP_EVERY_S,
    TASK,
)
from askonce_loadtest.chaos.store import Table

_WORKER: Table = {
    "heartbeat_ttl_s": HEARTBEAT_TTL_S,
    "lease_ttl_s": LEASE_TTL_S,
    "lease_renew_s": LEASE_RENEW_S,
    "drain_s": DRAIN_S,
    "max_held": MAX_HELD,
    "max_waiting": MAX_WAITING,
    "stamp_bound_s": STAMP_BOUND_S,
    "remember_exhausted_s": REMEMBER_EXHAUSTED_S,
    "sweep_every_s": SWEEP_EVERY_S,
    "log_level": "debug",
}
_MODELS: dict[str, Table] = {
    "stand_in": {
        "kind": "openai",
        "model": "stand-in-1",
        "timeout_s": MODEL_TIMEOUT_S,
        "max_concurrency": MODEL_SLOTS,
    },
    "deadly": {"kind": "python", "call": "askonce_loadtest.chaos.deadly:classify"},
}
_TTLS = {"ttl": ANSWER_TTL_S, "memory_ttl": MEMORY_TTL_S, "jitter": 0.0}
"""The account of calls knows the end of an answer by its TTL, so nothing may shorten that."""
_TASKS: dict[str, Table] = {
    TASK: {"model": "stand_in", "system": "Answer with the label.", "cache": _TTLS},
    DEADLY_TASK: {"model": "deadly", "cache": _TTLS},
}


def write_config(path: Path, store: Mapping[str, Any], model_url: str) -> None:
    """Write a configuration file for workers on `store` (a `[redis]` table)."""
    models = _MODELS | {"stand_in": _MODELS["stand_in"] | {"base_url": model_url}}
    tables = {"redis": store, "worker": _WORKER}
    tables |= {f"models.{name}": table for name, table in models.items()}
    tables |= {f"tasks.{name}": table for name, table in _TASKS.items()}
    path.write_text(
        "\n".join(line for name, table in tables.items() for line in _lines(name, table)) + "\n",
        encoding="utf-8",
    )


def _lines(name: str, table: Mapping[str, Any]) -> list[str]:
    return [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items()), ""]


def _value(value: Any) -> str:
    """A TOML value: those of JSON are such, but for tables."""
    if isinstance(value, dict):
        table = cast("Table", value)
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in table.items()) + " }"
    return msgspec.json.encode(value).decode()
