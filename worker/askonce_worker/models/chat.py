"""OpenAI's chat completions, as OpenAI, vLLM, Ollama and many others answer them.

The format is that of OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

from typing import Any

import msgspec

from askonce_queue.reply import Answer
from askonce_worker.models.http_model import Request, bearer, merged_params
from askonce_worker.models.http_reply import Response, model_id, usage_of
from askonce_worker.models.labels import label_in, label_schema, probability
from askonce_worker.models.protocol import Prompt, Question, Rejection, TransientFailure

RESERVED_PARAMS = ("messages", "model", "stream")
"""What the task itself decides; a `params` that names one is rejected, not overridden."""
_FINISHED = frozenset({"stop", "eos_token", "stop_sequence"})
"""Finish reasons of a complete answer; the latter two are those of TGI."""
_REFUSED = frozenset({"content_filter", "refusal"})
_ABORTED = frozenset({"abort", "error"})
"""The server gave up, the model did not finish (vLLM at shutdown: vllm#57082)."""


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None


class _TokenLogprob(msgspec.Struct):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_TokenLogprob]


_decoder = msgspec.json.Decoder(_Completion)


class ChatCompletions:
    """`POST /chat/completions`. Labels are held by a strict JSON schema (`response_format`).

    With `params = { logprobs = true }` the answer gets a score: the probability of its tokens.
    """

    probe = "/models"

    def headers(self, key: str) -> dict[str, str]:
        """See `Dialect.headers`."""
        return bearer(key)

    def request(self, model: str, prompt: Prompt, question: Question) -> Request:
        """See `Dialect.request`.

        Refused are params that would change what the task is: those in `RESERVED_PARAMS`, an `n`
        other than 1, and a question's own `response_format` where the task has labels. (The task's
        may set one, for servers that hold labels another way.)
        """
        params = merged_params(prompt, question, RESERVED_PARAMS)
        if "n" in params and (isinstance(params["n"], bool) or params["n"] != 1):
            raise Rejection("rejected", "params may set 'n' to 1 only: a question has one answer")
        body: dict[str, Any] = {"model": model, "messages": _messages(prompt, question)}
        if prompt.temperature is not None:
            body["temperature"] = prompt.temperature
        if prompt.max_tokens is not None:
            body["max_tokens"] = prompt.max_tokens
        if prompt.labels:
            if "response_format" in (question.params or {}):
                raise Rejection(
                    "rejected", "params must not set 'response_format': the task's labels decide it"
                )
            schema = label_schema(prompt.labels)
            named = {"name": "classification", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return Request("/chat/completions", body | params)

    def answer(self, response: Response, prompt: Prompt) -> Answer:
        """See `Dialect.answer`."""
        completion = response.read(_decoder, "chat completion")
        if not completion.choices:
            reason = response.error_text()
            detail = f": {response.shown(reason)}" if reason else ""
            raise Rejection("unparsable", f"the completion has no choices{detail}")
        choice = completion.choices[0]
        _check_finished(choice, response)
        text = choice.message.content
        if text is None or not text.strip():
            raise Rejection("unparsable", "the completion has no content")
        return Answer(
            label=label_in(text, prompt.labels, response) if prompt.labels else text,
            score=_score(choice.logprobs),
            model=model_id(completion.model),
            usage=usage_of(completion.usage, "prompt_tokens", "completion_tokens"),
        )


def _messages(prompt: Prompt, question: Question) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if prompt.system:
        messages.append({"role": "system", "content": prompt.system})
    if question.messages is not None:
        return messages + question.messages
    return [*messages, {"role": "user", "content": question.text or ""}]


def _check_finished(choice: _Choice, response: Response) -> None:
    """Raise unless the model completed its answer and meant it as one."""
    reason = choice.finish_reason
    if choice.message.refusal:
        raise Rejection("refused", f"the model refused: {response.shown(choice.message.refusal)}")
    if reason in _REFUSED:
        raise Rejection("refused", f"the answer was withheld (finish_reason={reason})")
    if reason == "length":
        raise Rejection(
            "truncated", "the answer was cut off (finish_reason=length): raise max_tokens"
        )
    if reason in _ABORTED:
        raise TransientFailure("unavailable", f"the server gave up (finish_reason={reason})")
    if reason not in _FINISHED:
        said = response.shown(reason) if reason else "missing"
        raise Rejection("unparsable", f"the answer is not finished (finish_reason {said})")


def _score(logprobs: object) -> float | None:
    """The probability of the answer's tokens, where the API tells it."""
    if not logprobs:
        return None
    try:
        given = msgspec.convert(logprobs, _Logprobs)
    except msgspec.ValidationError:
        return None
    return probability(token.logprob for token in given.content)
