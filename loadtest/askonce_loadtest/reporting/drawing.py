"""A plot as SVG for the page, or as PNG for the README. The only file that knows matplotlib."""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from askonce_loadtest.reporting.content import Bars, Plot

COLOURS = ("#2f7fd1", "#e07b28", "#2a9d62", "#b04fc4", "#c8423f", "#8a8a8a")
"""Readable on white and on black, and told apart by most eyes."""
_INK, _FAINT = "#010203", "#040506"
"""Stand for the page's own colours in an SVG: they are replaced by these."""
_SIZE_INCHES = (6.0, 3.7)
_BAR_INCHES = 0.34
_DPI = 150
_THOUSAND, _MILLION = 1_000, 1_000_000
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "xtick.major.size": 3.5,
    "ytick.major.size": 0.0,
}


def svg(plot: Plot | Bars) -> str:
    """An `<svg>` element in the page's colours, without references to anything outside."""
    with mpl.rc_context(_style(_INK, _FAINT) | {"svg.hashsalt": plot.name}):
        text = io.StringIO()
        _figure(plot).savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawn, count=1, flags=re.DOTALL)
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1, flags=re.DOTALL)
    drawn = drawn.replace(_INK, "var(--ink)").replace(_FAINT, "var(--line)")
    label = f'role="img" aria-label="{_escaped(plot.title)}" '
    return _with_own_ids(drawn.replace("<svg ", f"<svg {label}", 1), plot.name)


def png(plot: Plot | Bars) -> bytes:
    """A PNG on white, for where nothing else is shown."""
    with mpl.rc_context(_style("#1d2430", "#d5dae2")):
        data = io.BytesIO()
        _figure(plot).savefig(
            data, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None}
        )
    return data.getvalue()


def _style(ink: str, faint: str) -> Any:
    inks = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    faints = ("axes.edgecolor", "grid.color", "xtick.color", "ytick.color")
    return _STYLE | dict.fromkeys(faints, faint) | dict.fromkeys(inks, ink)


def _figure(plot: Plot | Bars) -> Figure:
    width, height = _SIZE_INCHES
    if isinstance(plot, Bars):
        height = 1.15 + _BAR_INCHES * len(plot.labels)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(plot.title)
    if isinstance(plot, Bars):
        _draw_bars(axes, plot)
    else:
        _draw_lines(axes, plot)
    return figure


def _draw_lines(axes: Axes, plot: Plot) -> None:
    marked = max(len(one.x) for one in plot.series) <= 25  # noqa: PLR2004  more is a smear
    for one, colour in zip(plot.series, COLOURS * len(plot.series), strict=False):
        axes.plot(
            list(one.x),
            list(one.y),
            label=one.label,
            color=colour,
            linestyle="--" if one.dashed else "-",
            marker="o" if marked else "",
            linewidth=1.5 if one.dashed else 2.4,
            markersize=3.5 if one.dashed else 5,
            zorder=3 if one.dashed else 4,
        )
    if plot.x_log:
        axes.set_xscale("log")
    if plot.y_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
    axes.grid(axis="y", linewidth=0.7)
    if plot.ticks:
        axes.set_xticks(list(plot.ticks))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
    axes.yaxis.set_major_formatter(FuncFormatter(_number))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    if len(plot.series) > 1:
        axes.figure.legend(loc="outside lower center", ncols=min(len(plot.series), 5))


def _draw_bars(axes: Axes, plot: Bars) -> None:
    colours = [COLOURS[0] if label in {plot.ours, ""} else COLOURS[5] for label in plot.labels]
    if not plot.ours:
        colours = [COLOURS[0]] * len(plot.labels)
    at = list(range(len(plot.labels)))
    bars = axes.barh(at, list(plot.values), color=colours, height=0.66)
    axes.set_yticks(at, list(plot.labels))
    axes.invert_yaxis()
    axes.bar_label(bars, [_number(value, 0) for value in plot.values], padding=4, fontsize=9.5)
    if plot.x_log:
        axes.set_xscale("log")
        low, high = min(plot.values), max(plot.values)
        axes.set_xlim(low / 2, high * 4)
    else:
        axes.set_xlim(0, max(plot.values) * 1.18 or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{plot.x_label} (logarithmic)" if plot.x_log else plot.x_label)
    axes.grid(axis="x", linewidth=0.7)
    axes.spines["left"].set_visible(False)


def _number(value: float, _position: object) -> str:
    """12,500 is 12.5k: an axis has little room."""
    size = abs(value)
    if size >= _MILLION:
        return f"{value / _MILLION:.3g}M"
    if size >= 10 * _THOUSAND:
        return f"{value / _THOUSAND:.3g}k"
    return f"{value:,.0f}" if size >= _THOUSAND else f"{value:.3g}"


def _with_own_ids(drawn: str, name: str) -> str:
    """Give every id of an SVG a prefix, since a page holds several."""
    prefix = "p" + hashlib.sha256(name.encode()).hexdigest()[:8]
    drawn = re.sub(r'\bid="', f'id="{prefix}', drawn)
    drawn = re.sub(r'href="#', f'href="#{prefix}', drawn)
    return drawn.replace("url(#", f"url(#{prefix}")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
