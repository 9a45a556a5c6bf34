"""Opt-in normalisation: steps that make texts equal which a task declares to mean the same.

Nothing is on by default, because case and spelling can change the answer to a question of
moderation, sentiment or language. The normalised text is what the cache key covers *and* what the
model receives, so an answer always belongs to the very text that was asked.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from askonce_queue.errors import ConfigError


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _whitespace(text: str) -> str:
    return " ".join(text.split())


STEPS: dict[str, Callable[[str], str]] = {
    "nfc": _nfc,
    "nfkc": _nfkc,
    "whitespace": _whitespace,
    "casefold": str.casefold,
}
"""The steps a task may name: canonical composition (Unicode form NFC) · compatibility composition
(NFKC: full width, ligatures and such become plain letters) · every run of Unicode white space
becomes one space, none at the ends · full case folding (Unicode, `str.casefold`)."""


def normalizer(steps: Sequence[str]) -> Callable[[str], str] | None:
    """Return one function that applies `steps` in the written order; None when there are none.

    Raises `ConfigError` for an unknown step.
    """
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise ConfigError(
            f"unknown normalisation step {unknown[0]!r}: choose from {', '.join(STEPS)}"
        )
    functions = tuple(STEPS[step] for step in steps)
    if not functions:
        return None
    if len(functions) == 1:
        return functions[0]

    def normalize(text: str) -> str:
        for function in functions:
            text = function(text)
        return text

    return normalize
