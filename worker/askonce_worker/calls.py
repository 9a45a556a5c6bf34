"""Flying: a leased flight asks its model, again while that makes sense, and hands the answer on.

The attempt budget is the key's, not the process's: every attempt is counted in the store, so a
question that fails everywhere is not asked `processes × attempts` times.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Literal, NamedTuple

import msgspec
import structlog

from askonce_queue.answer_scripts import Release
from askonce_queue.errors import StoreUnavailable
from askonce_queue.reply import Answer, ErrorInfo
from askonce_worker.cache.entry import encode_body, encode_json
from askonce_worker.cache.store_tier import StoreTier
from askonce_worker.flights import Flight, FlightEnd
from askonce_worker.landing import Landing
from askonce_worker.leases import Leases
from askonce_worker.models.batching import NotAsked, Part
from askonce_worker.models.protocol import ModelFailure, Question, Rejection, TransientFailure
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.fields import of_lane
from askonce_worker.tasks import Task

REMEMBER_ATTEMPTS_S = 60.0

log = structlog.get_logger("askonce.calls")


class Call(NamedTuple):
    """One call of a model, why it is made, and which tenant and lane pay: the first asker's.

    `granted_until`: its lease's first end, if any. `apart`: it shares no request with others,
    because it may be what made an earlier one fail.
    """

    task: Task
    key: bytes
    question: Question
    reason: str
    attempt: int
    began: float
    granted_until: float
    payer: str
    lane: str
    apart: bool = False

    @classmethod
    def of(cls, flight: Flight, reason: str, *, apart: bool = False) -> Call:
        """The next call of a flight."""
        return cls(
            flight.task,
            flight.key,
            flight.question,
            reason,
            flight.attempt,
            flight.began,
            flight.granted_until,
            flight.asks[0].tenant if flight.asks else "",
            flight.asks[0].lane if flight.asks else "",
            apart,
        )


class OverBudget(Rejection):
    """The task has spent what it may spend today. Of the question that says nothing."""

    @classmethod
    def of(cls, task: Task) -> OverBudget:
        """For a task that is over its budget."""
        return cls("budget_exceeded", task.budget.refusal if task.budget is not None else "")


class NewAnswer(NamedTuple):
    """An answer that can be replied and kept: encoded both ways, before anybody relies on it.

    `cost_nano`: what its call cost, in billionths.
    """

    answer: Answer
    json: msgspec.Raw
    body: bytes
    cost_nano: int


class Calls:
    """Asks models on behalf of flights.

    `answered` takes the answer of a flight; `ask_again` takes a flight back whose lease was lost
    before it had an answer, `step_back` one whose model may not be asked now.
    """

    def __init__(
        self,
        tier: StoreTier,
        rng: random.Random,
        *,
        leases: Leases,
        landing: Landing,
        counters: Counters,
        answered: Callable[[Flight, NewAnswer], None],
        ask_again: Callable[[Flight], None],
        step_back: Callable[[Flight], None],
    ) -> None:
        self._tier = tier
        self._rng = rng
        self._leases = leases
        self._landing = landing
        self._counters = counters
        self._answered = answered
        self._ask_again = ask_again
        self._step_back = step_back

    async def fly(self, flight: Flight) -> None:
        """Ask until there is an answer or a reason to stop; never raises but for cancellation."""
        alone = flight.token is None
        reason = _reason(flight)
        apart = flight.attempt > 1

        def wanted() -> bool:
            return not self._landing.tell_late(flight)

        while await flight.task.backend.admit():
            if not wanted():
                await self._abandon(flight)
                return
            try:
                answer = await self.ask(Call.of(flight, reason, apart=apart), wanted)
            except NotAsked as waited:
                if waited.begun:  # and rejected among others: it goes on by itself
                    reason, flight.asked, apart = "retry", True, True
            except Rejection as failure:
                await self._reject(flight, failure, _remember_s(flight.task, failure))
                return
            except TransientFailure as failure:
                if not await self._ready_for_retry(flight, failure, alone=alone):
                    return
                reason, flight.asked = "retry", True
                apart = failure.code != "rate_limited"
            else:
                self._answered(flight, answer)
                return
        await self._give_way(flight)

    async def _ready_for_retry(
        self, flight: Flight, failure: TransientFailure, *, alone: bool
    ) -> bool:
        """Wait for the next attempt; False when there is none, and the flight was seen to."""
        task = flight.task
        if task.backend.outage or flight.goes_elsewhere:
            await self._give_way(flight, forgiven=True)
            return False
        if flight.attempt >= task.retry.max_attempts:
            await self._reject(flight, failure, task.remember_exhausted_s)
            return False
        delay_s = task.retry.delay_s(flight.attempt, failure.retry_after_s, self._rng)
        if await task.backend.pause(delay_s):
            await self._give_way(flight, forgiven=True)
            return False
        if not await self._may_try_again(flight, alone=alone):
            self._ask_again(flight)
            return False
        return True

    async def ask(self, call: Call, wanted: Callable[[], bool] = lambda: True) -> NewAnswer:
        """Ask a model once that has admitted it (`Backend.admit`), counted and logged.

        `wanted` is asked when the call begins, which may be later. Raises `ModelFailure`, and
        `NotAsked` if the model may not be asked by then, or it is not wanted.
        """
        task, reason = call.task, call.reason
        if task.over_budget:
            raise OverBudget.of(task)
        cost_nano = ticket = 0
        outcome: Answer | ModelFailure | None = None

        def begins() -> bool:
            nonlocal ticket
            if not wanted():
                return False
            self._note(call)
            ticket = task.backend.began()
            begin_timing()
            return True

        part = Part(alone=call.apart, begins=begins)
        try:
            with self._counters.model_call(task.backend.name) as begin_timing:
                outcome = answer = await _in_a_task_of_its_own(
                    task.backend.ask(task.prompt, call.question, part)
                )
        except NotAsked:
            raise
        except ModelFailure as failure:
            outcome = failure
            self._counters.count(task.name, f"failures_{failure.code}")
            log.info(
                "model call failed",
                task=task.name,
                model=task.backend.name,
                reason=reason,
                attempt=call.attempt,
                code=failure.code,
                error=failure.message,
            )
            raise
        except Exception as error:
            # A fault of a model's own code must not take its worker along.
            self._counters.count(task.name, "failures_model_failed")
            log.exception("model raised", task=task.name, model=task.backend.name)
            outcome = TransientFailure("model_failed", f"{type(error).__name__}: {error}")
            raise outcome from error
        finally:
            # What has failed is one request, whatever was asked in it.
            beside = isinstance(outcome, TransientFailure) and not part.requests
            if part.begun:
                task.backend.ended(None if beside else outcome, call.key, ticket)
            if part.requests:
                self._counters.count(task.name, "model_requests", part.requests)
            cost_nano += self._paid(call, calls=part.share)
        if answer.usage is not None:
            tokens = (answer.usage.input_tokens, answer.usage.output_tokens)
            cost_nano += self._paid(call, calls=0, tokens=tokens)
        return self._encoded(task, answer, cost_nano)

    def _encoded(self, task: Task, answer: Answer, cost_nano: int) -> NewAnswer:
        """The answer, as it is sent and kept. Raises `Rejection`."""
        try:
            return NewAnswer(answer, encode_json(answer), encode_body(answer), cost_nano)
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as error:
            self._counters.count(task.name, "failures_unparsable")
            not_json = TypeError(f"the answer is not JSON: {error}")
            raise Rejection("unparsable", str(not_json)) from not_json

    def _note(self, call: Call) -> None:
        """Count and log a call that begins."""
        task = call.task
        self._counters.count(task.name, "model_calls")
        self._counters.count(task.name, f"calls_{call.reason}")
        if call.lane:
            self._counters.count(task.name, of_lane(call.lane, "calls"))
        # Before the call: a worker that dies in it has still said why it was made.
        log.debug(
            "model call",
            task=task.name,
            key=call.key.hex(),
            reason=call.reason,
            attempt=call.attempt,
            began=call.began,
            granted_until=call.granted_until,
        )

    def _paid(self, call: Call, *, calls: float, tokens: tuple[int, int] = (0, 0)) -> int:
        """Count what a call cost, for its task, tenant and lane; return that, in billionths."""
        task = call.task
        self._counters.paid(
            task.name, task.price, call.payer, lane=call.lane, calls=calls, tokens=tokens
        )
        cost_nano = task.price.nano(calls, *tokens)
        if task.budget is not None:
            task.budget.spend(cost_nano)
        return cost_nano

    async def _may_try_again(self, flight: Flight, *, alone: bool) -> bool:
        """Count the next attempt where everyone can see it; False when the lease was lost."""
        if alone:
            flight.attempt += 1
            return True
        if flight.token is None:
            flight.attempt += 1
            return False
        try:
            attempt = await self._tier.note_attempt(
                flight.shard, flight.key, flight.token, flight.attempt, REMEMBER_ATTEMPTS_S
            )
        except StoreUnavailable:
            flight.attempt += 1
            return True
        if attempt == 0:
            self._leases.lose(flight)
            flight.attempt += 1
            return False
        flight.attempt = attempt
        return True

    async def _reject(self, flight: Flight, failure: ModelFailure, remember_s: float) -> None:
        """Remember the failure for other processes, then tell everyone who waits here."""
        error = ErrorInfo(failure.code, failure.message)
        if flight.token is not None:
            remember = Release(
                flight.key,
                flight.token,
                "R" if remember_s > 0 else "",
                int(remember_s * 1000),
                msgspec.json.encode(error),
            )
            await self._release(flight, remember)
        if flight.taken_over and flight.spare is None and remember_s > 0 and flight.wants_spare:
            # Who takes a lease over is told of no answer that may stand in: the look-up tells.
            flight.taken_over = False
            self._ask_again(flight)
            return
        match failure:
            case OverBudget():
                end = FlightEnd.OVER_BUDGET
            case Rejection():
                end = FlightEnd.REJECTED
            case _:
                end = FlightEnd.EXHAUSTED
        cause = failure.__cause__ if isinstance(failure.__cause__, Exception) else failure
        self._landing.fail(flight, error, end, cause)

    async def _abandon(self, flight: Flight) -> None:
        """Let others lead: all who waited here have passed their deadlines."""
        if flight.token is not None:
            await self._release(flight, Release(flight.key, flight.token))
        if flight.asks:  # somebody has come meanwhile
            self._ask_again(flight)
        else:
            self._landing.abandon(flight)

    async def _give_way(self, flight: Flight, *, forgiven: bool = False) -> None:
        """Wait for room at the model without slot and lease; `forgiven`: as if never asked."""
        task = flight.task
        self._counters.count(task.name, "given_way")
        if forgiven:
            flight.attempt, flight.asked = 1, True
        if flight.token is not None:
            kind: Literal["", "A"] = "A" if flight.asked and flight.attempt == 1 else ""
            remember_ms = int(REMEMBER_ATTEMPTS_S * 1000)
            await self._release(flight, Release(flight.key, flight.token, kind, remember_ms))
        self._step_back(flight)

    async def _release(self, flight: Flight, release: Release) -> None:
        self._leases.drop(flight)
        flight.token = None
        try:
            await self._tier.release(flight.shard, [release])
        except StoreUnavailable:
            log.warning("a lease could not be given back: it runs out", task=flight.task.name)


def _reason(flight: Flight) -> str:
    """Why the model is asked the first time."""
    if flight.asked and not flight.takeover:
        return "retry"
    if flight.token is None or not flight.may_keep:
        return "bypass"
    if flight.takeover:
        return "takeover"
    return "refresh" if flight.refresh or flight.spare is not None else "fill"


def _remember_s(task: Task, failure: Rejection) -> float:
    """How long others are told of it without asking themselves."""
    if isinstance(failure, OverBudget):
        return 0
    # A wrong key is no property of the question: it may be mended at any moment.
    ours = failure.code in {"unauthorized", "quota_exceeded"}
    return task.remember_exhausted_s if ours else task.remember_rejection_s


async def _in_a_task_of_its_own(call: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a model's code where it can cancel nothing but itself; it is cancelled with us."""
    task = asyncio.create_task(call)
    try:
        return await task
    except asyncio.CancelledError:
        this = asyncio.current_task()
        if task.cancelled() and this is not None and not this.cancelling():
            raise TransientFailure("model_failed", "the model cancelled itself") from None
        raise
