"""Real traces: whose requests came when, and which repeated which; texts are given to the keys.

A line is {"t": seconds, "key": number or text}, plain or gzip. Either may be missing: without t the
order is the trace's and the times are made up, without key the times are the trace's and the keys
are made up. A line with "text" brings its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from askonce_loadtest.workloads.ask import Ask
from askonce_loadtest.workloads.lines import FileError, open_lines


class TraceLine(msgspec.Struct, gc=False):
    """A line of a trace; its other fields do not matter."""

    t: float | None = None
    key: int | str | None = None
    text: str | None = None


def trace(
    path: Path,
    *,
    time_factor: float,
    next_time: Callable[[], float] | None,
    next_rank: Callable[[], int] | None,
) -> Iterator[Ask]:
    """Yield the asks of a trace, `time_factor` times as fast as they were.

    Keys are renumbered by first appearance. `next_time` gives other times than the trace's,
    `next_rank` other keys. Raises `FileError` when neither has what is needed.
    """
    numbers: dict[int | str, int] = {}
    decode = msgspec.json.Decoder(TraceLine).decode
    start: float | None = None
    before = 0.0
    with open_lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                found = decode(line)
            except (msgspec.MsgspecError, ValueError) as error:
                raise FileError(f"{where}: {error}; expected {{'t': …, 'key': …}}") from error
            if next_time is not None:
                t = next_time()
            elif found.t is None:
                raise FileError(f"{where}: no t: give --rate, and times are made up")
            else:
                start = found.t if start is None else start
                t = (found.t - start) / time_factor
                if t < before:
                    raise FileError(f"{where}: t goes back: sort the lines, or give --rate")
                before = t
            if found.text is not None:
                yield Ask(t, 0, text=found.text)
            elif next_rank is not None:
                yield Ask(t, next_rank())
            elif found.key is None:
                raise FileError(f"{where}: no key: give --distinct, and keys are made up")
            else:
                yield Ask(t, numbers.setdefault(found.key, len(numbers)))
