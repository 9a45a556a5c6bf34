"""The text of each question: made up from its key, or taken from a file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from random import Random

import msgspec

from askonce_loadtest.workloads.lines import FileError, open_lines

MAX_TEXTS = 2_000_000
"""Texts of a file that are used; they are held in memory."""
_KEPT = 1 << 16
_VOCABULARY = (
    "account again app bank card charged code could customer delivery email error help hello how "
    "last lost money month my not number order password payment please refund reset seen still "
    "stolen thank transfer twice verify waiting week what when why with wrong your"
)
_WORDS = _VOCABULARY.split()

Texts = Callable[[int], str]
"""The text of a key; other keys have other texts."""


class _WithText(msgspec.Struct):
    """A line of a file of texts; its other fields do not matter."""

    text: str


def synthetic(words: int, seed: int) -> Texts:
    """Made-up texts of about `words` words (half to one and a half times as many)."""
    least, spread = max(1, words - words // 2), max(1, 2 * (words // 2) + 1)

    @functools.lru_cache(_KEPT)
    def text_of(key: int) -> str:
        random = hashlib.shake_128(f"{seed}:{key}".encode()).digest(2 + least + spread)
        length = least + int.from_bytes(random[:2], "big") % spread
        chosen = " ".join(_WORDS[byte % len(_WORDS)] for byte in random[2 : 2 + length])
        return f"{chosen} #{key}"

    return text_of


class FileTexts:
    """Texts of a file, shuffled by `seed`: key k has the k-th.

    A key beyond the last has a numbered variant of a text, so that no two keys have the same; how
    many such keys there were is in `variants`. Raises `FileError` for a file without texts.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self._texts = list(islice(dict.fromkeys(_texts_in(path)), MAX_TEXTS))
        if not self._texts:
            raise FileError(f"{path}: no texts; expected a text a line, or JSON lines with 'text'")
        Random(seed).shuffle(self._texts)
        self._varied: set[int] = set()

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def variants(self) -> int:
        """How many keys were given a variant of a text."""
        return len(self._varied)

    def __call__(self, key: int) -> str:
        """The text of `key`."""
        round_, place = divmod(key, len(self._texts))
        if not round_:
            return self._texts[place]
        self._varied.add(key)
        return f"{self._texts[place]} ({round_})"


def _texts_in(path: Path) -> Iterable[str]:
    plain = path.name.removesuffix(".gz").endswith(".txt")
    decode = msgspec.json.Decoder(_WithText).decode
    with open_lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = line.decode().strip() if plain else decode(line).text
            except (ValueError, msgspec.DecodeError) as error:
                raise FileError(f"{path}, line {number}: {error}") from error
            if text:
                yield text
