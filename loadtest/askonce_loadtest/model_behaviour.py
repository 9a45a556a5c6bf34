"""How the stand-in model server behaves: shares of faults and latencies, reproducible by seed."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec

Fault = Literal[
    "ok",                  # no fault: a good answer
    "status_429",          # with Retry-After, when the behaviour has one
    "status_500",
    "stall",               # no answer until the client or the server goes
    "truncate",            # finish_reason = length
    "malformed",           # a complete response whose content is not the agreed JSON
    "cut",                 # the connection closes in the middle of the body
    "refuse",
    "out_of_set",          # a label that was not offered
    "wrong_content_type",  # 200 with an HTML page
    "empty_choices",
]  # fmt: skip

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_FAULTS: tuple[Fault, ...] = get_args(Fault)[1:]
_NORMAL = NormalDist()
_SCALE = 2.0**-64


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server does to the calls it gets.

    `latency_ms` is the time to an answer, and with `latency_sigma` > 0 the median of a lognormal
    distribution with that shape. Each fault has its share (0 to 1) of all calls, decided by
    `seed`, input and how often it was asked before. `retry_after_s` (seconds) goes with 429s.
    Raises `ValueError` when the shares exceed 1 together (`msgspec.ValidationError` from JSON).
    """

    seed: int = 0
    latency_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    latency_sigma: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    retry_after_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    status_429: Share = 0.0
    status_500: Share = 0.0
    stall: Share = 0.0
    truncate: Share = 0.0
    malformed: Share = 0.0
    cut: Share = 0.0
    refuse: Share = 0.0
    out_of_set: Share = 0.0
    wrong_content_type: Share = 0.0
    empty_choices: Share = 0.0

    def __post_init__(self) -> None:
        total = math.fsum(share for _, share in self.shares())
        if not 0 <= total <= 1:
            raise ValueError(f"the shares of all faults must be 0 to 1 together, not {total:g}")

    def shares(self) -> list[tuple[Fault, float]]:
        """Return each fault with its share, in a fixed order."""
        return [
            ("status_429", self.status_429),
            ("status_500", self.status_500),
            ("stall", self.stall),
            ("truncate", self.truncate),
            ("malformed", self.malformed),
            ("cut", self.cut),
            ("refuse", self.refuse),
            ("out_of_set", self.out_of_set),
            ("wrong_content_type", self.wrong_content_type),
            ("empty_choices", self.empty_choices),
        ]


class Turn(NamedTuple):
    """What one call gets: a fault (or "ok"), after a latency in seconds."""

    fault: Fault
    latency_s: float


def turn_of(behaviour: Behaviour, text: str, asked_before: int, scripted: Fault | None) -> Turn:
    """Return what the call number `asked_before` + 1 of `text` gets. Pure: the seed is the chance.

    A `scripted` fault takes precedence over the shares; the latency is the same either way.
    """
    digest = hashlib.blake2b(
        f"{behaviour.seed}:{asked_before}:{text}".encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()
    fault = scripted or _fault_at(behaviour, int.from_bytes(digest[:8], "big") * _SCALE)
    latency_s = behaviour.latency_ms / 1000
    if behaviour.latency_sigma and latency_s:
        quantile = (int.from_bytes(digest[8:], "big") + 0.5) * _SCALE
        normal = _NORMAL.inv_cdf(min(quantile, 1 - 2.0**-53))
        latency_s *= math.exp(behaviour.latency_sigma * normal)
    return Turn(fault, latency_s)


def _fault_at(behaviour: Behaviour, point: float) -> Fault:
    """Return the fault whose share covers `point` (0 to 1), "ok" beyond them all."""
    reached = 0.0
    for fault, share in behaviour.shares():
        reached += share
        if point < reached:
            return fault
    return "ok"
