"""The commands of `askonce dead`: options and help. What they do stands in `dead_look.py` (list,
show) and `dead_act.py` (retry, drop), which are imported when their command runs.
"""

# ruff: noqa: PLC0415 -- as in main.py

from __future__ import annotations

from typing import Annotated

import typer

from askonce_worker.cli.arguments import AsJson, ConfigFile, LaneName, examples

app = typer.Typer(
    help="Jobs that could not be answered: look at them, retry them, drop them.",
    epilog=examples(
        "askonce dead list askonce.toml --since 2h",
        "askonce dead show askonce.toml 0:1763726400000-0",
        "askonce dead retry askonce.toml --code unknown_task",
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Code = Annotated[
    str | None,
    typer.Option("--code", metavar="CODE", show_default=False, help="Only with this error code."),
]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="NAME", show_default=False, help="Only jobs for this task."),
]
Tenant = Annotated[
    str | None,
    typer.Option("--tenant", metavar="NAME", show_default=False, help="Only of this tenant."),
]
ClientName = Annotated[
    str | None,
    typer.Option("--client", metavar="NAME", show_default=False, help="Only of this client."),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="WHEN", show_default=False, help="Not older: '2h', or '2026-11-21T10:00'."
    ),
]
Until = Annotated[
    str | None,
    typer.Option(metavar="WHEN", show_default=False, help="Not newer, in the same ways."),
]
Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", show_default=False, help="As 'list' shows them."),
]
Everything = Annotated[bool, typer.Option("--all", help="All dead letters.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


@app.command(
    "list",
    epilog=examples(
        "askonce dead list askonce.toml",
        "askonce dead list askonce.toml --code poison --since 2h",
        "askonce dead list askonce.toml --json | jq -r .payload.text",
    ),
)
def list_(
    config: ConfigFile,
    code: Code = None,
    task: Task = None,
    tenant: Tenant = None,
    client: ClientName = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="100 in a terminal, else none")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest first.

    A table in a terminal, else a line each with tabs between the columns; with --json everything
    about each, as one JSON object a line. The first column is the ID that the other commands take.

    Exit code: 0 done, 1 a shard could not be read, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import dead_look as command
    from askonce_worker.cli.dead_choice import Filters

    raise typer.Exit(
        command.main_list(
            command.ListOptions(
                config=config,
                filters=Filters(code, task, tenant, client, since, until),
                limit=limit,
                json=as_json,
            )
        )
    )


@app.command(
    epilog=examples(
        "askonce dead show askonce.toml 0:1763726400000-0",
        "askonce dead show askonce.toml 0:1763726400000-0 --json | jq .payload",
    )
)
def show(
    config: ConfigFile,
    letter: Annotated[
        str, typer.Argument(metavar="ID", show_default=False, help="As 'list' shows it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show everything about one dead letter.

    The payload is shown as JSON if it is that, else as text, else in hexadecimal.

    Exit code: 0 shown, 1 there is no such letter, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import dead_look as command

    raise typer.Exit(
        command.main_show(command.ShowOptions(config=config, letter=letter, json=as_json))
    )


@app.command(
    epilog=examples(
        "askonce dead retry askonce.toml 0:1763726400000-0",
        "askonce dead retry askonce.toml --code unknown_task --since 1d --reply-to fixed",
        "askonce dead retry askonce.toml --all --dry-run",
    )
)
def retry(
    config: ConfigFile,
    letters: Ids = None,
    code: Code = None,
    task: Task = None,
    tenant: Tenant = None,
    client: ClientName = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    reply_to: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="the job's own, or 'retried'",
            help="Named reply stream: the client has had its one reply, the error.",
        ),
    ] = None,
    lane: Annotated[
        LaneName | None, typer.Option(show_default="the job's own", help="Which jobs go first.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Put jobs back into the queue, once each.

    Name letters, or choose them with options, or take --all. A letter is gone once its job is
    queued; one that cannot be retried is reported, and stays.

    Exit code: 0 all queued, 1 some were not, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import dead_act as command
    from askonce_worker.cli.dead_choice import Choice, Filters

    raise typer.Exit(
        command.main_retry(
            command.RetryOptions(
                config=config,
                choice=Choice(
                    letters or [], Filters(code, task, tenant, client, since, until), everything
                ),
                reply_to=reply_to,
                lane=lane.value if lane else None,
                dry_run=dry_run,
            )
        )
    )


@app.command(
    epilog=examples(
        "askonce dead drop askonce.toml 0:1763726400000-0",
        "askonce dead drop askonce.toml --until 30d",
        "askonce dead drop askonce.toml --all --yes",
    )
)
def drop(
    config: ConfigFile,
    letters: Ids = None,
    code: Code = None,
    task: Task = None,
    tenant: Tenant = None,
    client: ClientName = None,
    since: Since = None,
    until: Until = None,
    everything: Everything = False,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete dead letters for good.

    Name letters, or choose them with options, or take --all. Letters that are not named are counted
    first, and the command asks; where nobody can be asked, it needs --yes.

    Exit code: 0 dropped, 1 some were not there or the answer was no, 2 usage or configuration,
    69 no store.
    """
    from askonce_worker.cli import dead_act as command
    from askonce_worker.cli.dead_choice import Choice, Filters

    raise typer.Exit(
        command.main_drop(
            command.DropOptions(
                config=config,
                choice=Choice(
                    letters or [], Filters(code, task, tenant, client, since, until), everything
                ),
                dry_run=dry_run,
                yes=yes,
            )
        )
    )
