"""The `askonce` command: its commands, options and help. What they do stands in a module each.

Those modules are imported when their command runs: `askonce --help` waits for no HTTP client.
"""

# ruff: noqa: PLC0415 -- see above

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from askonce_worker.cli import dead, hits, invalidate_options
from askonce_worker.cli.arguments import (
    AsJson,
    Column,
    ConfigFile,
    Deadline,
    InputFile,
    InputFormat,
    LaneName,
    LogStyle,
    TaskName,
    Version,
    WindowName,
    examples,
)

app = typer.Typer(
    name="askonce",
    help="An async worker-pool cache for classification: every distinct question reaches the "
    "model once, everyone who asked gets the answer.",
    epilog=examples(
        "askonce doctor askonce.toml",
        "askonce run askonce.toml messages.jsonl --task intent --out answers.jsonl",
        "askonce COMMAND --help",
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    _version: Version = False,
) -> None:
    """Hold what comes before the command."""


@app.command(
    epilog=examples(
        "askonce run askonce.toml in.jsonl --task intent --out out.jsonl",
        "askonce run askonce.toml in.csv --column message --task intent --out out.jsonl",
        "cat in.jsonl | askonce run askonce.toml - --task intent --out - | jq .label",
    )
)
def run(
    config: ConfigFile,
    input_file: InputFile,
    task: TaskName,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", show_default=False, help="Output; '-' for stdout."),
    ],
    input_format: InputFormat = None,
    column: Column = None,
    window: Annotated[
        int, typer.Option(min=1, max=100_000, help="Most jobs under way at once.")
    ] = 10_000,
    deadline: Deadline = None,
    worker: Annotated[
        bool,
        typer.Option(
            "--worker/--no-worker",
            help="Answer in this process, or leave it to workers that run elsewhere.",
        ),
    ] = True,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on where an interrupted run stopped (OUT.partial); what is there stays, "
            "also when the task has changed since.",
        ),
    ] = False,
    summary: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="Write the summary as JSON."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs.")] = False,
) -> None:
    """Classify a whole file.

    Writes one JSON object for each line of input, in the order of the input: id, label, score and
    source, or id and error. A line that cannot be asked becomes an error line and stops nothing.

    The output is written to OUT.partial, which becomes OUT when it is complete. After an
    interruption (even kill -9), the same command with --resume skips the lines that are there.
    Running it once more without costs little: what was answered is remembered. That is also how to
    try lines again that failed.

    Exit code: 0 all lines answered, 1 some failed, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import run as command

    raise typer.Exit(
        command.main(
            command.Options(
                config=config,
                input=input_file,
                task=task,
                out=out,
                format=input_format.value if input_format else None,
                column=column,
                window=window,
                deadline_s=deadline,
                worker=worker,
                resume=resume,
                summary=summary,
                verbose=verbose,
            )
        )
    )


@app.command(
    epilog=examples(
        "askonce worker askonce.toml",
        "askonce worker askonce.toml --processes 4 --log json",
        "askonce worker askonce.toml --burst",
    )
)
def worker(
    config: ConfigFile,
    processes: Annotated[
        int, typer.Option(min=1, max=256, help="Worker processes, one for each core.")
    ] = 1,
    burst: Annotated[
        bool, typer.Option("--burst", help="End when no job is left, instead of waiting for more.")
    ] = False,
    log: Annotated[
        LogStyle | None, typer.Option(show_default="as in CONFIG", help="Style of the logs.")
    ] = None,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Answer jobs until told to stop.

    SIGTERM or Ctrl-C drains: no more jobs are fetched, those under way may finish (`drain_s`), the
    rest goes back to the queue for any worker. A second one skips the waiting. Worker processes
    that crash are replaced.

    Exit code: 0 stopped or nothing left, 2 usage or configuration, 69 no store, 130 after Ctrl-C.
    """
    from askonce_worker.cli import worker as command

    raise typer.Exit(
        command.main(
            command.Options(
                config=config,
                processes=processes,
                burst=burst,
                log=log.value if log else None,
                supervised=supervised,
            )
        )
    )


@app.command(
    epilog=examples(
        "askonce enqueue askonce.toml in.jsonl --task intent",
        "askonce enqueue askonce.toml in.csv --task intent --reply-to nightly --lane interactive",
        "askonce enqueue askonce.toml in.jsonl --task intent --deadline 600",
    )
)
def enqueue(
    config: ConfigFile,
    input_file: InputFile,
    task: TaskName,
    reply_to: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="the task", help="Named reply stream."),
    ] = None,
    lane: Annotated[
        LaneName, typer.Option(help="How urgent it is: see [worker.lanes] for what that means.")
    ] = LaneName.BULK,
    deadline: Deadline = None,
    input_format: InputFormat = None,
    column: Column = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="When the queue is full, wait or end.")
    ] = True,
) -> None:
    """Hand a file to the workers and do not wait for the answers.

    The job id is the line's id, else its number. Replies go to a named reply stream in the store;
    the command prints its key. Each entry has a field `r` with one reply a line, as JSON. Read it
    with XREAD and delete what you have read with XDEL; replies come at least once.

    Exit code: 0 all lines enqueued, 1 some were not, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import enqueue as command

    raise typer.Exit(
        command.main(
            command.Options(
                config=config,
                input=input_file,
                task=task,
                reply_to=reply_to,
                lane=lane.value,
                deadline_s=deadline,
                format=input_format.value if input_format else None,
                column=column,
                wait=wait,
            )
        )
    )


@app.command(
    epilog=examples(
        "askonce stats askonce.toml",
        "askonce stats askonce.toml --watch --window 5m",
        "askonce stats askonce.toml --task intent",
        "askonce stats askonce.toml --json | jq '.windows[\"1h\"].total.hit_rate'",
    )
)
def stats(
    config: ConfigFile,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew each second, until Ctrl-C.")
    ] = False,
    window: Annotated[
        WindowName, typer.Option(help="Of the verdict and of the tables by task and tenant.")
    ] = WindowName.DAY,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="NAME", show_default="all tasks", help="One task alone."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what was answered from where, whether the cache pays, what it costs, and what waits.

    Counts are of all workers; they add to them once a second. docs/STATS.md explains each figure.
    With --json everything is printed, whatever --window and --task say; with --watch too, an object
    a line.

    Exit code: 0 done, 2 usage or configuration, 69 no store, 130 after Ctrl-C.
    """
    from askonce_worker.cli import stats as command

    raise typer.Exit(
        command.main(
            command.Options(
                config=config, json=as_json, watch=watch, window=window.value, task=task
            )
        )
    )


app.command(epilog=invalidate_options.EXAMPLES)(invalidate_options.invalidate)
app.add_typer(dead.app, name="dead")
app.add_typer(hits.app, name="hits")


@app.command(epilog=examples("askonce doctor askonce.toml", "askonce doctor askonce.toml --json"))
def doctor(config: ConfigFile, as_json: AsJson = False) -> None:
    """Check configuration, store, models and prompts; change nothing.

    Each check is ok, a warning, or a failure, and says what to do.

    Exit code: 0 nothing failed, 1 something did, 2 the configuration cannot be read.
    """
    from askonce_worker.cli import doctor as command

    raise typer.Exit(command.main(command.Options(config=config, json=as_json)))


def main() -> None:
    """Run the command line; ends the process."""
    # Python models may live in the working directory; last, so that it shadows no package.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    app(prog_name="askonce")
