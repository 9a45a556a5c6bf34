"""A Python callable as model: sync, async, hanging, lying, raising, cancelled."""

from __future__ import annotations

import asyncio
import enum
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from askonce_queue.errors import ConfigError
from askonce_queue.reply import Answer, ErrorCode
from askonce_worker.models.protocol import (
    ModelFailure,
    Prompt,
    Question,
    Rejection,
    TransientFailure,
)
from askonce_worker.models.python import PythonModel, load_call
from tests.support.waiting import eventually

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


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that calls can hang on; set at the end, so that their threads end."""
    event = threading.Event()
    yield event
    event.set()


async def failure_of(
    model: PythonModel, prompt: Prompt = LABELS, question: Question = TEXT
) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        await model.ask(prompt, question)
    return caught.value


async def acall(text: str) -> str:
    await asyncio.sleep(0)
    return "spam" if "buy" in text else "ham"


class AsyncObject:
    async def __call__(self, text: str) -> str:
        return await acall(text)


class Color(str, enum.Enum):
    SPAM = "spam"


@pytest.mark.parametrize(
    "call",
    [
        lambda _: "spam",
        lambda _: {"label": "spam"},
        lambda _: {"label": "spam", "score": None, "scores": None},
        lambda _: Color.SPAM,
        acall,
        functools.partial(acall),
        AsyncObject(),
        lambda text: acall(text),  # noqa: PLW0108 - a plain function around an async one
    ],
)
async def test_sync_and_async_callables_answer(open_model: Open, call: Any) -> None:
    answer = await open_model(call).ask(LABELS, TEXT)
    assert answer == Answer(label="spam", model="mine")
    assert type(answer.label) is str


async def test_scores_are_kept(open_model: Open) -> None:
    result = {"label": "spam", "score": 1, "scores": {"spam": 0.75, "ham": 0.25}}
    answer = await open_model(lambda _: result).ask(LABELS, TEXT)
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
    error = await failure_of(open_model(lambda _: result))
    assert isinstance(error, Rejection)
    assert error.code == code


async def test_a_label_that_is_not_unicode_is_rejected(open_model: Open) -> None:
    assert (await failure_of(open_model(lambda _: "\ud800"), FREE)).code == "unparsable"


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
    pause = threading.Event()
    model = open_model(lambda _: "ham" if pause.wait(0.03) else "spam", timeout_s=0.3, max_threads=1)
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


async def test_only_a_single_text_can_be_asked(open_model: Open) -> None:
    model = open_model(lambda text: text)
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


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules to load; `sys.path` is restored afterwards."""
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    package = tmp_path / "askonce_given"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "good.py").write_text(
        "from askonce_given import words\nnumber = 3\n"
        "def call(text):\n    return words.WORDS.get(text, 'ham')\n"
    )
    (package / "words.py").write_text("WORDS = {'buy now': 'spam'}\n")
    (package / "needy.py").write_text("import askonce_not_installed\n")
    (package / "broken.py").write_text("def call(text:\n")
    (package / "script.py").write_text("import sys\nsys.exit(2)\n")
    return tmp_path


async def test_a_callable_is_loaded_from_the_folder_of_its_configuration(
    open_model: Open, folder: Path
) -> None:
    call = load_call("askonce_given.good:call", folder)
    assert (await open_model(call).ask(LABELS, TEXT)).label == "spam"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("askonce_given.good", "'package.module:function'"),
        ("askonce given:call", "'package.module:function'"),
        (".good:call", "'package.module:function'"),
        ("askonce_absent:call", "no module 'askonce_absent'"),
        ("askonce_given.absent:call", "no module 'askonce_given.absent'"),
        ("askonce_given.needy:call", "No module named 'askonce_not_installed'"),
        ("askonce_given.broken:call", "SyntaxError"),
        ("askonce_given.script:call", "SystemExit: 2"),
        ("askonce_given.good:absent", "has no function 'absent'"),
        ("askonce_given.good:number", "is a int, not a function"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_call(spec, folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
