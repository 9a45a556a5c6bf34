"""The cache key tells the whole truth: what can change an answer changes it, nothing else does."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from askonce_queue.errors import InvalidJob
from askonce_worker.cache import key as key_module
from askonce_worker.cache.canonical import canonical, is_array, is_object
from askonce_worker.cache.key import IN_KEY, OUT_HEADERS, OUT_OF_KEY, KeyMaker, task_digest
from askonce_worker.models.protocol import Prompt, Question

GOLDEN = json.loads(Path(__file__).with_name("golden_keys.json").read_text(encoding="utf-8"))
MODEL = {"kind": "openai", "base_url": "http://a/v1", "model": "m"}
OUT_PARAMS = [*OUT_OF_KEY, *(name.replace("*", "any") for name in OUT_HEADERS)]

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text(max_size=5)
# Hypothesis draws constants from the code under test, too: no name here has a meaning to the key.
NAMES = st.text(max_size=5).filter(lambda name: name not in OUT_OF_KEY)
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=8
)
PARAMS = st.dictionaries(NAMES, JSON_VALUES)


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that goes into one key, as the golden file spells it."""

    model_identity: dict[str, str] = msgspec.field(default_factory=MODEL.copy)
    system: str | None = "Is this spam?"
    labels: tuple[str, ...] = ("spam", "ham")
    temperature: float | None = 0
    max_tokens: int | None = 8
    task_params: dict[str, Any] | None = None
    normalize: tuple[str, ...] = ()
    headers: dict[str, str] | None = None
    shared: bool = False
    opaque_params: bool = False
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    params: dict[str, Any] | None = None
    tenant: str = ""
    namespace: str = ""

    def maker(self) -> KeyMaker:
        prompt = Prompt(
            system=self.system,
            labels=self.labels,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            params=self.task_params,
        )
        digest = task_digest(
            model_identity=self.model_identity,
            prompt=prompt,
            normalize=self.normalize,
            headers=self.headers,
        )
        return KeyMaker(digest, shared=self.shared, opaque_params=self.opaque_params)

    def key(self) -> str:
        question = Question(text=self.text, messages=self.messages, params=self.params)
        return self.maker().question_key(question, self.tenant, self.namespace).hex()


def key(**parts: Any) -> str:
    parts.setdefault("text", "hello")
    return Request(**parts).key()


def schema(*names: str) -> dict[str, Any]:
    properties = {name: {"type": "string"} for name in names}
    return {"response_format": {"json_schema": {"schema": {"properties": properties}}}}


def identity(**parts: str) -> dict[str, Any]:
    return {"model_identity": MODEL | parts}


Pair = tuple[dict[str, Any], dict[str, Any]]
IN_KEY_PAIRS: dict[str, Pair] = {
    "kind": (identity(), identity(kind="python")),
    "base_url": (identity(), identity(base_url="http://b/v1")),
    "model": (identity(), identity(model="m:free")),
    "callable": (identity(callable="a:f"), identity(callable="a:g")),
    "version": (identity(version="1"), identity(version="2")),
    "headers": (
        {"headers": {"anthropic-version": "2023-06-01"}},
        {"headers": {"anthropic-version": "2026-10-21"}},
    ),
    "system": ({}, {"system": "Is this spam? "}),
    "labels": ({}, {"labels": ("ham", "spam")}),
    "temperature": ({}, {"temperature": 0.1}),
    "max_tokens": ({}, {"max_tokens": 9}),
    "task params": ({"task_params": {"top_p": 1}}, {"task_params": {"top_p": 0.5}}),
    "normalize": ({"normalize": ("nfkc", "casefold")}, {"normalize": ("casefold", "nfkc")}),
    "text": ({}, {"text": "hello "}),
    "messages": (
        {"text": None, "messages": [{"role": "user", "content": "hello"}]},
        {"text": None, "messages": [{"role": "system", "content": "hello"}]},
    ),
    "job params": (
        {"params": {"tools": [{"type": "function", "function": {"name": "f"}}]}},
        {"params": {"tools": [{"type": "function", "function": {"name": "g"}}]}},
    ),
    "property order": (
        {"params": schema("reason", "label")},
        {"params": schema("label", "reason")},
    ),
    "tenant": ({"tenant": "a"}, {"tenant": "b"}),
    "shared": ({}, {"shared": True}),
    "namespace": ({}, {"namespace": "eval"}),
}


@pytest.mark.parametrize("name", sorted(IN_KEY.keys() - {"key schema"}))
def test_what_is_in_the_key_changes_it(name: str) -> None:
    one, other = IN_KEY_PAIRS[name]
    assert key(**one) != key(**other)
    assert key(**one) == key(**one)


def test_the_key_schema_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(key_module, "KEY_SCHEMA", key_module.KEY_SCHEMA + 1)
    assert key() != before


def test_every_part_of_a_prompt_is_published() -> None:
    assert set(Prompt.__struct_fields__) - {"params"} <= IN_KEY.keys()


@pytest.mark.parametrize("name", OUT_PARAMS)
def test_what_is_out_changes_nothing(name: str) -> None:
    assert key(params={name: "x"}) == key(params={name: ["y"]}) == key()
    assert key(task_params={name: "x"}) == key()
    assert key(params={name: "x", "seed": 1}) == key(params={"seed": 1})
    assert key(params={name: "x"}, opaque_params=True) != key()


