"""What responses of the other APIs mean, without a server: the odd ones."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from askonce_queue.reply import Answer, Usage
from askonce_worker.models.anthropic import AnthropicMessages
from askonce_worker.models.chat import ChatCompletions
from askonce_worker.models.http_model import Dialect
from askonce_worker.models.http_reply import Response
from askonce_worker.models.moderations import Moderations
from askonce_worker.models.predict import Predict
from askonce_worker.models.protocol import ModelFailure, Prompt
from askonce_worker.models.responses import Responses

LABELS = Prompt(labels=("spam", "ham"))
JSON = {"content-type": "application/json", "content-length": "1"}


def parse(dialect: Dialect, body: object, prompt: Prompt = LABELS) -> Answer:
    return dialect.answer(Response(200, JSON, orjson.dumps(body)), prompt)


def code_of(dialect: Dialect, body: object, prompt: Prompt = LABELS) -> str:
    with pytest.raises(ModelFailure) as caught:
        parse(dialect, body, prompt)
    return caught.value.code


# --- Anthropic -------------------------------------------------------------------------------


def message(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    usage = {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 100}
    fields = {"stop_reason": "end_turn", "model": "claude", "usage": usage} | fields
    return {"type": "message", "content": list(content), **fields}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def used(label: object, name: str = "classify") -> dict[str, Any]:
    return {"type": "tool_use", "name": name, "input": {"label": label}}


def test_a_message_with_a_tool_call() -> None:
    answer = parse(AnthropicMessages(), message(said("Hm."), used("ham"), stop_reason="tool_use"))
    assert answer == Answer(label="ham", model="claude", usage=Usage(105, 2))


def test_a_message_that_is_but_the_label() -> None:
    """Servers that imitate the API and know no tools."""
    assert parse(AnthropicMessages(), message(said("ham"))).label == "ham"


def test_free_text() -> None:
    thinking = {"type": "thinking", "thinking": "hm"}
    answer = parse(AnthropicMessages(), message(thinking, said("a"), said("b")), Prompt())
    assert answer.label == "ab"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (message(used("eggs"), stop_reason="tool_use"), "out_of_set"),
        (message(used(5), stop_reason="tool_use"), "unparsable"),
        (message(used("ham", name="search"), stop_reason="tool_use"), "unparsable"),
        (message(used("ham"), stop_reason="max_tokens"), "truncated"),
        (message(used("ham"), stop_reason="model_context_window_exceeded"), "truncated"),
        (message(said("ham"), stop_reason="refusal"), "refused"),
        (message(said("ham"), stop_reason="pause_turn"), "unparsable"),
        (message(said("ham"), stop_reason=None), "unparsable"),
        (message(), "unparsable"),
        ({"type": "message"}, "unparsable"),
    ],
)
def test_messages_that_are_no_answer(body: dict[str, Any], code: str) -> None:
    assert code_of(AnthropicMessages(), body) == code


# --- responses -------------------------------------------------------------------------------


def response(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    output = [{"type": "reasoning"}, {"type": "message", "content": list(parts)}]
    return {"status": "completed", "output": output, "model": "gpt", **fields}


def text(said: str, **fields: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": said, **fields}


def test_a_response() -> None:
    body = response(text('{"label":"ham"}'), usage={"input_tokens": 1, "output_tokens": 2})
    assert parse(Responses(), body) == Answer(label="ham", model="gpt", usage=Usage(1, 2))


def incomplete(reason: str | None) -> dict[str, Any]:
    return response(text("ham"), status="incomplete", incomplete_details={"reason": reason})


def failed(code: str) -> dict[str, Any]:
    return {"status": "failed", "output": [], "error": {"code": code, "message": "it broke"}}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (incomplete("max_output_tokens"), "truncated"),
        (incomplete("content_filter"), "refused"),
        (incomplete(None), "truncated"),
        (failed("server_error"), "unavailable"),
        (failed("rate_limit_exceeded"), "rate_limited"),
        (failed("invalid_prompt"), "rejected"),
        (response(text("ham"), status="queued"), "unparsable"),
        (response(text("ham"), status=None), "unparsable"),
        (response({"type": "refusal", "refusal": "no"}), "refused"),
        (response(text("eggs")), "unparsable"),
        (response(text('{"label":"eggs"}')), "out_of_set"),
        (response(), "unparsable"),
        ({"status": "completed", "output": [{"type": "function_call"}]}, "unparsable"),
        ({"status": "completed"}, "unparsable"),
    ],
)
def test_responses_that_are_no_answer(body: dict[str, Any], code: str) -> None:
    assert code_of(Responses(), body) == code


# --- moderations -----------------------------------------------------------------------------


def moderation(flagged: dict[str, float], rest: dict[str, float]) -> dict[str, Any]:
    result = {
        "flagged": bool(flagged),
        "categories": dict.fromkeys(flagged, True) | dict.fromkeys(rest, False),
        "category_scores": flagged | rest,
    }
    return {"model": "omni", "results": [result]}


CLEAN = moderation({}, {"hate": 0.1, "violence": 0.02})
HATE = moderation({"hate": 0.8, "violence": 0.7}, {"sexual": 0.1})


@pytest.mark.parametrize(
    ("labels", "body", "label", "score"),
    [
        ((), CLEAN, "ok", 0.9),
        ((), HATE, "hate", 0.8),
        (("flagged", "fine"), CLEAN, "fine", 0.9),
        (("flagged", "fine"), HATE, "flagged", 0.8),
        (("violence", "fine"), HATE, "violence", 0.7),
        (("sexual", "fine"), HATE, "fine", 0.9),
        (("hate", "flagged", "fine"), HATE, "hate", 0.8),
        (("violence", "flagged", "fine"), HATE, "flagged", 0.8),
    ],
)
def test_moderations(
    labels: tuple[str, ...], body: dict[str, Any], label: str, score: float
) -> None:
    answer = parse(Moderations(), body, Prompt(labels=labels))
    assert (answer.label, answer.model) == (label, "omni")
    assert answer.score == pytest.approx(score)
    assert answer.scores == body["results"][0]["category_scores"]


def test_a_new_category_may_have_no_score_yet() -> None:
    body = moderation({"hate": 0.8}, {})
    body["results"][0]["categories"]["illicit"] = None
    body["results"][0]["category_scores"]["illicit"] = None
    assert parse(Moderations(), body, Prompt()).label == "hate"


@pytest.mark.parametrize(
    ("labels", "body", "code"),
    [
        (("hate", "violence"), CLEAN, "out_of_set"),
        (("hate", "a", "b"), CLEAN, "out_of_set"),
        ((), {"results": []}, "unparsable"),
        ((), {"results": CLEAN["results"] * 2}, "unparsable"),
        ((), {"results": [{"flagged": True}]}, "unparsable"),
    ],
)
def test_moderations_that_are_no_answer(
    labels: tuple[str, ...], body: dict[str, Any], code: str
) -> None:
    assert code_of(Moderations(), body, Prompt(labels=labels)) == code


# --- predictions, scores ---------------------------------------------------------------------


def test_the_best_prediction_counts() -> None:
    body = [{"label": "ham", "score": 0.3}, {"label": "spam", "score": 0.7}]
    answer = parse(Predict(), body)
    assert answer == Answer(label="spam", score=0.7, scores={"ham": 0.3, "spam": 0.7})


@pytest.mark.parametrize("body", [[], {}, [{"label": "spam"}], [[{"label": "spam", "score": 1}]]])
def test_predictions_that_are_no_answer(body: object) -> None:
    assert code_of(Predict(), body) == "unparsable"


def test_log_probabilities_become_a_score() -> None:
    def completion(logprobs: object) -> dict[str, Any]:
        content = {"content": '{"label":"spam"}'}
        choice = {"message": content, "finish_reason": "stop", "logprobs": logprobs}
        return {"choices": [choice]}

    tokens = [{"token": "spam", "logprob": -0.1}, {"token": "}", "logprob": -0.3}]
    assert parse(ChatCompletions(), completion({"content": tokens})).score == 0.67032
    nothings: list[object] = [None, {}, {"content": []}, {"content": None}]
    for nothing in [*nothings, {"content": [{"logprob": "x"}]}]:
        assert parse(ChatCompletions(), completion(nothing)).score is None
    body = response(text('{"label":"ham"}', logprobs=[{"token": "ham", "logprob": 0.0}]))
    assert parse(Responses(), body).score == 1.0
