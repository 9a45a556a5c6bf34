"""Micro-batching: who shares a request with whom, and whose outcome is whose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.errors import ConfigError
from askonce_queue.reply import Answer, ErrorCode
from askonce_worker.models.batching import BatchedModel, NotAsked, Outcome, Part
from askonce_worker.models.protocol import (
    ModelFailure,
    Prompt,
    Question,
    Rejection,
    TransientFailure,
)
from tests.support.virtual_loop import VirtualLoop
from tests.support.virtual_loop import run_virtually as run_on

SIZE, WAIT_S, CALL_S = 4, 0.005, 0.05
PROMPT, OTHER = Prompt(system="one"), Prompt(system="other")


def run_virtually(main: Coroutine[Any, Any, None]) -> None:
    """Run on a loop of its own."""
    run_on(main, VirtualLoop())


class Request(NamedTuple):
    at: float
    prompt: Prompt
    texts: tuple[str, ...]


class Many:
    """Answers with the text, upper case. A "poison" has its request rejected, a "bad" only itself.

    `fails` may raise, or return something else, for a whole request.
    """

    def __init__(self, fails: Callable[[Request], Sequence[Outcome] | None] | None = None) -> None:
        self.requests: list[Request] = []
        self.made = asyncio.get_running_loop().time()
        self.cancelled = 0
        self.fails = fails
        self.open = asyncio.Event()
        self.open.set()

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        (outcome,) = await self.ask_many(prompt, [question])
        if isinstance(outcome, Answer):
            return outcome
        raise outcome

    def group(self, question: Question) -> Hashable | None:
        return None if question.messages is not None else str(question.params)

    async def ask_many(self, prompt: Prompt, questions: Sequence[Question]) -> Sequence[Outcome]:
        texts = tuple(str(question.text) for question in questions)
        request = Request(asyncio.get_running_loop().time() - self.made, prompt, texts)
        self.requests.append(request)
        try:
            await asyncio.sleep(CALL_S)
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails is not None and (instead := self.fails(request)) is not None:
            return instead
        if any("poison" in text for text in texts):
            raise Rejection("rejected", "HTTP 400")
        return [_outcome(text) for text in texts]

    async def check(self) -> str:
        return "many"

    async def aclose(self) -> None:
        pass

    @property
    def sizes(self) -> list[int]:
        return [len(request.texts) for request in self.requests]


def _outcome(text: str) -> Outcome:
    return Rejection("out_of_set", text) if "bad" in text else Answer(label=text.upper())


class Told:
    """What limits are told of a model's requests."""

    def __init__(self, model: BatchedModel) -> None:
        self.requests = 0
        self.ends: list[str | None] = []
        model.watcher = self
        self.waiting = 0
        self.again: list[bool] = []
        self.admits = True
        self.open = asyncio.Event()
        self.open.set()

    async def admit(self, *, again: bool) -> bool:
        self.waiting += 1
        try:
            await self.open.wait()
        finally:
            self.waiting -= 1
        self.again.append(again)
        return self.admits

    def began(self) -> None:
        self.requests += 1

    def ended(self, outcome: Outcome | None) -> None:
        failed = outcome.code if isinstance(outcome, ModelFailure) else None
        self.ends.append("answer" if isinstance(outcome, Answer) else failed)


def batched(many: Many, size: int = SIZE, wait_s: float = WAIT_S) -> BatchedModel:
    return BatchedModel(many, size=size, wait_s=wait_s)


async def said(
    model: BatchedModel, text: str, prompt: Prompt = PROMPT, part: Part | None = None
) -> str:
    """The label of an answer, or the code of a failure."""
    try:
        return (await model.ask(prompt, Question(text=text), part)).label or ""
    except ModelFailure as failure:
        return failure.code
    except NotAsked as not_asked:
        return "not asked again" if not_asked.begun else "not asked"


async def all_said(model: BatchedModel, *texts: str, alone: bool = False) -> list[str]:
    return await asyncio.gather(*(said(model, text, part=Part(alone=alone)) for text in texts))


# --- who shares a request ------------------------------------------------------------------------


