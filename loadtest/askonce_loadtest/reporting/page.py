"""One HTML page: no network, no scripts, readable in light and dark and on a telephone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from askonce_loadtest.reporting.content import Goal, Section, Table
from askonce_loadtest.reporting.drawing import svg

_STYLE = """
:root { --paper: #ffffff; --ink: #1d2430; --soft: #5c6675; --line: #d5dae2; --card: #f6f8fa;
  --good: #1a7f45; --bad: #c22f2c; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181f; --ink: #e6e9ee; --soft: #9aa5b4;
  --line: #3a4350; --card: #1c222b; --good: #4cc27c; --bad: #ff7b74; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .4rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { max-width: 46rem; margin: .4rem 0; }
.soft { color: var(--soft); font-size: .9rem; }
nav { margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .92rem; }
a { color: inherit; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1rem; margin: 1rem 0; align-items: start; }
figure { margin: 0; padding: .8rem .6rem; background: var(--card); border-radius: .5rem;
  max-width: 44rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: inherit !important; }
.scroll { overflow-x: auto; margin: .6rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td:first-child, th:first-child, .prose { text-align: left; }
td.prose { white-space: normal; min-width: 9rem; }
th:last-child, td:last-child { padding-right: 0; }
.yes { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
"""

BUSY = 1.5
"""The load from which on figures are doubtful. A measurement of ours before may leave about one."""


def page(sections: Sequence[Section], title: str, made: str) -> str:
    """The page as text. `made`: when, and from what."""
    goals = [goal for section in sections for goal in section.goals]
    links = "".join(
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(sections, 1)
    )
    machines = list(
        dict.fromkeys(text for section in sections if (text := machine_text(section.machine)))
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f'<h1>{escape(title)}</h1><p class="soft">{escape(made)}</p>',
        *(f'<p class="soft">Measured on: {escape(machine)}</p>' for machine in machines),
        f"<p>{escape(busy)}</p>" if (busy := busy_text(sections)) else "",
        f"<nav>{links}</nav>",
        _goals(goals),
        *(_section(number, section) for number, section in enumerate(sections, 1)),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def machine_text(machine: dict[str, str | float]) -> str:
    """A machine in one line; how busy it was is not part of it."""
    if not machine:
        return ""
    cores = machine.get("processors", "")
    known = {"processor", "processors", "load_1min_before", "system", "python", "redis_py", "store"}
    parts = [
        f"{machine.get('processor', '')}, {cores:g} cores"
        if isinstance(cores, int | float)
        else str(machine.get("processor", "")),
        *(str(machine[name]) for name in ("system", "store") if name in machine),
        *(f"Python {machine[name]}" for name in ("python",) if name in machine),
        *(f"redis-py {machine[name]}" for name in ("redis_py",) if name in machine),
        *(f"{name} {value}" for name, value in machine.items() if name not in known),
    ]
    return ", ".join(part for part in parts if part)


def busy_text(sections: Sequence[Section]) -> str:
    """A warning where the machine was busy with something else before a measurement."""
    load = max((float(one.machine.get("load_1min_before", 0)) for one in sections), default=0.0)
    if load <= BUSY:
        return ""
    return (
        f"The machine was busy with other things (a load of {load:.1f} before a measurement):\n"
        "times say little, and goals are missed that a quiet machine reaches."
    )


def _goals(goals: Sequence[Goal]) -> str:
    if not goals:
        return ""
    rows = "".join(
        f"<tr><td class=prose>{escape(one.what)}</td><td>{escape(one.goal)}</td>"
        f"<td>{escape(one.measured)}</td>"
        f'<td class="{"yes" if one.met else "no"}">{"yes" if one.met else "no"}</td></tr>'
        for one in goals
    )
    return (
        "<h3>Goals</h3><div class=scroll><table><tr><th>what</th><th>goal</th><th>measured</th>"
        f"<th>reached</th></tr>{rows}</table></div>"
    )


def _section(number: int, section: Section) -> str:
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in section.text)
    plots = "".join(f"<figure>{svg(plot)}</figure>" for plot in section.plots)
    tables = "".join(map(_table, section.tables))
    grid = f"<div class=plots>{plots}</div>" if plots else ""
    return f'<section><h2 id="s{number}">{escape(section.title)}</h2>{text}{grid}{tables}</section>'


def _table(table: Table) -> str:
    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=prose' if at in table.prose else ''}>{escape(text)}</{tag}>"
            for at, text in enumerate(texts)
        )

    title = f"<h3>{escape(table.title)}</h3>" if table.title else ""
    head = f"<tr>{cells('th', table.headings)}</tr>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    return f"{title}<div class=scroll><table>{head}{body}</table></div>"
