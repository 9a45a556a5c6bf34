"""A plan."""

from __future__ import annotations

from typing import Any

import msgspec

from askonce_loadtest.planning.command import shown
from askonce_loadtest.planning.sizing import Sizing
from askonce_loadtest.reporting.content import Section, Table


def planned_section(document: dict[str, Any]) -> Section:
    """Every figure with its formula, and what is scarce."""
    sizing = msgspec.convert(document, Sizing)
    target = sizing.target
    rows = [[line.name, shown(line), line.formula] for line in sizing.lines]
    return Section(
        f"Plan for {target.rate:,.0f} requests/s",
        [
            f"{target.distinct:,} distinct questions, a TTL of {target.ttl_s:,.0f} s.",
            f"Bottleneck: {sizing.bottleneck}. To relieve it: {sizing.advice}.",
            *sizing.warnings,
        ],
        (),
        [Table("", ("figure", "value", "how"), rows, (2,))],
        machine=sizing.machine,
    )
