"""A model that is a Python callable: `def` or `async def (text: str) -> str | {"label": …}`.

An `async def` is awaited on the event loop; a `def` runs in threads of its own. Python cannot stop
a thread: a call that hangs is given up after `timeout_s` but keeps its thread, and so its slot,
until it returns. Threads are therefore bounded (never one more for each hang), counted, and
daemons: a hung call cannot keep the worker from exiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, cast

import anyio

from askonce_queue.errors import ConfigError
from askonce_queue.reply import Answer
from askonce_worker.models.http_reply import shown
from askonce_worker.models.protocol import (
    ModelFailure,
    Prompt,
    Question,
    Rejection,
    TransientFailure,
)
from askonce_worker.models.threads import DaemonThreads

Call = Callable[[Any], Any]
"""`(text) -> str`, or `-> {"label": str, "score": 0..1, "scores": {label: 0..1}}`, sync or async.

`score` and `scores` may be left out or None. One that takes many at a time: `python_many.py`.
"""

_RESULT_KEYS = frozenset({"label", "score", "scores"})
_SPEC = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<function>[^\W\d]\w*)")


class PythonModel:
    """Asks a Python callable; implements `Model`.

    `timeout_s` bounds each call from its start; a `def` waits for one of `max_threads` first, which
    is bounded too: when every thread is held by a hung call, all who wait fail at once. The text is
    all a callable sees: system prompt, sampling and params do not reach it. `name` stands as the
    answer's `model`.
    """

    def __init__(self, call: Call, *, name: str, timeout_s: float, max_threads: int) -> None:
        if timeout_s <= 0 or max_threads < 1:
            given = f"{timeout_s} and {max_threads}"
            raise ConfigError(f"timeout_s must be > 0 and max_threads >= 1, not {given}")
        self._call = call
        self._name = name
        self._timeout_s = timeout_s
        self._max_threads = max_threads
        self._async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
            getattr(call, "__call__", None)  # noqa: B004 - not callable() but an async __call__
        )
        self._threads = DaemonThreads(name, max_threads)

    @property
    def hung_threads(self) -> int:
        """How many threads are in calls that were given up (timed out or cancelled)."""
        return self._threads.hung

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        """See `Model.ask`. Whatever the callable raises is a transient `model_failed`.

        A callable that knows better may raise a `ModelFailure` itself; it passes unchanged.
        """
        return checked_answer(await self.called(single_text(question)), prompt.labels, self._name)

    async def called(self, given: Any) -> Any:
        """Return what the callable says to `given`. Raises `ModelFailure`."""
        try:
            if self._async:
                return await self._within_timeout(self._call(given))
            result = await self._threads.run(self._call, given, self._within_timeout)
            if inspect.isawaitable(result):  # a plain function around an async one
                result = await self._within_timeout(result)
        except ModelFailure:
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: the callable's own work was cancelled, which is its failure.
            raise self._model_failed(error) from error
        except (Exception, SystemExit) as error:
            raise self._model_failed(error) from error
        return result

    async def check(self) -> str:
        """See `Model.check`. The callable is not called: it may cost or change something."""
        if self._threads.hung >= self._max_threads:
            raise TransientFailure("timeout", f"all threads of {self._name} hang in earlier calls")
        how = "async" if self._async else f"up to {self._max_threads} threads"
        return f"Python callable {self._name} is loaded ({how})"

    async def aclose(self) -> None:
        """End the idle threads, and each busy one when its call returns; waits for none."""
        self._threads.close()

    async def _within_timeout(self, result: Awaitable[Any]) -> Any:
        with anyio.move_on_after(self._timeout_s):
            return await result
        raise TransientFailure(
            "timeout", f"{self._name} gave no answer within {self._timeout_s:g} s"
        )

    def _model_failed(self, error: BaseException) -> TransientFailure:
        reason = shown(f"{type(error).__name__}: {error}")
        return TransientFailure("model_failed", f"{self._name} raised {reason}")


def load_call(spec: str, folder: Path) -> Call:
    """Import the callable that `spec` ("package.module:function") names.

    `folder` (the configuration file's) is put first on `sys.path` and stays there, because a module
    may import its neighbours as late as its first call. Raises `ConfigError` with one line.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ConfigError(f"{shown(spec)!r} is not of the form 'package.module:function'")
    module_name, function = match["module"], match["function"]
    where = str(folder.resolve())
    if sys.path[:1] != [where]:
        sys.path.insert(0, where)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(
                f"no module {missing!r} for {spec!r}, neither in {where} nor installed"
            ) from None
        reason = shown(f"{type(error).__name__}: {error}")
        raise ConfigError(f"importing {module_name!r} failed: {reason}") from error
    call: Any = getattr(module, function, None)
    if call is None:
        raise ConfigError(f"module {module_name!r} has no function {function!r} (for {spec!r})")
    if not callable(call):
        raise ConfigError(f"{spec!r} is of type {type(call).__name__}, not a function")
    return cast("Call", call)


def single_text(question: Question) -> str:
    """Return the text a callable can be asked; raises `Rejection` for a conversation."""
    if question.text is not None:
        return question.text
    messages = question.messages or []
    if len(messages) == 1 and messages[0].get("role") == "user":
        content = messages[0].get("content")
        if isinstance(content, str):
            return content
    raise Rejection(
        "rejected", "a Python model takes a text, or a single user message whose content is text"
    )


def checked_answer(result: object, labels: tuple[str, ...], name: str) -> Answer:
    """Return `result` of a callable as an answer; raises `Rejection`."""
    if isinstance(result, str):
        return Answer(label=_checked_label(result, labels, name), model=name)
    if not isinstance(result, Mapping):
        raise Rejection(
            "unparsable", f"{name} must return a str or a dict, not {type(result).__name__}"
        )
    fields = cast("Mapping[object, object]", result)
    if not _RESULT_KEYS.issuperset(fields):
        keys = shown(", ".join(map(str, fields)))
        raise Rejection(
            "unparsable", f"{name} must return label, score and scores only, not {keys}"
        )
    label = _checked_label(fields.get("label"), labels, name)
    score, scores = fields.get("score"), fields.get("scores")
    if scores is not None and not isinstance(scores, Mapping):
        raise Rejection("unparsable", f"{name} must return 'scores' as a dict")
    checked_scores = {
        _checked_label(key, labels, name): _probability(value, name)
        for key, value in cast("Mapping[object, object]", scores or {}).items()
    }
    return Answer(
        label=label,
        score=None if score is None else _probability(score, name),
        scores=checked_scores or None,
        model=name,
    )


def _checked_label(label: object, labels: tuple[str, ...], name: str) -> str:
    if not isinstance(label, str) or not label:
        raise Rejection("unparsable", f"{name} must return labels as str, not empty")
    plain = str.__str__(label)  # an enum's or numpy's string as a plain one
    if labels:
        if plain not in labels:
            raise Rejection("out_of_set", f"not a label of the task: {shown(plain)!r}")
    elif not _is_unicode(plain):
        raise Rejection("unparsable", f"{name} returned a label that is not valid Unicode")
    return plain


def _is_unicode(text: str) -> bool:
    try:
        _ = text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _probability(score: object, name: str) -> float:
    if not isinstance(score, bool) and isinstance(score, Real):
        given = shown(repr(score))
        with contextlib.suppress(OverflowError):  # an int beyond every float
            number = float(score)
            if 0.0 <= number <= 1.0:  # not so for NaN
                return number
    else:
        given = type(score).__name__
    raise Rejection("unparsable", f"{name} must return scores from 0 to 1, not {given}")
