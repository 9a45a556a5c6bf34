"""What the locust files have in common: their options, and what their users ask.

Options are read from the environment too: `--distinct` from ASKONCE_DISTINCT, and so on.
"""

from __future__ import annotations

import itertools
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, Protocol, cast

from locust import events

from askonce_loadtest.drive.replay import survey
from askonce_loadtest.workloads.request import Request, opened_requests
from askonce_loadtest.workloads.zipf import zipf_ranks

_GOLDEN = 0.6180339887498949


class Parser(Protocol):
    """The part of locust's option parser that is used here; locust leaves it untyped."""

    def add_argument(self, *flags: str, **settings: object) -> object:
        """Add one option."""
        ...


class Hook(Protocol):
    """The part of locust's event hooks that is used here; locust leaves them untyped."""

    def add_listener(self, handler: Callable[..., None]) -> object:
        """Call `handler` at every event."""
        ...

    def fire(self, **fields: object) -> None:
        """Make an event happen."""
        ...


class Option(NamedTuple):
    """One option: its name without dashes, how it is read, its default and what it means."""

    name: str
    read: Callable[[str], object]
    default: object
    meaning: str


class TextOptions(Protocol):
    """The options that say what is asked."""

    workload: str | None
    distinct: int
    exponent: float
    seed: int


def at_least_one(value: str) -> int:
    """Read a whole number of at least 1. Raises `ArgumentTypeError` otherwise."""
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise ArgumentTypeError(f"expected a whole number of at least 1, not {value!r}")


def existing_file(value: str) -> str:
    """Read the name of a file that is there. Raises `ArgumentTypeError` otherwise."""
    if Path(value).is_file():
        return value  # not a path: a master sends the options to its workers as MessagePack
    raise ArgumentTypeError(f"no file {value!r}")


def add_options(options: Sequence[Option]) -> None:
    """Add options to locust's own."""

    def add(parser: Parser, **_: object) -> None:
        for name, read, default, meaning in options:
            parser.add_argument(
                f"--{name}",
                env_var="ASKONCE_" + name.removeprefix("askonce-").upper().replace("-", "_"),
                type=read,
                default=default,
                help=meaning if default is None else f"{meaning} (default: {default})",
            )

    cast("Hook", events.init_command_line_parser).add_listener(add)


add_options(
    (
        Option("workload", existing_file, None, "texts in the order of a workload (its times not)"),
        Option("distinct", at_least_one, 2_000, "without one: how many different texts there are"),
        Option("exponent", float, 1.05, "of the texts' Zipf distribution; 0: all as frequent"),
        Option("seed", int, 1, "decides which texts come when"),
    )
)

_readers: dict[str, Iterator[Request]] = {}


def requests_of(options: TextOptions, task: str, *, process: int, user: int) -> Iterator[Request]:
    """What a user asks, without end; the same in every run with one seed.

    The users of a process share its place in the workload. Every process of a distributed run
    begins at another place, so that they do not all ask the same in step. Raises `FileError`.
    """
    if options.workload is None:
        return _zipf_requests(options, task, Random(f"{options.seed}/{process}/{user}"))
    if options.workload not in _readers:
        _readers[options.workload] = _read_forever(Path(options.workload), process)
    return _readers[options.workload]


def _zipf_requests(options: TextOptions, task: str, rng: Random) -> Iterator[Request]:
    next_rank = zipf_ranks(options.distinct, options.exponent, rng)
    while True:
        yield Request(0.0, f"I have question {1 + next_rank()} about my card", task)


def _read_forever(path: Path, process: int) -> Iterator[Request]:
    first = int(survey(path).requests * (process * _GOLDEN % 1))
    while True:
        with opened_requests(path) as requests:
            yield from itertools.islice(requests, first, None)
        first = 0
