"""Traces: which key is asked, one after the other. Keys are numbers from 0.

A trace file is JSON lines, gzipped or not; a request is the `key` of a line (number or text), or
else its `text`. Other fields, times among them, do not matter here.
"""

from __future__ import annotations

import gzip
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from askonce_queue.errors import ConfigError

MOST_REQUESTS = 1_000_000
"""Of one trace; what is longer is cut."""


class Trace(NamedTuple):
    """Requests in order, and what they are called."""

    name: str
    requests: Sequence[int]

    @property
    def distinct(self) -> int:
        """How many keys there are."""
        return len(set(self.requests))


class _Line(msgspec.Struct):
    key: int | str | None = None
    text: str | None = None


def synthetic_traces(count: int, seed: int) -> list[Trace]:
    """Zipf as it is, with a head that moves on, and half of it asked only once."""
    keys = max(100, count // 10)
    return [
        Trace("zipf", list(_zipf(keys, 1.0, count, seed))),
        Trace("zipf, drifting", list(_drifting(keys, 1.0, count, seed))),
        Trace("zipf, half asked once", list(_one_hit(keys, 1.0, count, seed))),
    ]


def read_trace(path: Path, most: int = MOST_REQUESTS) -> Trace:
    """Read a trace file. Raises `ConfigError` that names the line."""
    opened = gzip.open if path.suffix == ".gz" else open
    decode = msgspec.json.Decoder(_Line).decode
    numbers: dict[int | str, int] = {}
    requests: list[int] = []
    try:
        with opened(path, "rb") as lines:
            for at, line in enumerate(itertools.islice(lines, most), 1):
                try:
                    row = decode(line)
                except msgspec.DecodeError as error:
                    raise ConfigError(f"{path}, line {at}: {error}") from error
                key = row.text if row.key is None else row.key
                if key is None:
                    raise ConfigError(f"{path}, line {at}: expected a key or a text")
                requests.append(numbers.setdefault(key, len(numbers)))
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not requests:
        raise ConfigError(f"{path}: expected requests, found none")
    return Trace(path.name.removesuffix(".gz").removesuffix(".jsonl"), requests)


def _zipf(keys: int, exponent: float, count: int, seed: int) -> Iterator[int]:
    rng = random.Random(seed)
    weights = list(itertools.accumulate(rank**-exponent for rank in range(1, keys + 1)))
    yield from rng.choices(range(keys), cum_weights=weights, k=count)


def _drifting(keys: int, exponent: float, count: int, seed: int) -> Iterator[int]:
    """The most popular key is another one after every hundredth of the trace."""
    every = max(1, count // 100)
    step = max(1, keys // 200)
    for at, rank in enumerate(_zipf(keys, exponent, count, seed)):
        yield (rank + at // every * step) % keys


def _one_hit(keys: int, exponent: float, count: int, seed: int) -> Iterator[int]:
    rng = random.Random(seed + 1)
    new = itertools.count(keys)
    for rank in _zipf(keys, exponent, count, seed):
        yield next(new) if rng.random() < 0.5 else rank  # noqa: PLR2004  half
