"""A Python callable as model: sync, async, hanging, lying, raising, cancelled."""

from __future__ import annotations

import asyncio
import enum
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import pytest

from askonce_queue.errors import ConfigError
from askonce_queue.reply import Answer, ErrorCode
from askonce_worker.models.protocol import (
    Model,
    ModelFailure,
    Prompt,
    Question,
    Rejection,
    TransientFailure,
)
from askonce_worker.models.python import PythonModel

LABELS = Prompt(labels=("spam", "ham"))
FREE = Prompt()
TEXT = Question(text="buy now")

Open = Callable[..., PythonModel]


@pytest.fixture
async def open_model() -> AsyncIterator[Open]:
    opened: list[PythonModel] = []

    def open_one(call: Any, *, timeout_s: float = 10.0, max_threads: int = 2) -> PythonModel:
        model = PythonModel(call, name="mine", timeout_s=timeout_s, max_threads=max_threads)
        opened.append(model)
        return model

    yield open_one
    for model in opened:
        await model.aclose()


async def failure_of(
    model: Model, prompt: Prompt = LABELS, question: Question = TEXT
) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        await model.ask(prompt, question)
    return caught.value


async def acall(text: str) -> str:
    await asyncio.sleep(0)
    return "spam" if "buy" in text else "ham"


def returning(result: object) -> Callable[[str], object]:
    def call(_: str) -> object:
        return result

    return call


def through(text: str) -> Awaitable[str]:
    return acall(text)  # a plain function around an async one


class AsyncObject:
    async def __call__(self, text: str) -> str:
        return await acall(text)


class Color(enum.StrEnum):
    SPAM = "spam"


@pytest.mark.parametrize(
    "call",
    [
        returning("spam"),
        returning({"label": "spam"}),
        returning({"label": "spam", "score": None, "scores": None}),
        returning(Color.SPAM),
        acall,
        functools.partial(acall),
        AsyncObject(),
        through,
    ],
)
async def test_sync_and_async_callables_answer(open_model: Open, call: Any) -> None:
    answer = await open_model(call).ask(LABELS, TEXT)
    assert answer == Answer(label="spam", model="mine")
    assert type(answer.label) is str


async def test_scores_are_kept(open_model: Open) -> None:
    result = {"label": "spam", "score": 1, "scores": {"spam": 0.75, "ham": 0.25}}
    answer = await open_model(returning(result)).ask(LABELS, TEXT)
    assert (answer.score, answer.scores) == (1.0, {"spam": 0.75, "ham": 0.25})


async def test_free_text_is_any_label(open_model: Open) -> None:
    assert (await open_model(str.upper).ask(FREE, TEXT)).label == "BUY NOW"


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ("eggs", "out_of_set"),
        ({"label": "eggs"}, "out_of_set"),
        ({"label": "spam", "scores": {"eggs": 0.5}}, "out_of_set"),
        ("", "unparsable"),
        (None, "unparsable"),
        (3, "unparsable"),
        (b"spam", "unparsable"),
        (["spam"], "unparsable"),
        ({}, "unparsable"),
        ({"score": 0.5}, "unparsable"),
        ({"label": None}, "unparsable"),
        ({"label": "spam", "why": "so"}, "unparsable"),
        ({"label": "spam", "score": 1.01}, "unparsable"),
        ({"label": "spam", "score": -0.1}, "unparsable"),
        ({"label": "spam", "score": float("nan")}, "unparsable"),
        ({"label": "spam", "score": 10**400}, "unparsable"),
        ({"label": "spam", "score": True}, "unparsable"),
        ({"label": "spam", "score": "0.5"}, "unparsable"),
        ({"label": "spam", "scores": [0.5]}, "unparsable"),
        ({"label": "spam", "scores": {"spam": None}}, "unparsable"),
        ({"label": "spam", "scores": {1: 0.5}}, "unparsable"),
    ],
)
async def test_a_lying_callable_is_rejected(
    open_model: Open, result: object, code: ErrorCode
) -> None:
    error = await failure_of(open_model(returning(result)))
    assert isinstance(error, Rejection)
    assert error.code == code


async def test_a_label_that_is_not_unicode_is_rejected(open_model: Open) -> None:
    assert (await failure_of(open_model(returning("\ud800")), FREE)).code == "unparsable"


def raiser(error: BaseException) -> Callable[[str], NoReturn]:
    def call(_: str) -> NoReturn:
        raise error

    return call


def async_raiser(error: BaseException) -> Callable[[str], Any]:
    async def call(_: str) -> NoReturn:
        await asyncio.sleep(0)
        raise error

    return call


@pytest.mark.parametrize("make", [raiser, async_raiser])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("no\nsuch  thing"),
        TimeoutError("its own"),
        StopIteration("odd"),
        SystemExit(3),
        asyncio.CancelledError("by itself"),
        AssertionError(),
    ],
)
async def test_whatever_it_raises_is_a_transient_failure_with_its_name(
    open_model: Open, make: Callable[[BaseException], Any], error: BaseException
) -> None:
    failure = await failure_of(open_model(make(error)))
    assert isinstance(failure, TransientFailure)
    assert failure.code == "model_failed"
    assert type(error).__name__ in failure.message
    assert "\n" not in failure.message


@pytest.mark.parametrize("make", [raiser, async_raiser])
async def test_a_callable_may_name_its_failure_itself(
    open_model: Open, make: Callable[[BaseException], Any]
) -> None:
    named = TransientFailure("rate_limited", "slow down", retry_after_s=2.0)
    assert await failure_of(open_model(make(named))) is named


async def test_only_a_single_text_can_be_asked(open_model: Open) -> None:
    model = open_model(str)
    one = [{"role": "user", "content": "hi"}]
    assert (await model.ask(FREE, Question(messages=one))).label == "hi"
    for messages in (
        [],
        one * 2,
        [{"role": "system", "content": "hi"}],
        [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        [{"role": "user"}],
    ):
        error = await failure_of(model, FREE, Question(messages=messages))
        assert isinstance(error, Rejection)
        assert error.code == "rejected"


@pytest.mark.parametrize(("timeout_s", "max_threads"), [(0, 1), (1, 0)])
def test_bounds_that_cannot_be_meant_are_refused(timeout_s: float, max_threads: int) -> None:
    with pytest.raises(ConfigError, match="timeout_s"):
        PythonModel(str, name="mine", timeout_s=timeout_s, max_threads=max_threads)
