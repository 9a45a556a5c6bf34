"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import redis

from askonce_queue.scripts import AsyncStore


async def describe_machine(store: AsyncStore) -> dict[str, str | float]:
    """Return processor, versions, and how busy the machine was before the run."""
    server: dict[str, Any] = await store.info("server")
    name = "valkey" if "valkey_version" in server else "redis"
    return {
        "processor": _processor(),
        "processors": os.cpu_count() or 0,
        "load_1min_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "redis_py": redis.__version__,
        "store": f"{name} {server[f'{name}_version']}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
