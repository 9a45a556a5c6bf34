"""The open loop: percentiles of one run, or what a search for the highest rate has found."""

from __future__ import annotations

from typing import Any

from askonce_loadtest.reporting.content import Plot, Section, Series, Table

_PERCENTILES = ("p50", "p90", "p99", "p99_9", "max")


def driving_section(document: dict[str, Any]) -> Section:
    """A search has a curve of latency over rate; a run has one of its percentiles."""
    search = document.get("search")
    if search is not None:
        return _search(document, search)
    return _run(document, document["run"])


def _search(document: dict[str, Any], search: dict[str, Any]) -> Section:
    objective = search["objective"]["p99_ms"]
    tries = sorted(search["tries"], key=lambda one: one["rate_per_s"])
    rates = [one["rate_per_s"] for one in tries]
    series = [
        Series(name, rates, [one["trial"]["latency_ms"][name] for one in tries], dashed=at > 0)
        for at, name in enumerate(("p99", "p50"))
    ]
    line = [objective] * len(rates)
    series.append(Series(f"objective, {objective:g} ms", rates, line, dashed=True))
    rows = [
        [f"{one['rate_per_s']:,.0f}", *_latencies(one["trial"]), _misses(one["misses"])]
        for one in tries
    ]
    rate = search["rate_per_s"]
    found = "none" if rate is None else f"{rate:,.0f}/s"
    return Section(
        "Highest rate within an objective",
        [
            f"Open loop, timed from when each request was due. {_deployment(document)}",
            f"Highest rate with p99 ≤ {objective:g} ms: {found}.",
        ],
        [Plot("rate-latency", "Latency over rate", "requests/s", "ms", series, y_log=True)],
        [Table("", ("rate", *_names(), "met"), rows, (len(_PERCENTILES) + 1,))],
    )


def _run(document: dict[str, Any], run: dict[str, Any]) -> Section:
    counts: list[list[int]] = run["latency_us"]["counts"]
    total = sum(count for _, count in counts)
    x: list[float] = []
    y: list[float] = []
    seen = 0
    for us, count in counts:
        seen += count
        x.append(total / max(total - seen, 1))
        y.append(us / 1e3)
    plot = Plot(
        "latency",
        "Latency by percentile",
        "1 in so many requests is slower",
        "ms",
        [Series("latency", x, y)],
        x_log=True,
        y_log=True,
    )
    row = [f"{run['answered_per_s']:,.0f}", *_latencies(run), f"{run['hit_rate']:.2%}"]
    return Section(
        "Latency",
        [f"Open loop, timed from when each request was due. {_deployment(document)}"],
        [plot] if total else [],
        [Table("", ("answered/s", *_names(), "hit rate"), [row])],
    )


def _names() -> list[str]:
    return [f"{name.replace('_', '.')} ms" for name in _PERCENTILES]


def _latencies(trial: dict[str, Any]) -> list[str]:
    return [f"{trial['latency_ms'][name]:,.2f}" for name in _PERCENTILES]


def _misses(misses: list[str]) -> str:
    return "no: " + ", ".join(misses) if misses else "yes"


def _deployment(document: dict[str, Any]) -> str:
    workers = document.get("workers")
    latency = document.get("model_latency_ms")
    parts = [f"{workers} worker process{'es' if workers > 1 else ''}"] if workers else []
    parts += [f"a model that takes {latency:g} ms"] if latency is not None else []
    return ("With " + ", ".join(parts) + ".") if parts else ""
