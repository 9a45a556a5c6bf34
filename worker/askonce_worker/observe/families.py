"""Which counters make which metric: what is counted where it happens, as Prometheus shows it.

Every value that a label can have stands here, so each is there from the start, at 0, and the first
event shows in a rate. Counters that are not here are not shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from askonce_queue.queue_scripts import LANES
from askonce_worker.observe.money import NANO


class Family(NamedTuple):
    """One metric of several counters.

    `counters` maps the name under which something is counted to the value of `label`; without a
    label it is the one name.
    """

    name: str
    help: str
    counters: Mapping[str, str]
    label: str = ""
    by: tuple[str, ...] = ("task",)
    """The labels before that one."""
    parts: int = 1
    """What is counted is such a part of what is shown."""


def _each(prefix: str, *values: str) -> dict[str, str]:
    return {f"{prefix}{value}": value for value in values}


BY_TASK = (
    Family(
        "askonce_hits",
        "Asks answered without a model call of their own, by where the answer came from.",
        _each("", "memory", "store", "coalesced", "stale"),
        label="source",
    ),
    Family(
        "askonce_misses",
        "Asks answered by a model call of their own.",
        {"model": ""},
    ),
    Family(
        "askonce_errors",
        "Asks that got an error instead of an answer.",
        {"errors": ""},
    ),
    Family(
        "askonce_deadlines_exceeded",
        "Asks whose deadline passed before there was an answer; they are among the errors.",
        {"expired": ""},
    ),
    Family(
        "askonce_waits",
        "Asks that joined a question in progress, here or in another process.",
        {"waits": ""},
    ),
    Family(
        "askonce_flights",
        "Questions in progress that ended, by how they ended.",
        _each(
            "flights_",
            *("hit", "filled", "fenced", "merged", "invalidated", "unkept"),
            *("unadmitted", "not_cached", "rejected", "exhausted", "deferred", "expired"),
            *("no_store", "over_budget", "redirected"),
        ),
        label="end",
    ),
    Family(
        "askonce_model_calls",
        "Model calls, retries included, by why they were made.",
        _each("calls_", "fill", "retry", "takeover", "refresh", "bypass", "verify"),
        label="reason",
        by=("task", "model"),
    ),
    Family(
        "askonce_model_errors",
        "Model calls that gave no answer, by error code.",
        _each(
            "failures_",
            *("timeout", "unavailable", "rate_limited", "model_failed"),
            *("refused", "truncated", "unparsable", "out_of_set", "rejected"),
            *("unauthorized", "quota_exceeded"),
        ),
        label="code",
        by=("task", "model"),
    ),
    Family(
        "askonce_model_requests",
        "Requests made of models: fewer than calls where several questions go in one.",
        {"model_requests": ""},
        by=("task", "model"),
    ),
    Family(
        "askonce_flights_given_way",
        "Questions that went back to wait because their model could not be asked.",
        {"given_way": ""},
    ),
    Family(
        "askonce_takeovers",
        "Questions asked again because the worker that had asked them died or was too slow.",
        {"calls_takeover": ""},
    ),
    Family(
        "askonce_leases_lost",
        "Fill leases that were lost before their answer could be kept.",
        {"leases_lost": ""},
    ),
    Family(
        "askonce_fills_fenced",
        "Answers that were replied and not kept, because their lease was lost.",
        {"flights_fenced": ""},
    ),
    Family(
        "askonce_shadow_checks",
        "Hits that were to be held against a fresh answer, by what came of it.",
        _each("verify_", "agree", "differ", "void", "dropped"),
        label="verdict",
    ),
    Family(
        "askonce_shadow_replacements",
        "Stored answers that differed from a fresh one and gave way to it.",
        {"verify_replaced": ""},
    ),
    Family(
        "askonce_age_limits",
        "Changes of how old an answer may be (max_disagreement).",
        _each("limits_", "set", "off", "lifted"),
        label="change",
    ),
    Family(
        "askonce_fills",
        "Answers written to the store.",
        {"fills": ""},
    ),
    Family(
        "askonce_first_reads",
        "Stored answers that somebody was served from for the first time, told by this worker.",
        {"first_reads": ""},
    ),
    Family(
        "askonce_tokens",
        "Tokens of model calls, as far as their API reports them.",
        {"input_tokens": "input", "output_tokens": "output"},
        label="direction",
        by=("task", "model"),
    ),
    Family(
        "askonce_tokens_saved",
        "Tokens of the calls whose answers were used again.",
        {"saved_input_tokens": "input", "saved_output_tokens": "output"},
        label="direction",
        by=("task", "model"),
    ),
    Family(
        "askonce_cost_spent",
        "What model calls cost, in the currency of the configured prices.",
        {"spent_nano": ""},
        by=("task", "model"),
        parts=NANO,
    ),
    Family(
        "askonce_lane_calls",
        "Model calls by the lane whose job was the first to ask, retries included.",
        {f"lane_{lane}_calls": lane for lane in LANES},
        label="lane",
    ),
    Family(
        "askonce_lane_tokens_input",
        "Tokens of input of these calls.",
        {f"lane_{lane}_input_tokens": lane for lane in LANES},
        label="lane",
    ),
    Family(
        "askonce_lane_tokens_output",
        "Tokens of output of these calls.",
        {f"lane_{lane}_output_tokens": lane for lane in LANES},
        label="lane",
    ),
    Family(
        "askonce_lane_cost_spent",
        "What these calls cost, in the currency of the configured prices.",
        {f"lane_{lane}_spent_nano": lane for lane in LANES},
        label="lane",
        parts=NANO,
    ),
    Family(
        "askonce_fallbacks",
        "Asks that waited for the task's fallback, because its model was unavailable.",
        {"fallbacks": ""},
    ),
    Family(
        "askonce_cost_avoided",
        "What the calls had cost whose answers were used again, in the same currency.",
        {"avoided_nano": ""},
        by=("task", "model"),
        parts=NANO,
    ),
)
BY_WORKER = (
    Family(
        "askonce_deliveries",
        "Deliveries of jobs to this worker that ended, by how they ended.",
        _each("jobs_", "settled", "buried", "returned", "deferred", "reclaimed"),
        label="end",
        by=(),
    ),
    Family(
        "askonce_deliveries_reclaimed",
        "Deliveries taken over from workers that died or drained.",
        {"deliveries_reclaimed": ""},
        by=(),
    ),
    Family(
        "askonce_dead_letters_dropped",
        "Dead letters that gave way to newer ones (max_dead).",
        {"dead_letters_dropped": ""},
        by=(),
    ),
    Family(
        "askonce_logged_hits_dropped",
        "Hits logged for review that gave way to newer ones (max_hits), or could not be written.",
        {"hits_dropped": ""},
        by=(),
    ),
)
