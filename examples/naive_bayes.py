"""Multinomial naive Bayes over word n-grams, in plain Python: the model that the examples ask.

The textbook score of a label is `log P(label) + Σ log((count + alpha) / (total + alpha * V))`, over
the n-grams of a text (Manning, Raghavan & Schütze, *Introduction to Information Retrieval*, 2008,
chapter 13). Most n-grams never occur with most labels, so it is computed as what a count of zero
gives plus a gain `log(1 + count / alpha)` where it is not zero: the same, from a sparse table.
"""

from __future__ import annotations

import gzip
import math
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import msgspec

DATA = Path(__file__).resolve().parent / "data"

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


class Example(msgspec.Struct, frozen=True):
    """One labelled text: a line of a data file."""

    text: str
    label: str


class Verdict(TypedDict):
    """What a Python model returns to askonce: a label and its probability, 0 to 1."""

    label: str
    score: float


def read_examples(name: str) -> list[Example]:
    """Read `examples/data/{name}.jsonl.gz`, in file order.

    Raises `FileNotFoundError`, or `msgspec.DecodeError` for a line that is not an `Example`.
    """
    lines = gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes())
    return msgspec.json.Decoder(Example).decode_lines(lines)


def ngrams(text: str, longest: int) -> list[str]:
    """Return the word 1- to `longest`-grams of `text`, case-folded, with the edges of the text."""
    words = _WORD.findall(text.casefold())
    found = list(words)
    padded = ["<", *words, ">"]
    for length in range(2, longest + 1):
        found += [" ".join(padded[i : i + length]) for i in range(len(padded) - length + 1)]
    return found


@dataclass(frozen=True, slots=True)
class NaiveBayes:
    """A trained model. Immutable, so any number of threads may ask it at once.

    `labels`, `priors` (log) and `zeros` (the log score of an n-gram never seen with the label) are
    parallel; `gains` maps an n-gram to (label index, what it adds to `zeros`). `temperature` (> 0)
    divides the scores: n-grams are not independent, so the raw probabilities are too sure.
    """

    labels: tuple[str, ...]
    priors: tuple[float, ...]
    zeros: tuple[float, ...]
    gains: dict[str, tuple[tuple[int, float], ...]]
    longest: int
    temperature: float

    def classify(self, text: str) -> Verdict:
        """Return the likeliest label and its probability.

        Of a text without any known n-gram nothing is known: it gets the commonest label.
        """
        scores = self.log_scores(text)
        best = max(scores)
        total = sum(math.exp((score - best) / self.temperature) for score in scores)
        return {"label": self.labels[scores.index(best)], "score": 1.0 / total}

    def log_scores(self, text: str) -> list[float]:
        """Return the log score of each label, shape (labels,), up to a shared constant."""
        known = [gains for n in ngrams(text, self.longest) if (gains := self.gains.get(n))]
        count = len(known)
        scores = [p + count * z for p, z in zip(self.priors, self.zeros, strict=True)]
        for gains in known:
            for label, gain in gains:
                scores[label] += gain
        return scores


def train(
    examples: Sequence[Example], *, longest: int, alpha: float, temperature: float
) -> NaiveBayes:
    """Count n-grams up to `longest` words in `examples` (at least one), smoothed by `alpha` (> 0).

    Raises `ValueError` without examples. The result does not depend on anything but the arguments.
    """
    if not examples:
        raise ValueError("naive Bayes needs at least one example")
    documents = Counter(example.label for example in examples)
    labels = tuple(sorted(documents))
    index = {label: i for i, label in enumerate(labels)}
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    totals = [0] * len(labels)
    for example in examples:
        label = index[example.label]
        found = ngrams(example.text, longest)
        totals[label] += len(found)
        for ngram in found:
            counts[ngram][label] += 1
    return NaiveBayes(
        labels=labels,
        priors=tuple(math.log(documents[label] / len(examples)) for label in labels),
        zeros=tuple(math.log(alpha / (total + alpha * len(counts))) for total in totals),
        gains={ngram: _gains(by_label.items(), alpha) for ngram, by_label in counts.items()},
        longest=longest,
        temperature=temperature,
    )


def _gains(counts: Iterable[tuple[int, int]], alpha: float) -> tuple[tuple[int, float], ...]:
    return tuple((label, math.log1p(count / alpha)) for label, count in counts)


class TrainedOnce:
    """A model that the first thread to ask trains, once a process, while the others wait for it."""

    def __init__(self, train_it: Callable[[], NaiveBayes]) -> None:
        self._train_it = train_it
        self._lock = threading.Lock()
        self._model: NaiveBayes | None = None

    def __call__(self) -> NaiveBayes:
        """Return the model. Raises what the training raises; the next call tries again."""
        if self._model is None:
            with self._lock:
                if self._model is None:
                    self._model = self._train_it()
        return self._model
