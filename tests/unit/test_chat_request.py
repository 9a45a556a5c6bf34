"""What a chat completion request holds, and which parameters it refuses."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from askonce_worker.models.chat import ChatCompletions
from askonce_worker.models.protocol import Prompt, Question, Rejection

LABELS = Prompt(labels=("spam", "ham"))
FREE = Prompt()


def request(prompt: Prompt, question: Question) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(ChatCompletions().request("m", prompt, question).encoded())
    return body


def test_a_plain_request_holds_nothing_that_was_not_asked_for() -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert request(FREE, Question(text="hi")) == {"model": "m", "messages": messages}


def test_system_prompt_sampling_and_labels_are_sent() -> None:
    prompt = Prompt(system="Be brief.", labels=("a", "b"), temperature=0.0, max_tokens=9)
    body = request(prompt, Question(text="hi"))
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert (body["temperature"], body["max_tokens"]) == (0.0, 9)
    held = body["response_format"]["json_schema"]
    assert held["strict"] is True
    assert held["schema"]["properties"]["label"]["enum"] == ["a", "b"]
    assert held["schema"]["additionalProperties"] is False


def test_messages_come_after_the_system_prompt() -> None:
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    body = request(Prompt(system="s"), Question(messages=messages))
    assert body["messages"] == [{"role": "system", "content": "s"}, *messages]


def test_params_of_the_question_win_over_the_task_and_these_over_the_rest() -> None:
    prompt = Prompt(temperature=0.0, params={"temperature": 0.1, "seed": 1})
    body = request(prompt, Question(text="hi", params={"seed": 2, "n": 1}))
    assert (body["temperature"], body["seed"], body["n"]) == (0.1, 2, 1)


@pytest.mark.parametrize(
    "params",
    [
        {"model": "other"},
        {"messages": []},
        {"stream": False},
        {"n": 2},
        {"n": True},
        {"n": None},
        {"response_format": {"type": "text"}},
        {"odd": {1, 2}},
        {"odd": "\ud800"},
    ],
)
def test_params_that_would_change_the_task_are_rejected(params: dict[str, Any]) -> None:
    with pytest.raises(Rejection) as caught:
        request(LABELS, Question(text="hi", params=params))
    assert caught.value.code == "rejected"
    if "response_format" not in params:
        with pytest.raises(Rejection):
            request(Prompt(params=params), Question(text="hi"))


def test_the_task_may_hold_its_labels_another_way() -> None:
    prompt = Prompt(labels=("a",), params={"response_format": {"type": "json_object"}})
    body = request(prompt, Question(text="hi"))
    assert body["response_format"] == {"type": "json_object"}
    free = request(FREE, Question(text="hi", params={"response_format": {"type": "text"}}))
    assert free["response_format"] == {"type": "text"}
