"""The options that the kinds of workloads have in common on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from askonce_loadtest.workloads.ask import Arrivals
from askonce_loadtest.workloads.zipf import MAX_DISTINCT

Out = Annotated[
    Path, typer.Option(help="The file to write; .gz is packed, - is stdout.", dir_okay=False)
]
Seed = Annotated[int, typer.Option(help="The same seed makes the same file.")]
Count = Annotated[int, typer.Option("--requests", min=1, help="How many requests.")]
Rate = Annotated[float, typer.Option(min=0.001, help="Requests a second, the mean.")]
Distinct = Annotated[
    int, typer.Option(min=1, max=MAX_DISTINCT, help="How many different questions there are.")
]
Exponent = Annotated[
    float, typer.Option(min=0, max=10, help="Of Zipf's law; 0: all are asked as often.")
]
TaskName = Annotated[str, typer.Option("--task", help="The task that every request asks.")]
TextsFile = Annotated[
    Path | None,
    typer.Option(
        "--texts",
        dir_okay=False,
        show_default="made up",
        help="Take the texts from this file: .jsonl with 'text', or .txt; .gz too.",
    ),
]
Words = Annotated[int, typer.Option(min=1, max=1_000, help="Length of made-up texts, on average.")]
Bulk = Annotated[float, typer.Option(min=0, max=1, help="Share of requests in the lane bulk.")]
Spacing = Annotated[Arrivals, typer.Option(help="Random times, or all gaps alike.")]
