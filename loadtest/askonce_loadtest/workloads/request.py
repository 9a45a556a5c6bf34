"""The lines of a workload: {"t": seconds, "text": …, "task": …}, with "lane" and "key" if any."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Literal

import msgspec

from askonce_loadtest.workloads.ask import Ask
from askonce_loadtest.workloads.lines import FileError, open_lines, written
from askonce_loadtest.workloads.paraphrase import phrased
from askonce_loadtest.workloads.texts import Texts

Lane = Literal["interactive", "bulk"]
_EVERY = 1_000


class Request(msgspec.Struct, omit_defaults=True, gc=False):
    """One request of a workload, due `t` seconds after its start.

    `key` numbers the question where several texts ask the same one (paraphrases). Further fields
    of a line are left alone.
    """

    t: Annotated[float, msgspec.Meta(ge=0)]
    text: str
    task: Annotated[str, msgspec.Meta(min_length=1)]
    lane: Lane = "interactive"
    key: int | None = None


def requests_of(
    asks: Iterable[Ask],
    texts: Texts,
    *,
    task: str,
    bulk: float = 0.0,
    keyed: bool = False,
    rng: Random,
) -> Iterator[Request]:
    """Give asks their texts; a share `bulk` of them goes to that lane. `keyed` keeps the keys."""
    for ask in asks:
        text = phrased(texts(ask.key) if ask.text is None else ask.text, ask.phrasing)
        lane: Lane = "bulk" if bulk and rng.random() < bulk else "interactive"
        yield Request(round(ask.t, 6), text, task, lane, ask.key if keyed else None)


def write_requests(
    path: Path, requests: Iterable[Request], count: int, tell: Callable[[int], None]
) -> int:
    """Write `count` requests, or as many as there are; return how many. Raises `FileError`.

    `tell` hears from time to time how many there are.
    """
    encoder = msgspec.json.Encoder()
    lines, left = 0, islice(requests, count)
    with written(path) as file:
        while part := list(islice(left, _EVERY)):
            file.write(encoder.encode_lines(part))
            lines += len(part)
            tell(lines)
    return lines


@contextmanager
def opened_requests(path: Path) -> Generator[Iterator[Request]]:
    """Read a workload line by line, in order of time.

    Raises `FileError`, also while it is read: for a line that is not one, or goes back in time.
    """
    with open_lines(path) as lines:
        yield _requests_in(path, lines)


def _requests_in(path: Path, lines: Iterable[bytes]) -> Iterator[Request]:
    decode = msgspec.json.Decoder(Request).decode
    t = 0.0
    for number, line in enumerate(lines, start=1):
        if line.isspace():
            continue
        try:
            request = decode(line)
        except (msgspec.MsgspecError, ValueError) as error:
            raise FileError(
                f"{path}, line {number}: {error}; expected "
                '{"t": seconds, "text": "…", "task": "…"}'
            ) from error
        if request.t < t:
            raise FileError(
                f"{path}, line {number}: t goes back from {t:g} to {request.t:g}: sort the lines"
            )
        t = request.t
        yield request
