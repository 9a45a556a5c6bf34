"""Run one eval set on every pull request: `python examples/eval_rerun.py --work DIR`.

The eval set is the Banking77 test split, the task is that of `askonce.toml`. What a pull request
has not changed was asked before: with DIR kept between the runs of CI (the store is in it), the
first run asks the model for every text, and the next ones for none. What can change an answer is in
the key: `--model-version 2` is another model, and every text is asked again.

Exits with 1 when the accuracy is below `--at-least`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Run as a script, Python looks beside this file, not in the folder of the `examples` package.
from examples.demo import Failed, run_askonce  # noqa: E402
from examples.naive_bayes import DATA, read_examples  # noqa: E402
from examples.request_stream import Stream, write_input  # noqa: E402

TASK = "intent"


def prepare(work: Path, limit: int | None, model_version: str) -> Stream:
    """Write the configuration and the eval set to a folder."""
    config = (DATA.parent / "askonce.toml").read_text()
    call = 'call = "examples.intent:classify"'
    assert call in config, "the example's configuration has changed"
    work.mkdir(parents=True, exist_ok=True)
    # The model trains in its first call: on a busy machine that takes longer than a usual lease.
    patient = "[worker]\nlease_ttl_s = 60\nlease_renew_s = 10\n"
    config = config.replace(call, f'{call}\nversion = "{model_version}"')
    (work / "askonce.toml").write_text(f"{config}\n{patient}")
    stream = Stream(TASK, read_examples(f"{TASK}_test")[:limit])
    write_input(stream, work / f"{TASK}.jsonl")
    return stream


def main() -> int:
    """Parse the command line, run the eval set, compare; return the exit code."""
    parser = argparse.ArgumentParser(description="Run an eval set through askonce.")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="kept by CI")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N texts")
    parser.add_argument("--model-version", default="1", metavar="V", help="part of the cache key")
    parser.add_argument("--at-least", type=float, default=0.8, metavar="SHARE", help="accuracy")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    stream = prepare(work, arguments.limit, arguments.model_version)
    for old in work.glob("eval.*"):  # or the run would resume there, and ask for nothing at all
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    try:
        report = run_askonce(stream, work, "eval")
    except Failed as failure:
        print(f"The eval failed: {failure}", file=sys.stderr)
        return failure.exit_code
    summary = report.summary
    accuracy = report.right / max(1, summary.jobs)
    print(
        f"{summary.jobs:,} texts, {summary.model_calls:,} calls of the model, "
        f"accuracy {accuracy:.1%}, {summary.wall_s:.1f} s"
    )
    if accuracy < arguments.at_least:
        print(f"The accuracy is below {arguments.at_least:.1%}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
