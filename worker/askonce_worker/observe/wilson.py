"""How far a share that was counted on a sample may be from the true one."""

from __future__ import annotations

import math


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of `hits` in `n`, as shares; (0, 1) when nothing was counted.

    `z` = 1.96 covers the true share in 95 % of samples. Source: E. B. Wilson, "Probable inference,
    the law of succession, and statistical inference", JASA 22 (1927).
    """
    if n <= 0:
        return 0.0, 1.0
    share, square = hits / n, z * z
    middle = share + square / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    low, high = (middle - half) / (1 + square / n), (middle + half) / (1 + square / n)
    return (0.0 if hits == 0 else max(0.0, low)), (1.0 if hits == n else min(1.0, high))
