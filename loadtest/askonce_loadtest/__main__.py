"""`python -m askonce_loadtest`: load, figures, comparison, chaos, and the stand-in model server."""

from __future__ import annotations

import typer

from askonce_loadtest.bench.command import bench
from askonce_loadtest.bench.guard_command import guard
from askonce_loadtest.chaos.command import chaos
from askonce_loadtest.compare.command import compare
from askonce_loadtest.drive.command import drive
from askonce_loadtest.model_command import model
from askonce_loadtest.planning.command import plan
from askonce_loadtest.reporting.command import report
from askonce_loadtest.scale.command import scale
from askonce_loadtest.workloads.command import workload

app = typer.Typer(
    name="askonce_loadtest",
    help="Measure askonce, break it, and stand in for its models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(bench)
app.command()(chaos)
app.command()(compare)
app.command()(drive)
app.command()(model)
app.add_typer(workload, name="workload")
app.command()(guard)
app.command()(plan)
app.command()(report)
app.command()(scale)

if __name__ == "__main__":
    app(prog_name="python -m askonce_loadtest")
