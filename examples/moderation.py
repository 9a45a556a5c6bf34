"""Is a tweet hate speech, offensive, or neither? The Davidson et al. tweets, by naive Bayes.

Used from a configuration as `call = "examples.moderation:classify"`.
"""

from __future__ import annotations

from examples.naive_bayes import NaiveBayes, TrainedOnce, Verdict, read_examples, train


def _train() -> NaiveBayes:
    # Chosen by 4-fold cross-validation on the training split: accuracy first, then log loss.
    return train(read_examples("moderation_train"), longest=1, alpha=0.2, temperature=2.5)


model = TrainedOnce(_train)
"""Returns the model; the first call in a process trains it."""


def classify(text: str) -> Verdict:
    """Return the label of `text` and its probability, 0 to 1. Safe to call from any thread."""
    return model().classify(text)
