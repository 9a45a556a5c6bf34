"""`python -m askonce_loadtest report`: a run's JSON files as a page, PNGs, and the README."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from askonce_queue.errors import AskonceError, ConfigError


def report(
    run: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder with a run's JSON files.")
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The page: HTML, all in one file.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the README's plots as PNG.")
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Renew the performance section between the markers of this file.",
        ),
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "askonce: measured",
) -> None:
    """Make a report of what bench, scale, compare, drive and plan have measured.

    Takes whatever JSON files there are, by what is in them. The page needs no network and no
    scripts. PNGs go beside the JSON files when --readme is given without --png.

    For example:

        python -m askonce_loadtest report results --out report.html

        python -m askonce_loadtest report docs/performance --readme README.md

    Exit code: 0 made; 1 there is nothing to report, or it cannot be read; 2 wrong usage.
    """
    if not (out or png or readme):
        raise typer.BadParameter("expected --out, --png or --readme: what is to be made?")
    try:
        _make(run, out=out, png=png, readme=readme, title=title)
    except (AskonceError, OSError) as error:
        typer.echo(f"no report: {error}", err=True)
        raise typer.Exit(1) from error


def _make(
    run: Path, *, out: Path | None, png: Path | None, readme: Path | None, title: str
) -> None:
    try:
        from askonce_loadtest.reporting import drawing  # noqa: PLC0415  only reports need it
        from askonce_loadtest.reporting.page import page  # noqa: PLC0415
        from askonce_loadtest.reporting.readme import (  # noqa: PLC0415
            chosen,
            folder_seen_from,
            section_text,
            with_section,
        )
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'askonce[loadtest]'") from error
    from askonce_loadtest.reporting.results import read_results  # noqa: PLC0415

    results = read_results(run)
    for name in results.unknown:
        typer.echo(f"left out: {run / name} is not of a kind that is known here", err=True)
    made: list[Path] = []
    if out is not None:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(results.sections, title, f"Made {now}."), encoding="utf-8")
        made.append(out)
    if readme is not None:
        folder = png or run
        section = section_text(results.sections, folder_seen_from(readme, folder))
        text = readme.read_text(encoding="utf-8")
        readme.write_text(with_section(text, section, readme), encoding="utf-8")
        made.append(readme)
    if png is not None or readme is not None:
        folder = png or run
        folder.mkdir(parents=True, exist_ok=True)
        for plot in chosen(results.sections):
            path = folder / f"{plot.name}.png"
            path.write_bytes(drawing.png(plot))
            made.append(path)
    for path in made:
        typer.echo(str(path))
