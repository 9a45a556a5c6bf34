"""The options and help of `askonce invalidate`. What it does stands in `invalidate.py`, which is
imported when the command runs.
"""

# ruff: noqa: PLC0415 -- as in main.py

from __future__ import annotations

from typing import Annotated

import typer

from askonce_worker.cli.arguments import AsJson, ConfigFile, examples

EXAMPLES = examples(
    "askonce invalidate askonce.toml --task intent",
    "askonce invalidate askonce.toml --task 'support-*' --dry-run",
    "askonce invalidate askonce.toml --source refund-policy",
    "askonce invalidate askonce.toml --tag customer:42 --tag customer:43",
    "askonce invalidate askonce.toml --pattern 'user:*' --json",
    "askonce invalidate askonce.toml --key 3f9a61c0b2d4e5f6",
    "askonce invalidate askonce.toml --old-versions --dry-run",
    "askonce invalidate askonce.toml --all",
)


def invalidate(
    config: ConfigFile,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="HEX", show_default=False, help="One answer, by its cache key."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="All answers of a task, or of all tasks that match 'support-*'.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", show_default=False, help="All answers of the tasks that use a model."
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="TAG", show_default=False, help="All answers with a tag."),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="All answers that are built on a source, or on what depends on it.",
        ),
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            show_default=False,
            help="All answers with a tag that matches: '*' is anything, '?' one byte.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All answers.")] = False,
    old_versions: Annotated[
        bool,
        typer.Option(
            "--old-versions",
            help="Delete what tasks (or those of --task) have stored under another prompt, model "
            "or setting than they have in CONFIG. Nobody is served that any more.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be taken.")
    ] = False,
    scan_limit: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Stored answers to look at for the count; 0: do not count."
        ),
    ] = 1_000_000,
    scan_time: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long to count at most.")
    ] = 60.0,
    force: Annotated[
        bool, typer.Option("--force", help="Accept tasks and sources that are not in CONFIG.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Never serve again what was answered until now.

    What is being asked at this moment is not kept either. The options may be given several times
    and together: each takes its own.

    Then it is counted how many answers that took, by a walk over the store, a page at a time. Where
    the walk ends early the count is unknown, and the output says so.

    Exit code: 0 done, 1 incomplete (a shard or replica has not confirmed: repeat it; or the count
    of a dry run, or --old-versions, did not reach the end), 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import invalidate as command
    from askonce_worker.cli.invalidate_target import Chosen

    raise typer.Exit(
        command.main(
            command.Options(
                config=config,
                chosen=Chosen(
                    keys=key or [],
                    tasks=task or [],
                    models=model or [],
                    tags=tag or [],
                    sources=source or [],
                    patterns=pattern or [],
                    everything=everything,
                    old_versions=old_versions,
                ),
                force=force,
                dry_run=dry_run,
                scan_limit=scan_limit,
                scan_s=scan_time,
                json=as_json,
            )
        )
    )