def test_a_full_batch_goes_at_once_and_the_rest_when_it_has_waited() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many)
        texts = [f"t{number}" for number in range(2 * SIZE + 1)]
        assert await all_said(model, *texts) == [text.upper() for text in texts]
        assert [(request.at, len(request.texts)) for request in many.requests] == [
            (0.0, SIZE),
            (0.0, SIZE),
            (pytest.approx(WAIT_S), 1),
        ]

    run_virtually(main())


def test_what_differs_in_prompt_or_parameters_or_goes_alone_shares_nothing() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many)
        asks = [
            model.ask(PROMPT, Question(text="a")),
            model.ask(OTHER, Question(text="b")),
            model.ask(PROMPT, Question(text="c", params={"x": 1})),
            model.ask(PROMPT, Question(text="d", messages=[])),
            model.ask(PROMPT, Question(text="e"), Part(alone=True)),
            model.ask(PROMPT, Question(text="f")),
        ]
        await asyncio.gather(*asks)
        texts = sorted(request.texts for request in many.requests)
        assert texts == [("a", "f"), ("b",), ("c",), ("d",), ("e",)]
        at_once = {request.texts for request in many.requests if request.at == 0.0}
        assert at_once == {("d",), ("e",)}  # for whom nobody can come

    run_virtually(main())


# --- whose outcome is whose ----------------------------------------------------------------------


def test_one_bad_result_fails_one_question() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many)
        told = Told(model)
        assert await all_said(model, "a", "bad", "c", "d") == ["A", "out_of_set", "C", "D"]
        assert many.sizes == [4]
        assert (told.requests, told.ends) == (1, ["answer"])

    run_virtually(main())


def test_one_poisonous_input_is_found_by_halves() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many, size=32)
        told = Told(model)
        texts = [f"t{number}" for number in range(31)]
        assert await all_said(model, *texts, "poison") == [*map(str.upper, texts), "rejected"]
        assert len(many.requests) == 1 + 2 * 5  # 2 log2 32 after the first
        assert told.requests == len(told.ends) == 11

    run_virtually(main())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 32])
def test_where_all_are_rejected_there_is_an_end(size: int) -> None:
    async def main() -> None:
        many = Many()
        model = batched(many, size=size)
        assert await all_said(model, *["poison"] * size) == ["rejected"] * size
        assert len(many.requests) == 2 * size - 1

    run_virtually(main())


@pytest.mark.parametrize("code", ["unauthorized", "quota_exceeded"])
def test_what_no_question_is_to_blame_for_is_not_asked_again(code: ErrorCode) -> None:
    async def main() -> None:
        def fails(_: Request) -> None:
            raise Rejection(code, "no")

        many = Many(fails)
        assert await all_said(batched(many), "a", "b", "c") == [code] * 3
        assert many.sizes == [3]

    run_virtually(main())


@pytest.mark.parametrize("results", [0, 2, 4])
def test_results_that_fit_no_question_are_nobodys(results: int) -> None:
    """Nothing says which is whose, and each of them alone is fine."""

    async def main() -> None:
        def fails(request: Request) -> Sequence[Outcome] | None:
            wrong: list[Outcome] = [Answer(label="WRONG")] * results
            return wrong if len(request.texts) == 3 else None

        model = batched(Many(fails), size=3)
        assert await all_said(model, "a", "b", "c") == ["A", "B", "C"]

    run_virtually(main())


def test_a_request_that_fails_transiently_fails_all_of_it() -> None:
    async def main() -> None:
        def fails(_: Request) -> None:
            raise TransientFailure("rate_limited", "HTTP 429", retry_after_s=1.5)

        many = Many(fails)
        asks = [batched_ask(batched(many), text) for text in "a"]
        model = batched(many)
        asks += [batched_ask(model, text) for text in "abc"]
        failures = await asyncio.gather(*asks)
        assert [failure.retry_after_s for failure in failures] == [1.5] * 4
        assert len({id(failure) for failure in failures}) == 4  # a raised exception is one's own
        assert many.sizes == [1, 3]

    async def batched_ask(model: BatchedModel, text: str) -> TransientFailure:
        with pytest.raises(TransientFailure) as caught:
            await model.ask(PROMPT, Question(text=text))
        return caught.value

    run_virtually(main())


