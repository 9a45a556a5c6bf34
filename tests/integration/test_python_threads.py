"""Python callables that hang or are cancelled: timeouts, and threads that stay bounded."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from askonce_worker.models.protocol import (
    ModelFailure,
    Prompt,
    Question,
    TransientFailure,
)
from askonce_worker.models.python import PythonModel
from tests.support.waiting import eventually

LABELS = Prompt(labels=("spam", "ham"))
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


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that calls can hang on; set at the end, so that their threads end."""
    event = threading.Event()
    yield event
    event.set()


async def failure_of(model: PythonModel, question: Question = TEXT) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        await model.ask(LABELS, question)
    return caught.value


def spam(_: str) -> str:
    return "spam"


async def test_an_async_callable_that_hangs_is_cancelled_at_the_timeout(open_model: Open) -> None:
    ended = asyncio.Event()

    async def hang(_: str) -> str:
        try:
            return await asyncio.Future[str]()
        finally:
            ended.set()

    error = await failure_of(open_model(hang, timeout_s=0.02))
    assert isinstance(error, TransientFailure)
    assert error.code == "timeout"
    assert ended.is_set()


async def test_a_hung_thread_keeps_its_slot_until_it_returns(
    open_model: Open, gate: threading.Event
) -> None:
    def call(text: str) -> str:
        if text == "hang":
            gate.wait()
        return "spam"

    model = open_model(call, timeout_s=0.05, max_threads=2)
    hang = Question(text="hang")
    assert (await failure_of(model, question=hang)).code == "timeout"
    assert model.hung_threads == 1
    assert (await model.ask(LABELS, TEXT)).label == "spam"  # the other slot serves
    assert "mine" in await model.check()

    assert (await failure_of(model, question=hang)).code == "timeout"
    assert model.hung_threads == 2
    error = await failure_of(model)  # at once: nobody could serve it
    assert (error.code, isinstance(error, TransientFailure)) == ("timeout", True)
    with pytest.raises(TransientFailure, match="hang"):
        await model.check()

    gate.set()
    await eventually(lambda: model.hung_threads == 0)
    assert (await model.ask(LABELS, TEXT)).label == "spam"


async def test_those_who_wait_for_a_slot_fail_when_the_last_one_hangs(
    open_model: Open, gate: threading.Event
) -> None:
    asked: list[str] = []

    def call(text: str) -> str:
        asked.append(text)
        gate.wait()
        return "spam"

    model = open_model(call, timeout_s=0.05, max_threads=1)
    questions = [Question(text=str(n)) for n in range(5)]
    errors = await asyncio.gather(*(failure_of(model, question=one) for one in questions))
    assert [error.code for error in errors] == ["timeout"] * 5
    assert asked == ["0"]


async def test_waiting_for_a_slot_does_not_count_towards_the_timeout(open_model: Open) -> None:
    never = threading.Event()

    def slow(_: str) -> str:
        return "ham" if never.wait(0.03) else "spam"

    model = open_model(slow, timeout_s=0.3, max_threads=1)
    answers = await asyncio.gather(*(model.ask(LABELS, TEXT) for _ in range(15)))
    assert {answer.label for answer in answers} == {"spam"}  # 15 * 0.03 s is beyond 0.3 s


async def test_threads_are_bounded_and_reused(open_model: Open) -> None:
    lock = threading.Lock()
    names: set[str] = set()
    running = most = 0
    both = threading.Barrier(3)

    def call(text: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            names.add(f"{threading.current_thread().name} {threading.get_ident()}")
        if text == "meet":
            both.wait(timeout=10)
        with lock:
            running -= 1
        return "spam"

    model = open_model(call, max_threads=3)
    await asyncio.gather(*(model.ask(LABELS, Question(text="meet")) for _ in range(3)))
    await asyncio.gather(*(model.ask(LABELS, TEXT) for _ in range(200)))
    assert most == 3
    assert len(names) == 3
    assert all(name.startswith("model mine") for name in names)
    assert model.hung_threads == 0


async def test_a_thread_that_cannot_start_costs_no_slot(
    open_model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    model = open_model(spam, max_threads=1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", exhausted)
        for _ in range(3):
            error = await failure_of(model)
            assert (error.code, "can't start" in error.message) == ("model_failed", True)
    assert (await model.ask(LABELS, TEXT)).label == "spam"


async def test_cancelling_propagates_at_every_stage(
    open_model: Open, gate: threading.Event
) -> None:
    started = threading.Event()

    def call(_: str) -> str:
        started.set()
        gate.wait()
        return "spam"

    model = open_model(call, max_threads=1)
    running = asyncio.create_task(model.ask(LABELS, TEXT))
    await eventually(started.is_set)
    waiting = asyncio.create_task(model.ask(LABELS, TEXT))
    await asyncio.sleep(0)
    for task in (waiting, running):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert model.hung_threads == 1  # the call goes on, unheard
    gate.set()
    await eventually(lambda: model.hung_threads == 0)
    assert (await model.ask(LABELS, TEXT)).label == "spam"


async def test_cancelling_an_async_call_propagates(open_model: Open) -> None:
    started = asyncio.Event()

    async def hang(_: str) -> str:
        started.set()
        return await asyncio.Future[str]()

    task = asyncio.create_task(open_model(hang).ask(LABELS, TEXT))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_hung_call_does_not_keep_the_process_from_exiting() -> None:
    script = """if True:
        import asyncio, threading
        from askonce_worker.models.protocol import Prompt, Question
        from askonce_worker.models.python import PythonModel

        async def main():
            call = lambda text: threading.Event().wait()
            model = PythonModel(call, name="mine", timeout_s=0.05, max_threads=1)
            try:
                await model.ask(Prompt(), Question(text="hi"))
            finally:
                await model.aclose()

        asyncio.run(main())
    """
    ended = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=30
    )
    assert "TransientFailure: timeout" in ended.stderr
