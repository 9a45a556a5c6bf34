"""What is kept of a hit: nothing personal, and not much."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from askonce_queue.queue_scripts import LoggedHit
from askonce_queue.reply import Answer, Usage
from askonce_worker.asks import SeenHit
from askonce_worker.cache.entry import Entry, encode_json
from askonce_worker.config import HitLogConfig
from askonce_worker.hits.record import MOST_ANSWER_BYTES, MOST_INPUT_CHARS, record
from askonce_worker.models.protocol import Prompt, Question
from tests.support.queue_worker import EchoModel, echo_tasks
from tests.support.resolving import Waiter


class Asked(Waiter):
    """An ask with any question."""

    asked = Question(text="")

    def question(self) -> Question:
        return self.asked


def recorded(
    question: Question, answer: Answer, labels: tuple[str, ...] = (), **config: Any
) -> LoggedHit:
    task = echo_tasks(EchoModel(), hit_log=HitLogConfig(share=1.0, **config))["echo"]
    task.prompt = Prompt(labels=labels)
    ask = Asked(task, "text", tenant="acme")
    ask.asked = question
    entry = Entry(
        answer, encode_json(answer), born=0, built=0, kept=0, tags=(), shard=0, fresh_until=0
    )
    return record(SeenHit(ask, entry, "store", 12.3456))


PERSONAL = "I am john@example.com, call 555 123 4567"
CLEAN = "I am [email], call [phone]"


def test_input_and_answer_are_redacted() -> None:
    answer = Answer(
        label=PERSONAL,
        score=0.123456789,
        scores={PERSONAL: 0.987654321},
        value={PERSONAL: [PERSONAL, 5551234567, 7, True, None, 0.123456789]},
        model="gpt-5-2026-08-06",
        usage=Usage(1, 2),
    )
    hit = recorded(Question(text=PERSONAL), answer)
    assert hit.input == CLEAN
    assert msgspec.json.decode(hit.answer) == {
        "label": CLEAN,
        "score": 0.123456789,
        "scores": {CLEAN: 0.987654321},
        "value": {CLEAN: [CLEAN, "[phone]", 7, True, None, 0.123456789]},
        "model": "gpt-5-2026-08-06",
    }
    assert (hit.task, hit.source, hit.age_ms, hit.tenant) == ("echo", "store", 12346, "")


def test_labels_of_the_task_are_no_ones_data() -> None:
    answer = Answer(label="item 1234567", scores={"item 1234567": 1.0})
    shown = msgspec.json.decode(recorded(Question(text="x"), answer, ("item 1234567",)).answer)
    assert shown == {"label": "item 1234567", "scores": {"item 1234567": 1.0}}


def test_chat_messages() -> None:
    content = [{"type": "text", "text": PERSONAL}, {"type": "image_url", "image_url": PERSONAL}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": None, "tool_calls": [PERSONAL]},
    ]
    hit = recorded(Question(messages=messages), Answer(label="a"))
    assert hit.input == f"system: Be kind.\nuser: {CLEAN} (image_url)\nassistant: "


def test_with_a_hash_nothing_of_the_input_is_kept() -> None:
    answer = Answer(label=PERSONAL, score=0.5, scores={"a": 0.5}, value={"a": PERSONAL}, model="m")
    hit = recorded(Question(text=PERSONAL), answer, input="hash", tenant=True)
    assert (hit.input, hit.tenant) == ("", "acme")
    assert msgspec.json.decode(hit.answer) == {"score": 0.5, "model": "m", "cut": True}
    kept = recorded(Question(text="x"), Answer(label="a"), ("a", "b"), input="hash")
    assert msgspec.json.decode(kept.answer) == {"label": "a"}


@pytest.mark.parametrize("value", [["word " * 1000], {str(n): n for n in range(500)}])
def test_it_is_bounded(value: Any) -> None:
    hit = recorded(Question(text="word " * 10_000), Answer(label="word " * 1000, value=value))
    assert len(hit.input) == MOST_INPUT_CHARS + 1
    assert len(hit.answer) <= MOST_ANSWER_BYTES
    assert msgspec.json.decode(hit.answer)["cut"]


def test_a_deep_value_is_cut() -> None:
    value: Any = PERSONAL
    for _ in range(50):
        value = [value]
    hit = recorded(Question(text="x"), Answer(value=value))
    assert b"john" not in hit.answer
    assert "…" in hit.answer.decode()