def test_a_fault_of_the_models_code_is_raised_to_one_and_fails_the_others() -> None:
    async def main() -> None:
        def fails(_: Request) -> None:
            raise KeyError("choices")

        model = batched(Many(fails))
        told = Told(model)
        asks = [model.ask(PROMPT, Question(text=text)) for text in "abc"]
        errors = await asyncio.gather(*asks, return_exceptions=True)
        assert [type(error) for error in errors] == [KeyError] + [TransientFailure] * 2
        assert "KeyError" in str(errors[1])
        assert told.ends == ["model_failed"]

    run_virtually(main())


# --- who leaves ----------------------------------------------------------------------------------


def test_who_leaves_takes_nobody_along() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many, size=3)
        asks = [asyncio.create_task(said(model, text)) for text in "abcd"]
        await asyncio.sleep(WAIT_S / 2)
        asks[3].cancel()  # still waits, alone: no request is made
        asks[0].cancel()
        assert await asyncio.gather(*asks[1:3]) == ["B", "C"]
        assert many.sizes == [3]
        await asyncio.sleep(2 * WAIT_S)
        assert many.sizes == [3]
        assert many.cancelled == 0

    run_virtually(main())


def test_when_all_have_left_the_request_is_cancelled() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many)
        told = Told(model)
        asks = [asyncio.create_task(said(model, text)) for text in "ab"]
        await asyncio.sleep(2 * WAIT_S)
        for one in asks:
            one.cancel()
        assert all(isinstance(one, asyncio.CancelledError) for one in await ended(asks))
        await asyncio.sleep(0)
        assert (many.cancelled, told.ends) == (1, [None])
        assert await said(model, "c") == "C"

    async def ended(asks: Sequence[asyncio.Task[str]]) -> list[object]:
        return list(await asyncio.gather(*asks, return_exceptions=True))

    run_virtually(main())


def test_all_may_leave_before_the_request_has_begun() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many, size=2)
        asks = [asyncio.create_task(said(model, text)) for text in "ab"]
        await asyncio.sleep(0)
        for one in asks:
            one.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
        await asyncio.sleep(0)
        assert many.requests == []
        assert not model._flying  # pyright: ignore[reportPrivateUsage]

    run_virtually(main())


def test_closing_ends_what_is_on_its_way() -> None:
    async def main() -> None:
        many = Many()
        many.open.clear()
        model = batched(many)
        asks = [asyncio.create_task(said(model, text)) for text in "abcde"]
        await asyncio.sleep(0)
        await model.aclose()
        assert await asyncio.gather(*asks) == ["model_failed"] * 5

    run_virtually(main())


def test_bounds_that_cannot_be_meant() -> None:
    async def main() -> None:
        for size, wait_s in ((0, 1.0), (1, -1.0)):
            with pytest.raises(ConfigError, match="size"):
                BatchedModel(Many(), size=size, wait_s=wait_s)

    run_virtually(main())


# --- when a request may begin --------------------------------------------------------------------


def test_each_request_waits_for_its_turn_and_takes_who_is_wanted_then() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many)
        told = Told(model)
        told.open.clear()
        parts = [Part(), Part(begins=lambda: False), Part(), Part()]
        asks = [
            asyncio.create_task(said(model, text, part=part))
            for text, part in zip("abcd", parts, strict=True)
        ]
        await asyncio.sleep(1)
        assert (told.waiting, many.requests, [part.begun for part in parts]) == (1, [], [False] * 4)
        asks[0].cancel()
        await asyncio.sleep(0)
        told.open.set()
        assert await asyncio.gather(*asks[1:]) == ["not asked", "C", "D"]
        assert [request.texts for request in many.requests] == [("c", "d")]
        assert [(part.requests, part.share) for part in parts] == [
            (0, 0), (0, 0), (1, 0.5), (0, 0.5),
        ]  # fmt: skip
        assert (told.requests, told.ends) == (1, ["answer"])

    run_virtually(main())


def test_who_may_not_ask_by_then_does_not() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many)
        told = Told(model)
        told.admits = False
        assert await all_said(model, *"abcde") == ["not asked"] * 5
        assert (many.requests, told.requests, told.ends) == ([], 0, [])

    run_virtually(main())


