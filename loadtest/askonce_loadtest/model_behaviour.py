"""How the stand-in model server behaves: shares of faults and latencies, reproducible by seed."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist
from typing import Annotated, Literal, NamedTuple, get_args

import msgspec

Fault = Literal[
    "ok",                  # no fault: a good answer
    "status_400",          # the request is not one
    "status_429",          # with Retry-After, when the behaviour has one
    "status_500",
    "unauthorized",        # 401
    "quota",               # the account is used up: OpenAI's other 429, Anthropic's 402
    "overload",            # 503, 529 of Anthropic's, 429 of TEI's
    "stall",               # no answer until the client or the server goes
    "truncate",            # finish_reason = length
    "malformed",           # a complete response whose content is not the agreed JSON
    "cut",                 # the connection closes in the middle of the body
    "refuse",
    "content_filter",      # the answer was withheld
    "out_of_set",          # a label that was not offered
    "wrong_content_type",  # 200 with an HTML page
    "empty_choices",
]  # fmt: skip

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
MAX_LATENCY_MS = 3_600_000
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_LATENCY_MS)]
_FAULTS: tuple[Fault, ...] = get_args(Fault)[1:]
_NORMAL = NormalDist()
_SCALE = 2.0**-64


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server does to the calls it gets.

    `latency_ms` is the time to an answer, and with `latency_sigma` > 0 the median of a lognormal
    distribution with that shape. `slow` is the share of calls with `slow_latency_ms` instead, of
    the same shape: a bimodal distribution. With `latencies_ms` each call takes one of these, each
    as likely as the others, and nothing else is asked. `requests_per_minute` and
    `tokens_per_minute` (None: no limit) are enforced: see `model_limits.py`. Each fault has its
    share (0 to 1) of all calls, decided by `seed`, input and how often it was asked before.
    `retry_after_s` (seconds) goes with the 429s of `status_429`. Raises `ValueError` when the
    shares exceed 1 together (`msgspec.ValidationError` from JSON).
    """

    seed: int = 0
    latency_ms: Milliseconds = 0.0
    latency_sigma: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    slow: Share = 0.0
    slow_latency_ms: Milliseconds = 0.0
    latencies_ms: tuple[Milliseconds, ...] = ()
    requests_per_minute: Annotated[float, msgspec.Meta(gt=0)] | None = None
    tokens_per_minute: Annotated[float, msgspec.Meta(gt=0)] | None = None
    retry_after_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    status_400: Share = 0.0
    status_429: Share = 0.0
    status_500: Share = 0.0
    unauthorized: Share = 0.0
    quota: Share = 0.0
    overload: Share = 0.0
    stall: Share = 0.0
    truncate: Share = 0.0
    malformed: Share = 0.0
    cut: Share = 0.0
    refuse: Share = 0.0
    content_filter: Share = 0.0
    out_of_set: Share = 0.0
    wrong_content_type: Share = 0.0
    empty_choices: Share = 0.0

    def __post_init__(self) -> None:
        total = math.fsum(share for _, share in self.shares())
        if not 0 <= total <= 1:
            raise ValueError(f"the shares of all faults must be 0 to 1 together, not {total:g}")

    def shares(self) -> list[tuple[Fault, float]]:
        """Return each fault with its share, in a fixed order."""
        return [(fault, getattr(self, fault)) for fault in _FAULTS]


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
    return Turn(fault, _latency_ms(behaviour, digest) / 1000)


def _latency_ms(behaviour: Behaviour, digest: bytes) -> float:
    """The time to an answer, in ms; the digest is the chance."""
    quantile = (int.from_bytes(digest[8:], "big") + 0.5) * _SCALE
    if behaviour.latencies_ms:
        count = len(behaviour.latencies_ms)
        return behaviour.latencies_ms[min(count - 1, int(quantile * count))]
    median_ms = behaviour.latency_ms
    if behaviour.slow:
        chance = hashlib.blake2b(digest, digest_size=8).digest()  # none of those used above
        if int.from_bytes(chance, "big") * _SCALE < behaviour.slow:
            median_ms = behaviour.slow_latency_ms
    if not behaviour.latency_sigma or not median_ms:
        return median_ms
    normal = _NORMAL.inv_cdf(min(quantile, 1 - 2.0**-53))
    return median_ms * math.exp(behaviour.latency_sigma * normal)


def _fault_at(behaviour: Behaviour, point: float) -> Fault:
    """Return the fault whose share covers `point` (0 to 1), "ok" beyond them all."""
    reached = 0.0
    for fault, share in behaviour.shares():
        reached += share
        if point < reached:
            return fault
    return "ok"