@pytest.mark.parametrize("name", OUT_HEADERS)
def test_headers_that_are_out_change_nothing(name: str) -> None:
    sent = name.replace("*", "Any").title()
    version = {"Anthropic-Version": "1"}
    assert key(headers=version | {sent: "x"}) == key(headers={"anthropic-version": "1"})


@given(PARAMS, PARAMS)
def test_params_share_a_key_exactly_when_they_are_equal(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert (key(params=one) == key(params=other)) == (canonical(one) == canonical(other))


@given(st.text().map(lambda name: f"new-{name}"), JSON_VALUES)
def test_an_unknown_param_changes_the_key(name: str, value: Any) -> None:
    assert key(params={name: value}) != key()


def reversed_members(value: Any) -> Any:
    if is_object(value):
        return {name: reversed_members(value[name]) for name in reversed(value)}
    return tuple(reversed_members(item) for item in value) if is_array(value) else value


@given(PARAMS)
def test_the_order_of_members_and_tuples_change_nothing(params: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "hello", "extra": params}]
    assert key(params=params) == key(params=reversed_members(params))
    assert key(messages=messages) == key(messages=[reversed_members(messages[0])])


def test_equal_numbers_change_nothing_and_booleans_are_no_numbers() -> None:
    for zero in (0, 0.0, -0.0):
        assert key(params={"temperature": zero}) == key(params={"temperature": 0})
        assert key(temperature=zero) == key(temperature=0)
    assert key(params={"logprobs": True}) != key(params={"logprobs": 1})
    assert key(params={"seed": None}) != key()


texts = st.text(max_size=6)
scopes = st.tuples(texts, texts, texts)


@given(scopes, scopes)
@example(("a", "b", "c"), ("ab", "", "c"))
@example(("a", "", "b"), ("", "a", "b"))
@example(("", "", "\0\0\0\0"), ("", "\0", "\0\0\0"))
@example(("é", "", ""), ("e\u0301", "", ""))
def test_no_input_passes_for_another_scope(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    keys = [
        key(tenant=tenant, namespace=namespace, text=text)
        for tenant, namespace, text in (one, other)
    ]
    assert (keys[0] == keys[1]) == (one == other)


def test_a_text_that_looks_like_json_is_no_json() -> None:
    body = canonical(["hello", None, {"seed": 1}]).decode()
    assert key(text=body) != key(params={"seed": 1})


def test_shared_tasks_leave_the_tenant_out_but_not_the_namespace() -> None:
    assert key(shared=True, tenant="a") == key(shared=True, tenant="b")
    assert key(shared=True, namespace="a") != key(shared=True, namespace="b")


@given(st.text(), texts)
def test_only_text_has_one_key_on_every_path(text: str, tenant: str) -> None:
    maker = Request().maker()
    expected = maker.text_key(text, tenant)
    assert len(expected) == 32
    assert maker.text_key(text.encode(), tenant) == expected
    assert maker.question_key(Question(text=text), tenant) == expected
    assert maker.question_key(Question(text=text, params={"user": "u"}), tenant) == expected


def test_one_maker_serves_many_tenants_and_namespaces_in_bounded_memory() -> None:
    maker = Request().maker()
    assert len({maker.text_key("x", "t", namespace) for namespace in ("", "a", "", "b")}) == 3
    first = maker.text_key("hello", "0")
    tracemalloc.start()
    try:
        assert len({maker.text_key("hello", str(tenant))[:2] for tenant in range(20_000)}) > 9
        used_bytes, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used_bytes < 1_000_000
    assert maker.text_key("hello", "0") == first


CONTROL = {"cache_control": {"type": "ephemeral"}}


def marked_messages(control: dict[str, Any]) -> dict[str, Any]:
    result = {"type": "tool_result", "content": [{"type": "text", "text": "x"} | control]}
    blocks = [{"type": "text", "text": "x"} | control, result | control]
    return {
        "text": None,
        "messages": [{"role": "user", "content": blocks}],
        "params": {
            "system": [{"type": "text", "text": "x"} | control],
            "tools": [{"name": "f", "input_schema": {"type": "object"}} | control],
        }
        | control,
    }


def test_cache_control_is_out_wherever_the_api_defines_it() -> None:
    assert key(**marked_messages(CONTROL)) == key(**marked_messages({}))


def test_cache_control_as_data_is_in() -> None:
    def as_data(field: dict[str, Any]) -> list[str]:
        call = {"role": "assistant", "content": [{"type": "tool_use", "input": field}]}
        tool = {"name": "f", "input_schema": {"properties": field}}
        params: list[dict[str, Any]] = [{"tools": [tool]}, {"extra": field}]
        return [key(messages=[call]), *(key(params=given) for given in params)]

    for one, other in zip(as_data(CONTROL), as_data({}), strict=True):
        assert one != other


@pytest.mark.parametrize(
    "parts",
    [
        {"text": "\ud800"},
        {"tenant": "\udfff"},
        {"params": {"top_p": float("nan")}},
        {"params": {"stop": ["\ud800"]}},
        {"params": {"seed": 2**64}},
        {"params": {1: 2}},
        {"messages": [{"role": "user", "content": b"bytes"}]},
    ],
)
def test_what_has_no_one_spelling_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        key(**parts)


@pytest.mark.parametrize("name", GOLDEN)
def test_no_release_changes_keys_by_accident(name: str) -> None:
    case = GOLDEN[name]
    request = msgspec.convert(case["request"], Request)
    assert request.key() == case["key"], "on purpose? then raise KEY_SCHEMA and renew every key"
