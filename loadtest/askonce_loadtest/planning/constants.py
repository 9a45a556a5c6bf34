"""What one machine does: the figures of a bench that sizes are computed from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import msgspec

from askonce_queue.errors import ConfigError

Cost = Annotated[float, msgspec.Meta(ge=0)]


class Constants(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `bench --json` that is needed here; costs are µs of CPU a job."""

    worker_cpu_us_per_job: Cost
    """A warm job: the worker's memory answers it."""
    store_cpu_us_per_job: Cost
    producer_cpu_us_per_job: Cost
    worker_cpu_us_per_store_hit: Cost
    """A job that the store answers, all in."""
    store_cpu_us_per_store_hit: Cost
    worker_cpu_us_per_model_call: Cost
    """A job that the model answers, all in."""
    store_cpu_us_per_model_call: Cost
    worker_cpu_us_per_kib: Cost
    """Of text, on top."""
    store_cpu_us_per_kib: Cost
    store_net_bytes_per_job: Cost
    text_bytes: Cost
    """Of the texts that all of this was measured with."""
    store_bytes_per_answer: Cost
    machine: dict[str, str | float]


def packaged_constants() -> Constants:
    """Those of the machine on which askonce's own figures were measured."""
    source = files("askonce_loadtest") / "planning" / "constants.json"
    return msgspec.json.decode(source.read_bytes(), type=Constants)


def read_constants(path: Path) -> Constants:
    """Those of a file that `bench --json` wrote. Raises `ConfigError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Constants)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{path}: expected what 'python -m askonce_loadtest bench --json' prints: {error}"
        ) from error
