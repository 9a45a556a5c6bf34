"""The demo's requests: whose text repeats whose, and in what order, as in a real trace."""

from __future__ import annotations

import gzip
import random
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import msgspec

from examples.naive_bayes import DATA, Example, read_examples

SEED = 1995
"""Shuffles the texts, so that the popular ones are not those of the file's first label."""


class TraceLine(msgspec.Struct):
    """One request of the trace: which of its distinct requests, counted from 0."""

    key: int


class InputLine(msgspec.Struct):
    """One line of input to `askonce run`."""

    id: str
    text: str


@dataclass(frozen=True)
class Stream:
    """One task's requests, in order: the trace's k-th key asks the k-th of the shuffled texts."""

    task: str
    requests: list[Example]

    @property
    def distinct(self) -> list[str]:
        """The distinct questions, normalised, in order of first appearance."""
        return list(dict.fromkeys(normalized(example.text) for example in self.requests))


def normalized(text: str) -> str:
    """Return `text` as `normalize = ["nfkc", "whitespace"]` makes it, for key and model alike."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def build_stream(task: str, limit: int | None) -> Stream:
    """Give every key of the trace a test text of its own; `limit` cuts the trace (None: all)."""
    lines = gzip.decompress((DATA / "trace.jsonl.gz").read_bytes())
    keys = [line.key for line in msgspec.json.Decoder(TraceLine).decode_lines(lines)][:limit]
    examples = read_examples(f"{task}_test")
    random.Random(SEED).shuffle(examples)  # repeatable, not secret
    return Stream(task, [examples[key] for key in keys])


def write_input(stream: Stream, path: Path) -> None:
    """Write the input file of `askonce run`: one JSON object a line."""
    lines = [
        InputLine(id=f"{stream.task}-{i}", text=example.text)
        for i, example in enumerate(stream.requests)
    ]
    path.write_bytes(msgspec.json.Encoder().encode_lines(lines))
