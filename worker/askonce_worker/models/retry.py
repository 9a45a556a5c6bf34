"""How long to wait before the next attempt at a model: exponential backoff with full jitter.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Full jitter
(uniform between zero and the exponential ceiling) made the fewest calls of the variants compared
there. Attempts are counted per cache key, not per process, so this holds no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

_MAX_DOUBLINGS = 64
"""Beyond this many doublings any `base_s` has long reached `cap_s`, and floats would overflow."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a question may be put to a model, and how far apart.

    `max_attempts` counts the first attempt too. `base_s` and `cap_s` bound the jitter in seconds;
    `retry_after_cap_s` bounds how long an API can make us wait by its Retry-After. Raises
    `ValueError` for values that cannot be meant.
    """

    max_attempts: int = 4
    base_s: float = 0.25
    cap_s: float = 8.0
    retry_after_cap_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, not {self.max_attempts}")
        if not 0 < self.base_s <= self.cap_s:
            raise ValueError(f"0 < base_s <= cap_s must hold, not {self.base_s} and {self.cap_s}")
        if self.retry_after_cap_s < 0:
            raise ValueError(f"retry_after_cap_s must not be negative: {self.retry_after_cap_s}")

    def delay_s(self, attempt: int, retry_after_s: float | None, rng: Random) -> float:
        """Return the seconds to wait after `attempt` attempts have failed (1 after the first).

        Without `retry_after_s`: uniform in [0, min(cap_s, base_s * 2^(attempt - 1))]. With it, the
        same jitter comes on top of min(retry_after_s, retry_after_cap_s): never earlier than the
        API asked (up to the cap), and not everybody at the same instant.
        """
        doublings = min(max(attempt - 1, 0), _MAX_DOUBLINGS)
        jitter_s = rng.uniform(0.0, min(self.cap_s, self.base_s * 2.0**doublings))
        if retry_after_s is None:
            return jitter_s
        return min(max(retry_after_s, 0.0), self.retry_after_cap_s) + jitter_s
