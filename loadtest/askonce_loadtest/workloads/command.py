"""`python -m askonce_loadtest workload …`: make workloads, and say what is in one."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from askonce_loadtest.workloads.ask import Ask, steady
from askonce_loadtest.workloads.bursts import Bursts, bursts
from askonce_loadtest.workloads.describe import describe
from askonce_loadtest.workloads.lines import FileError
from askonce_loadtest.workloads.one_hit import one_hit
from askonce_loadtest.workloads.options import (
    Bulk,
    Count,
    Distinct,
    Exponent,
    Out,
    Rate,
    Seed,
    Spacing,
    TaskName,
    TextsFile,
    Words,
)
from askonce_loadtest.workloads.paraphrase import MAX_PHRASINGS, paraphrases
from askonce_loadtest.workloads.request import opened_requests, requests_of, write_requests
from askonce_loadtest.workloads.shown import print_description
from askonce_loadtest.workloads.texts import FileTexts, Texts, synthetic
from askonce_loadtest.workloads.trace import trace as read_trace
from askonce_loadtest.workloads.zipf import MAX_DISTINCT, Drift, zipf_ranks
from askonce_loadtest.workloads.zipf import zipf as zipf_asks

UNUSABLE = 2
INTERRUPTED = 130

workload = typer.Typer(
    help="Make workloads (files of JSON lines), and say what is in one.", no_args_is_help=True
)


@workload.command("zipf")
def zipf_command(
    *,
    out: Out,
    seed: Seed = 1,
    requests: Count = 100_000,
    rate: Rate = 1_000.0,
    distinct: Distinct = 2_000,
    exponent: Exponent = 1.05,
    drift_every_s: Annotated[
        float, typer.Option(min=0, help="How often the head changes, in s; 0: never.")
    ] = 0.0,
    drift_step: Annotated[
        int, typer.Option(min=0, help="How many new questions come to the top then.")
    ] = 10,
    arrivals: Spacing = "poisson",
    task: TaskName = "bench",
    texts: TextsFile = None,
    words: Words = 13,
    bulk: Bulk = 0.0,
) -> None:
    r"""Zipf popularity, if wanted with a head that changes over time.

    Example: workload zipf --requests 1000000 --rate 5000 --drift-every-s 10 --out w.jsonl
    """
    rng = Random(seed)
    drift = Drift(drift_every_s, drift_step)
    ranks = zipf_ranks(distinct, exponent, rng)
    asks = zipf_asks(steady(rate, arrivals, rng), ranks, distinct, drift)
    _write(out, asks, requests, texts=texts, words=words, seed=seed, task=task, bulk=bulk)


@workload.command("bursts")
def bursts_command(
    *,
    out: Out,
    seed: Seed = 1,
    requests: Count = 100_000,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second between bursts.")] = 500,
    every_s: Annotated[float, typer.Option(min=0.1, help="From one burst to the next.")] = 20.0,
    length_s: Annotated[float, typer.Option(min=0.01, help="How long a burst is.")] = 2.0,
    factor: Annotated[float, typer.Option(min=1, help="How much higher its rate is.")] = 10.0,
    hot: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a burst that asks one new question.")
    ] = 0.5,
    distinct: Distinct = 2_000,
    exponent: Exponent = 1.05,
    arrivals: Spacing = "poisson",
    task: TaskName = "bench",
    texts: TextsFile = None,
    words: Words = 13,
    bulk: Bulk = 0.0,
) -> None:
    """A rate that multiplies from time to time, partly for one new question.

    Example: workload bursts --rate 500 --factor 20 --out bursts.jsonl
    """
    if length_s >= every_s:
        raise typer.BadParameter("--length-s must be below --every-s")
    rng = Random(seed)
    asks = bursts(
        steady(rate, arrivals, rng),
        zipf_ranks(distinct, exponent, rng),
        distinct,
        Bursts(every_s, length_s, factor, hot),
        rng,
    )
    _write(out, asks, requests, texts=texts, words=words, seed=seed, task=task, bulk=bulk)


@workload.command("one-hit")
def one_hit_command(
    *,
    out: Out,
    seed: Seed = 1,
    requests: Count = 100_000,
    rate: Rate = 1_000.0,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests that nobody repeats.")
    ] = 0.3,
    distinct: Distinct = 2_000,
    exponent: Exponent = 1.05,
    arrivals: Spacing = "poisson",
    task: TaskName = "bench",
    texts: TextsFile = None,
    words: Words = 13,
    bulk: Bulk = 0.0,
) -> None:
    """Zipf popularity, and questions that are asked once and never again.

    Example: workload one-hit --share 0.5 --out one-hit.jsonl
    """
    rng = Random(seed)
    ranks = zipf_ranks(distinct, exponent, rng)
    asks = one_hit(steady(rate, arrivals, rng), ranks, distinct, share, rng)
    _write(out, asks, requests, texts=texts, words=words, seed=seed, task=task, bulk=bulk)


@workload.command("paraphrase")
def paraphrase_command(
    *,
    out: Out,
    seed: Seed = 1,
    requests: Count = 100_000,
    rate: Rate = 1_000.0,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests in other words.")
    ] = 0.3,
    phrasings: Annotated[
        int, typer.Option(min=1, max=MAX_PHRASINGS, help="Other wordings of each question.")
    ] = 20,
    distinct: Distinct = 2_000,
    exponent: Exponent = 1.05,
    arrivals: Spacing = "poisson",
    task: TaskName = "bench",
    texts: TextsFile = None,
    words: Words = 13,
    bulk: Bulk = 0.0,
) -> None:
    """Zipf popularity, with questions that are also asked in other words; lines have their key.

    Example: workload paraphrase --share 0.5 --phrasings 50 --out words.jsonl
    """
    rng = Random(seed)
    ranks = zipf_ranks(distinct, exponent, rng)
    asks = paraphrases(steady(rate, arrivals, rng), ranks, phrasings, share, rng)
    _write(
        out, asks, requests, texts=texts, words=words, seed=seed, task=task, bulk=bulk, keyed=True
    )


@workload.command("trace")
def trace_command(
    *,
    file: Annotated[
        Path, typer.Argument(help="Lines of {'t': s, 'key': …}, also .gz.", dir_okay=False)
    ],
    out: Out,
    seed: Seed = 1,
    requests: Annotated[
        int | None, typer.Option(min=1, show_default="all", help="How many of its requests.")
    ] = None,
    time_factor: Annotated[
        float, typer.Option(min=1e-6, help="How many times as fast as it was.")
    ] = 1.0,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, show_default="the trace's", help="Make up times at this rate."),
    ] = None,
    distinct: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_DISTINCT, show_default="the trace's", help="Make up keys, as in zipf."
        ),
    ] = None,
    exponent: Exponent = 1.05,
    arrivals: Spacing = "poisson",
    task: TaskName = "bench",
    texts: TextsFile = None,
    words: Words = 13,
    bulk: Bulk = 0.0,
) -> None:
    """The order and times of a real trace, with a text for each of its keys.

    Example: workload trace web.jsonl.gz --time-factor 100 --texts questions.jsonl --out w.jsonl
    """
    rng = Random(seed)
    asks = read_trace(
        file,
        time_factor=time_factor,
        next_time=None if rate is None else steady(rate, arrivals, rng),
        next_rank=None if distinct is None else zipf_ranks(distinct, exponent, rng),
    )
    count = sys.maxsize if requests is None else requests
    _write(out, asks, count, texts=texts, words=words, seed=seed, task=task, bulk=bulk)


@workload.command("describe")
def describe_command(
    file: Annotated[Path, typer.Argument(help="A workload, also .gz; - is stdin.", dir_okay=False)],
    *,
    ttl: Annotated[
        float | None, typer.Option(min=0, help="Also the best hit rate with this TTL, in s.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what is in a workload: rate over time, head, one-hit share, best possible hit rate.

    Example: workload describe w.jsonl --ttl 300
    """
    with _errors(), opened_requests(file) as found:
        description = describe(found, ttl_s=ttl)
    if json:
        encoded = msgspec.json.encode(description)
        sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")
    else:
        print_description(Console(), file.name, description)


def _write(
    out: Path,
    asks: Iterable[Ask],
    count: int,
    *,
    texts: Path | None,
    words: int,
    seed: int,
    task: str,
    bulk: float,
    keyed: bool = False,
) -> None:
    """Write the workload, with progress on stderr."""
    progress = Console(stderr=True)
    with _errors(), progress.status("writing") as status:
        source: Texts = synthetic(words, seed) if texts is None else FileTexts(texts, seed)
        # Of its own, so that the lanes do not change what is asked.
        lanes = Random(f"{seed}/lanes")
        requests = requests_of(asks, source, task=task, bulk=bulk, keyed=keyed, rng=lanes)
        lines = write_requests(out, requests, count, lambda n: status.update(f"{n:,} requests"))
    progress.print(f"{lines:,} requests written to {out}")
    if isinstance(source, FileTexts) and source.variants:
        progress.print(
            f"{texts} has {len(source):,} texts: {source.variants:,} further questions have a "
            "numbered variant of one"
        )


@contextmanager
def _errors() -> Generator[None]:
    """One line on stderr instead of a traceback."""
    try:
        yield
    except FileError as error:
        typer.echo(f"askonce_loadtest: {error}", err=True)
        raise typer.Exit(UNUSABLE) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error
