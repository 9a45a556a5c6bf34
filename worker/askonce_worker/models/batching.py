"""Micro-batching: questions that are ready together go in one request, each with its own outcome.

A question waits for others of its kind for `wait_s`, or until there are `size` of them. A request
belongs to no caller: who leaves takes nobody along, and it is cancelled when all have left.

One bad input must not condemn its neighbours:

- a result that is no answer fails its own question only;
- a request that is rejected as a whole (a 4xx, a reply that fits no question) is asked again in
  halves, down to single questions: at most 2n - 1 requests for n questions, and about 2 log2 n
  where one of them is to blame;
- a request that fails transiently fails all its questions. What is asked again after that is asked
  alone (`Part.alone`), unless the API merely wanted it later (429).

What limits the model limits requests: each waits for its turn right before it begins, and who is
not wanted any more by then is not in it (`Watcher`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from askonce_queue.errors import ConfigError
from askonce_queue.reply import Answer
from askonce_worker.models.protocol import (
    Model,
    ModelFailure,
    Prompt,
    Question,
    Rejection,
    TransientFailure,
)

Outcome = Answer | ModelFailure
_EVERYBODYS = frozenset({"unauthorized", "quota_exceeded"})
"""Rejections that no question is to blame for: each of them alone would fare the same."""


class NotAsked(Exception):
    """No request was made, because the model may not be asked now, or the question need not be.

    `begun`: one was made before, which was rejected as a whole.
    """

    def __init__(self, *, begun: bool = False) -> None:
        super().__init__("no request was made")
        self.begun = begun


class Part:
    """A question's part in the requests that were made for it.

    `alone`: it is to share none. `begins` is called when the first of them begins; False: it is not
    to be in it. `share` sums up 1 / n for each request of n questions; `requests` counts those in
    which it was the first: over all questions, these are all requests.
    """

    __slots__ = ("_begins", "alone", "begun", "requests", "share")

    def __init__(self, *, alone: bool = False, begins: Callable[[], bool] = lambda: True) -> None:
        self.alone = alone
        self._begins = begins
        self.begun = False
        self.requests = 0
        self.share = 0.0

    def goes(self) -> bool:
        """A request begins now; whether this one is in it."""
        self.begun = self.begun or self._begins()
        return self.begun

    def joins(self, questions: int, *, first: bool) -> None:
        """A request of so many questions is made."""
        self.requests += first
        self.share += 1 / questions


class ManyModel(Model, Protocol):
    """A model that can be asked several questions in one request."""

    def group(self, question: Question) -> Hashable | None:
        """What must be equal in one request, beside the prompt; None: it has to be asked alone."""
        ...

    async def ask_many(self, prompt: Prompt, questions: Sequence[Question]) -> Sequence[Outcome]:
        """Return one outcome a question, in order.

        Raises the `ModelFailure` of the request as a whole.
        """
        ...


class Watcher(Protocol):
    """Who is asked before each request, and told of it."""

    async def admit(self, *, again: bool) -> bool:
        """Wait until a request may begin, which is to follow without an await between.

        `again`: of questions that were in one already. False: the model may not be asked now.
        """
        ...

    def began(self) -> None:
        """A request begins."""
        ...

    def ended(self, outcome: Outcome | None) -> None:
        """A request has ended, once for each `began`; None: it was cancelled.

        Of one with answers it is an answer, of one without any a failure.
        """
        ...


class _Unwatched:
    """Nobody wants to be asked or told."""

    async def admit(self, *, again: bool) -> bool:
        del again
        return True

    def began(self) -> None:
        pass

    def ended(self, outcome: Outcome | None) -> None:
        pass


class _Seat(NamedTuple):
    """One question on its way, and where its outcome is awaited."""

    question: Question
    part: Part
    outcome: asyncio.Future[Outcome | Exception]

    def land(self, outcome: Outcome | Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class _Batch:
    """Questions that go together. `task` is there once it is on its way, `timer` until then."""

    __slots__ = ("key", "prompt", "seats", "task", "timer")

    def __init__(self, key: Hashable, prompt: Prompt) -> None:
        self.key = key
        self.prompt = prompt
        self.seats: list[_Seat] = []
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None


class BatchedModel:
    """Asks a `ManyModel` in batches; implements `Model`. Belongs to one event loop.

    `size` bounds the questions of a request, `wait_s` how long the first of them waits for others.
    Raises `ConfigError` for bounds that cannot be meant.
    """

    def __init__(self, model: ManyModel, *, size: int, wait_s: float) -> None:
        if size < 1 or wait_s < 0:
            raise ConfigError(f"size must be >= 1 and wait_s >= 0, not {size} and {wait_s}")
        self._model = model
        self.size = size
        self._wait_s = wait_s
        self._waiting: dict[Hashable, _Batch] = {}
        self._flying: set[_Batch] = set()
        self.watcher: Watcher = _Unwatched()

    async def ask(self, prompt: Prompt, question: Question, part: Part | None = None) -> Answer:
        """See `Model.ask`; `part` tells afterwards which requests that took.

        Raises `NotAsked`, too.
        """
        part = part or Part()
        loop = asyncio.get_running_loop()
        seat = _Seat(question, part, loop.create_future())
        batch = self._board(prompt, seat)
        try:
            outcome = await seat.outcome
        except asyncio.CancelledError:
            self._leave(batch, seat)
            raise
        if isinstance(outcome, Answer):
            return outcome
        raise outcome

    async def check(self) -> str:
        """See `Model.check`."""
        return await self._model.check()

    async def aclose(self) -> None:
        """Cancel what is on its way; who still waits for it gets a failure."""
        for batch in list(self._waiting.values()):
            self._take_off(batch)
        tasks = [batch.task for batch in self._flying if batch.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._model.aclose()

    def _board(self, prompt: Prompt, seat: _Seat) -> _Batch:
        """Find the question a batch: one that waits, or one of its own."""
        kind = None if seat.part.alone else self._model.group(seat.question)
        key = (id(prompt), kind)  # the prompt lives at least as long as its batch
        batch = self._waiting.get(key) if kind is not None else None
        if batch is None:
            batch = _Batch(key, prompt)
            if kind is not None and self.size > 1:
                loop = asyncio.get_running_loop()
                batch.timer = loop.call_later(self._wait_s, self._take_off, batch)
                self._waiting[key] = batch
        batch.seats.append(seat)
        if batch.timer is None or len(batch.seats) >= self.size:
            self._take_off(batch)
        return batch

    def _take_off(self, batch: _Batch) -> None:
        """Nobody joins any more."""
        self._stop_waiting(batch)
        self._flying.add(batch)
        batch.task = asyncio.create_task(self._settle(batch.prompt, batch.seats))
        batch.task.add_done_callback(partial(self._landed, batch))

    def _stop_waiting(self, batch: _Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
            del self._waiting[batch.key]

    def _leave(self, batch: _Batch, seat: _Seat) -> None:
        """Nobody waits for this question any more."""
        if batch.task is None:
            batch.seats.remove(seat)
            if not batch.seats:
                self._stop_waiting(batch)
        elif all(other.outcome.done() for other in batch.seats):
            batch.task.cancel()

    def _landed(self, batch: _Batch, _: asyncio.Task[None]) -> None:
        """Its task has ended, perhaps before it began."""
        self._flying.discard(batch)
        for seat in batch.seats:  # none is left, unless it was cancelled
            seat.land(TransientFailure("model_failed", "the request was cancelled"))

    async def _settle(self, prompt: Prompt, seats: Sequence[_Seat]) -> None:
        """Give every question that somebody still waits for its outcome."""
        seats = [seat for seat in seats if not seat.outcome.done()]
        if not seats:
            return
        admitted = await self.watcher.admit(again=seats[0].part.begun)
        seats = _going(seats, admitted=admitted)
        if not seats:
            return
        try:
            outcomes: Sequence[Outcome | Exception] = await self._request(prompt, seats)
        except ModelFailure as failure:
            blames_one = isinstance(failure, Rejection) and failure.code not in _EVERYBODYS
            if blames_one and len(seats) > 1:
                half = len(seats) // 2
                async with asyncio.TaskGroup() as halves:
                    halves.create_task(self._settle(prompt, seats[:half]))
                    halves.create_task(self._settle(prompt, seats[half:]))
                return
            outcomes = [failure, *(failure.alike() for _ in seats[1:])]
        except Exception as error:  # noqa: BLE001 - a fault of the model's own code: raised to one
            failed = TransientFailure("model_failed", f"{type(error).__name__}: {error}")
            outcomes = [error, *(failed.alike() for _ in seats[1:])]
        for seat, outcome in zip(seats, outcomes, strict=True):
            seat.land(outcome)

    async def _request(self, prompt: Prompt, seats: Sequence[_Seat]) -> Sequence[Outcome]:
        """Make one request, which begins before anything is awaited."""
        count = len(seats)
        for index, seat in enumerate(seats):
            seat.part.joins(count, first=index == 0)
        told: Outcome | None = None
        self.watcher.began()
        try:
            if count == 1:
                told = await self._model.ask(prompt, seats[0].question)
                return [told]
            outcomes = await self._model.ask_many(prompt, [seat.question for seat in seats])
            if len(outcomes) != count:
                wrong = f"{len(outcomes)} results for {count} questions"
                raise Rejection("unparsable", wrong)  # noqa: TRY301 - told to the limits, too
            told = next((one for one in outcomes if isinstance(one, Answer)), outcomes[0])
        except ModelFailure as failure:
            told = failure
            raise
        except Exception as error:
            told = TransientFailure("model_failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            self.watcher.ended(told)
        return outcomes


def _going(seats: Sequence[_Seat], *, admitted: bool) -> list[_Seat]:
    """Those that are in a request that begins now; the others land."""
    going: list[_Seat] = []
    for seat in seats:
        if seat.outcome.done():
            continue
        if admitted and seat.part.goes():
            going.append(seat)
        else:
            seat.land(NotAsked(begun=seat.part.begun))
    return going


def outcome_of(read: Callable[[], Answer]) -> Outcome:
    """What reading one of several results gives."""
    try:
        return read()
    except ModelFailure as failure:
        return failure