def test_halves_wait_for_turns_of_their_own() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many)
        told = Told(model)
        asking = asyncio.create_task(all_said(model, "a", "b", "c", "poison"))
        await asyncio.sleep(CALL_S / 2)
        told.open.clear()
        await asyncio.sleep(1)
        assert (len(many.requests), told.waiting) == (1, 2)
        told.admits = False
        told.open.set()
        assert await asking == ["not asked again"] * 4
        assert told.again == [False, True, True]
        assert (told.requests, told.ends) == (1, ["rejected"])

    run_virtually(main())


def test_who_waits_for_a_turn_can_leave_and_be_ended() -> None:
    async def main() -> None:
        many = Many()
        model = batched(many)
        told = Told(model)
        told.open.clear()
        asks = [asyncio.create_task(said(model, text)) for text in "abcdefgh"]
        await asyncio.sleep(0.1)
        assert told.waiting == 2
        for one in asks[:4]:
            one.cancel()
        await asyncio.gather(*asks[:4], return_exceptions=True)
        await asyncio.sleep(0)
        assert told.waiting == 1
        await model.aclose()
        assert await asyncio.gather(*asks[4:]) == ["model_failed"] * 4
        assert (told.waiting, told.requests, many.requests) == (0, 0, [])

    run_virtually(main())


# --- in any order --------------------------------------------------------------------------------


class Ask(NamedTuple):
    at_ms: int
    kind: str
    prompt: Prompt
    alone: bool
    leaves_after_ms: int | None


ASKS = st.lists(
    st.builds(
        Ask,
        st.integers(0, 30),
        st.sampled_from(["fine"] * 4 + ["bad", "poison"]),
        st.sampled_from([PROMPT, OTHER]),
        st.sampled_from([False] * 5 + [True]),
        st.none() | st.integers(0, 120),
    ),
    max_size=24,
)


@given(asks=ASKS, size=st.integers(1, 6), wait_ms=st.integers(0, 10))
def test_everybody_gets_their_own_outcome(asks: list[Ask], size: int, wait_ms: int) -> None:
    async def one(model: BatchedModel, number: int, asked: Ask, part: Part) -> str | None:
        await asyncio.sleep(asked.at_ms / 1000)
        text = f"{asked.kind}-{number}"
        asking = asyncio.create_task(said(model, text, asked.prompt, part))
        if asked.leaves_after_ms is not None:
            await asyncio.wait([asking], timeout=asked.leaves_after_ms / 1000)
            asking.cancel()
        try:
            return await asking
        except asyncio.CancelledError:
            return None

    async def main() -> None:
        many = Many()
        model = batched(many, size, wait_ms / 1000)
        told = Told(model)
        parts = [Part(alone=asked.alone) for asked in asks]
        numbered = enumerate(zip(asks, parts, strict=True))
        results = await asyncio.gather(*(one(model, number, *pair) for number, pair in numbered))
        await asyncio.sleep(1)
        for number, (asked, result) in enumerate(zip(asks, results, strict=True)):
            code = {"bad": "out_of_set", "poison": "rejected"}.get(asked.kind, f"FINE-{number}")
            assert result == code or (result is None and asked.leaves_after_ms is not None)
        first_at: dict[str, float] = {}
        for request in many.requests:
            assert 1 <= len(request.texts) <= size
            numbers = [int(text.partition("-")[2]) for text in request.texts]
            assert {asks[number].prompt for number in numbers} == {request.prompt}
            assert len(numbers) == 1 or not any(asks[number].alone for number in numbers)
            for text in request.texts:
                first_at.setdefault(text, request.at)
        for text, at in first_at.items():
            waited_ms = at * 1000 - asks[int(text.partition("-")[2])].at_ms
            assert waited_ms <= wait_ms + 0.001
        assert len(many.requests) <= max(0, 2 * len(asks) - 1)
        assert told.requests == len(told.ends) == len(many.requests)
        assert sum(part.requests for part in parts) == len(many.requests)
        assert sum(part.share for part in parts) == pytest.approx(len(many.requests))
        assert not model._waiting  # pyright: ignore[reportPrivateUsage]
        assert not model._flying  # pyright: ignore[reportPrivateUsage]

    run_virtually(main())
