"""The JSON files of a run's folder, and what kind each is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from askonce_loadtest.reporting.bench import bench_section
from askonce_loadtest.reporting.comparison import comparison_section
from askonce_loadtest.reporting.content import Section
from askonce_loadtest.reporting.driving import driving_section
from askonce_loadtest.reporting.hit_ratios import hit_ratio_section
from askonce_loadtest.reporting.planned import planned_section
from askonce_loadtest.reporting.scale import scale_section
from askonce_queue.errors import ConfigError

Document = dict[str, Any]

SECTIONS: dict[str, Callable[[Document], Section]] = {
    "bench": bench_section,
    "compare": comparison_section,
    "drive": driving_section,
    "scale": scale_section,
    "hit-ratio": hit_ratio_section,
    "plan": planned_section,
}
"""By kind, in the order of the page."""
_SCALE_ORDER = ("keys", "workers", "shards", "size", "hits")


class Results(NamedTuple):
    """The sections of a run, in order, and files that are none of ours."""

    sections: list[Section]
    unknown: list[str]


def kind_of(document: Document) -> str:
    """What a file is, by its `kind` or by what is in it; nothing when it is none of ours."""
    kind = document.get("kind")
    if kind in SECTIONS:
        return str(kind)
    if "warm_jobs_per_s" in document:
        return "bench"
    if "workload" in document and document.keys() & {"run", "search"}:
        return "drive"
    if _is_comparison(document):
        return "compare"
    return ""


def read_results(folder: Path) -> Results:
    """Read all JSON files of a folder. Raises `ConfigError` for one that cannot be read."""
    found: list[tuple[tuple[int, int, str], Section]] = []
    unknown: list[str] = []
    kinds = list(SECTIONS)
    for path in sorted(folder.glob("*.json")):
        document = _read(path)
        kind = kind_of(document)
        if not kind:
            unknown.append(path.name)
            continue
        try:
            section = SECTIONS[kind](document)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ConfigError(f"{path}: not as '{kind}' writes it: {error!r}") from error
        axis = document.get("axis")
        at = _SCALE_ORDER.index(axis) if axis in _SCALE_ORDER else 0
        found.append(((kinds.index(kind), at, path.name), section))
    if not found:
        raise ConfigError(
            f"{folder}: expected results, found none: run 'bench --json', 'scale --out {folder}', "
            "'compare', 'drive --json' or 'plan --json' first, and keep what they print in *.json"
        )
    return Results([section for _, section in sorted(found, key=lambda one: one[0])], unknown)


def _read(path: Path) -> Document:
    try:
        document: object = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    return cast("Document", document) if isinstance(document, dict) else {}


def _is_comparison(document: Mapping[str, Any]) -> bool:
    rows = document.get("rows") or document.get("peers")
    return isinstance(rows, list) and all("name" in row for row in cast("list[Document]", rows))
