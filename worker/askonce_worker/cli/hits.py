"""The commands of `askonce hits`: options and help. What they do stands in `hits_look.py` (list,
export), `hits_review.py` and `hits_rules.py`, which are imported when their command runs.
"""

# ruff: noqa: PLC0415 -- as in main.py

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from askonce_worker.cli.arguments import AsJson, ConfigFile, examples

app = typer.Typer(
    help="What was reused: look at a sample of hits, judge it, take back what was wrong.",
    epilog=examples(
        "askonce hits review askonce.toml",
        "askonce hits list askonce.toml --task intent --since 7d",
        "askonce hits rules list askonce.toml",
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
rules = typer.Typer(
    help="Inputs that are kept from the cache: answered by the model, each time anew.",
    epilog=examples(
        "askonce hits rules list askonce.toml",
        "askonce hits rules add askonce.toml --task intent --pattern '\\*my balance\\*'",
        "askonce hits rules remove askonce.toml 3f1c09ab",
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(rules, name="rules")

Task = Annotated[
    str | None,
    typer.Option("--task", metavar="NAME", show_default=False, help="Only hits of this task."),
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="WHEN", show_default=False, help="Not older: '2h', or '2026-11-21T10:00'."
    ),
]


@app.command(
    "list",
    epilog=examples(
        "askonce hits list askonce.toml",
        "askonce hits list askonce.toml --unreviewed --since 7d",
        "askonce hits list askonce.toml --json | jq -r .input",
    ),
)
def list_(
    config: ConfigFile,
    task: Task = None,
    since: Since = None,
    unreviewed: Annotated[
        bool, typer.Option("--unreviewed", help="Only those that nobody has judged.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="100 in a terminal, else none")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List logged hits, the newest first, every question once.

    A table in a terminal, else a line each with tabs between the columns; with --json one JSON
    object a line. Inputs were redacted before they were logged.

    Exit code: 0 done, 1 a shard could not be read, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import hits_look as command

    raise typer.Exit(
        command.main_list(
            command.ListOptions(
                config=config,
                task=task,
                since=since,
                unreviewed=unreviewed,
                limit=limit,
                json=as_json,
            )
        )
    )


@app.command(
    epilog=examples(
        "askonce hits review askonce.toml",
        "askonce hits review askonce.toml --task intent --since 7d --limit 30",
        "printf 'f\\nw p \\*lost my card\\*\\nq\\n' | askonce hits review askonce.toml",
    )
)
def review(
    config: ConfigFile,
    task: Task = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Most questions to judge.")] = 50,
) -> None:
    """Judge what was reused, one question at a time: ten minutes a week.

    Keys: f fine, n should not have been cached, w wrong, s skip, q quit. What is flagged (n, w) is
    taken back at once. It may become a rule: inputs like it, or the whole task, are kept from the
    cache. What was judged comes again only with another answer.

    Without a terminal it reads a line for each: the letter, and after n or w 'p PATTERN' or 't' for
    a rule.

    Exit code: 0 done, 1 a decision was not recorded or a shard not read, 2 usage or configuration,
    69 no store.
    """
    from askonce_worker.cli import hits_review as command

    raise typer.Exit(
        command.main(command.Options(config=config, task=task, since=since, limit=limit))
    )


@app.command(
    epilog=examples(
        "askonce hits export askonce.toml --out hits.jsonl",
        "askonce hits export askonce.toml --since 7d | jq 'select(.verdict == \"wrong\")'",
    )
)
def export(
    config: ConfigFile,
    task: Task = None,
    since: Since = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Output; '-' for stdout.", show_default="stdout")
    ] = Path("-"),
) -> None:
    """Write logged hits with what was said of them, one JSON object a line.

    A file appears under its name when it is whole, readable for its owner only.

    Exit code: 0 done, 1 a shard could not be read, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import hits_look as command

    raise typer.Exit(
        command.main_export(command.ExportOptions(config=config, task=task, since=since, out=out))
    )


@rules.command("list", epilog=examples("askonce hits rules list askonce.toml --json"))
def rules_list(config: ConfigFile, as_json: AsJson = False) -> None:
    """List the rules, the oldest first.

    Exit code: 0 done, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import hits_rules as command

    raise typer.Exit(command.main_list(command.ListOptions(config=config, json=as_json)))


@rules.command(
    "add",
    epilog=examples(
        "askonce hits rules add askonce.toml --task intent --pattern '\\*my balance\\*'",
        "askonce hits rules add askonce.toml --task chat --pattern '\\*'",
    ),
)
def rules_add(
    config: ConfigFile,
    task: Annotated[str, typer.Option(metavar="NAME", show_default=False, help="Whose inputs.")],
    pattern: Annotated[
        str,
        typer.Option(
            metavar="GLOB",
            show_default=False,
            help="The whole text of the input; '*' is any text, case does not matter.",
        ),
    ],
) -> None:
    r"""Keep inputs from the cache: neither answered from it nor kept.

    The pattern '\*' is for the whole task. At most 100 rules.

    Exit code: 0 done, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import hits_rules as command

    raise typer.Exit(
        command.main_add(command.AddOptions(config=config, task=task, pattern=pattern))
    )


@rules.command("remove", epilog=examples("askonce hits rules remove askonce.toml 3f1c09ab"))
def rules_remove(
    config: ConfigFile,
    ids: Annotated[
        list[str], typer.Argument(metavar="ID", show_default=False, help="As 'list' shows them.")
    ],
) -> None:
    """Remove rules; what was answered before they were added may be reused again.

    Exit code: 0 done, 1 one was not there, 2 usage or configuration, 69 no store.
    """
    from askonce_worker.cli import hits_rules as command

    raise typer.Exit(command.main_remove(command.RemoveOptions(config=config, ids=ids)))
