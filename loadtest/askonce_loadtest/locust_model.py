r"""The base line without askonce: locust asks an OpenAI-compatible model server itself.

Every request is a model call: what askonce's workers and caches have to be better than. For example
on the stand-in model, with the texts that the producers of `locustfile.py` ask:

    python -m askonce_loadtest model --port 8900 --latency-ms 50 &
    locust -f loadtest/askonce_loadtest/locust_model.py --headless -u 20 -r 20 -t 30s \
        --host http://127.0.0.1:8900 --labels billing,fraud,other --distinct 2000

A real server is paid or loaded for every one of them. Its key is read from the environment,
ASKONCE_MODEL_API_KEY. An answer that is not one of `--labels` is a failure.
"""

from __future__ import annotations

import itertools
import os
from typing import Any, Protocol, cast

import msgspec
from locust import FastHttpUser, constant, task
from locust.env import Environment
from locust.exception import StopUser

from askonce_loadtest.locust_options import Option, TextOptions, add_options, requests_of
from askonce_loadtest.workloads.lines import FileError

API_KEY_ENV = "ASKONCE_MODEL_API_KEY"


def _labels(value: str) -> list[str]:
    return [label.strip() for label in value.split(",") if label.strip()]


add_options(
    (
        Option("model-path", str, "/v1/chat/completions", "where the server answers"),
        Option("model-name", str, "stand-in-1", "the model to ask"),
        Option("labels", _labels, "billing,fraud,other", "what it may answer; '' is anything"),
        Option("system", str, "", "the system prompt"),
        Option("max-tokens", int, 16, "of an answer"),
    )
)


class Options(TextOptions, Protocol):
    """The options of this file, as locust hands them out."""

    model_path: str
    model_name: str
    labels: list[str]
    system: str
    max_tokens: int


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Labelled(msgspec.Struct):
    label: str


class ModelUser(FastHttpUser):
    """Asks one question, waits for the answer, asks the next."""

    wait_time = constant(0)
    _numbers = itertools.count()

    def on_start(self) -> None:
        """Find this user's texts."""
        environment = cast("Environment", self.environment)
        self._options = options = cast("Options", environment.parsed_options)
        process = max(0, getattr(environment.runner, "worker_index", 0))
        self._texts = requests_of(options, "model", process=process, user=next(self._numbers))
        key = os.environ.get(API_KEY_ENV, "")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    @task
    def ask(self) -> None:
        """Ask one question; an answer that is none of the labels is a failure."""
        try:
            request = next(self._texts)
        except (FileError, StopIteration) as error:
            raise StopUser from error
        options = self._options
        with self.client.post(
            options.model_path,
            json=self._body(request.text),
            headers=self._headers,
            name=options.model_path,
            catch_response=True,
        ) as response:
            if response.status_code == 200:  # noqa: PLR2004 -- others fail by themselves
                fault = _fault(response.content or b"", options.labels)
                if fault:
                    response.failure(fault)

    def _body(self, text: str) -> dict[str, Any]:
        options = self._options
        messages = [{"role": "system", "content": options.system}] if options.system else []
        body: dict[str, Any] = {
            "model": options.model_name,
            "messages": [*messages, {"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": options.max_tokens,
        }
        if options.labels:
            label = {"type": "string", "enum": options.labels}
            schema = {
                "type": "object",
                "properties": {"label": label},
                "required": ["label"],
                "additionalProperties": False,
            }
            named = {"name": "classification", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body


def _fault(content: bytes, labels: list[str]) -> str:
    """What is wrong with an answer; nothing, if nothing is."""
    try:
        text = msgspec.json.decode(content, type=_Completion).choices[0].message.content
        label = msgspec.json.decode(text, type=_Labelled).label if labels else text
    except (msgspec.MsgspecError, IndexError) as error:
        return f"not an answer: {error}"
    return "" if not labels or label in labels else "the label is none of those offered"
