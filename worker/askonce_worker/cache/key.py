"""The cache key: SHA-256 over everything that can change the answer, and nothing else.

A key is `sha256(task digest ‖ scope ‖ kind ‖ input)`. The task digest covers all that a task fixes
and is computed once; the scope is tenant and namespace; the input is the text itself, or canonical
JSON where there are messages or parameters. All parts but the last have a fixed or prefixed length,
so no input can pass for another one's scope.

What a request may vary is judged by a deny-list: a parameter is in the key unless it stands in
`OUT_OF_KEY`. One that askonce has never heard of changes the key, which costs a model call; the
opposite mistake would serve a wrong answer. `docs/CACHE_KEY.md` publishes the tables below.

Pure: no I/O, no clock, no state but a bounded memo.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from operator import itemgetter
from typing import Any

import msgspec

from askonce_queue.errors import InvalidJob
from askonce_queue.names import DIGEST_BYTES
from askonce_worker.cache.canonical import canonical, is_array, is_object
from askonce_worker.models.protocol import Prompt, Question

KEY_SCHEMA = 1
"""Raise it whenever the same request gets another key: `golden_keys.json` tells."""

IN_KEY = {
    "key schema": "the version of these rules",
    "kind": "the dialect or sort of model: another one reads the same request differently",
    "base_url": "the upstream: equal model names at two servers are two models",
    "model": "the model id with every suffix (date, `:free`, `ft:…`)",
    "callable": "a Python model's import path",
    "version": "a Python model's declared version: its code cannot be hashed reliably",
    "headers": "API version, beta flags and all other extra headers, but those listed as out",
    "system": "the system prompt",
    "labels": "the labels, in their order: models prefer early ones",
    "temperature": "sampling",
    "max_tokens": "a shorter limit can cut an answer off",
    "task params": "all other request parameters of the task, but those listed as out",
    "normalize": "the normalisation steps, in their order",
    "text": "the text, normalised as the model receives it",
    "messages": "the chat messages, roles and tool calls included",
    "job params": "all request parameters of the job, known or not, but those listed as out",
    "property order": "the order of `properties` in JSON schemas: models write fields in it",
    "tenant": "tenants do not see each other, unless the task says that they share",
    "shared": "whether tenants share: answers made before that was so stay with their tenant",
    "namespace": "lets a caller keep answers apart; it can only narrow who shares them",
}
"""What is in the key → why."""

OUT_OF_KEY = {
    "user": "an end-user id, for abuse monitoring",
    "safety_identifier": "an end-user id, for abuse monitoring",
    "metadata": "labels for the API's own records",
    "prompt_cache_key": "routes to the API's prompt cache: price and speed",
    "prompt_cache_options": "steers the API's prompt cache: price and speed",
    "prompt_cache_retention": "steers the API's prompt cache: price and speed",
    "cache_control": (
        "Anthropic's prompt cache: price and speed. Also left out of messages, content blocks, "
        "system blocks and tools; not of tool input or JSON schemas, where it is data"
    ),
    "stream": "how the answer travels",
    "stream_options": "how the answer travels",
    "service_tier": "price and speed",
    "request_id": "names a request",
    "trace_id": "names a request",
    "askonce": "our own cache controls",
}
"""Request parameter that is not in the key → why."""

OUT_HEADERS = {
    "authorization": "a credential",
    "proxy-authorization": "a credential",
    "x-api-key": "a credential",
    "api-key": "a credential",
    "x-request-id": "names a request",
    "request-id": "names a request",
    "x-client-request-id": "names a request",
    "x-correlation-id": "names a request",
    "idempotency-key": "names a request",
    "traceparent": "W3C trace context",
    "tracestate": "W3C trace context",
    "baggage": "W3C trace context",
    "x-b3-*": "Zipkin trace context",
    "x-stainless-*": "the SDK's description of itself",
    "x-askonce-*": "our own cache controls",
}
"""Header (in lower case; `*` at the end stands for anything) that is not in the key → why.

Request parameters of such a name are out too."""

OUT_OF_TASK = {
    "name": "the task's name: two tasks that ask the same share answers, and renaming keeps them",
    "api_key": "who pays: rotating a key must not empty the cache",
    "timeout_s": "how long we wait, not what we get",
    "concurrency": "how many calls at once",
    "retry": "how often we try",
    "ttl_s": "how long an answer is kept is decided when it is written",
}
"""Setting of a task that is not in the key → why."""

BYPASS = {
    "store": "the API keeps the response, for later requests to refer to",
    "background": "the response is a ticket to be polled, not an answer",
    "previous_response_id": "the answer depends on a conversation kept by the API",
    "conversation": "the answer depends on a conversation kept by the API",
    "container": "the answer depends on a container's state",
    "mcp_servers": "the API calls tools on other servers",
    "web_search_options": "the API searches the web",
    "tools": "the API itself runs one of the tools (any type that is not known to be the client's)",
}
"""Request parameter that takes a request past the cache → why."""

CLIENT_TOOL_TYPES = ("function", "custom", "local_shell", "apply_patch")
CLIENT_TOOL_PREFIXES = ("bash_", "text_editor_", "computer_", "memory_")
"""Types of tools that the client runs, so that all they return stands in the messages."""

_OUT_PREFIXES = tuple(name[:-1] for name in OUT_HEADERS if name.endswith("*"))
_TEXT, _JSON = b"t", b"j"
_MAX_TENANTS = 1024


def task_digest(
    *,
    model_identity: Mapping[str, Any],
    prompt: Prompt,
    normalize: Sequence[str],
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Return the 32-byte digest of everything in a task that can change an answer.

    `model_identity` is all of it that the model itself fixes, as JSON values: for an API `kind`,
    `base_url` and `model`; for a callable `kind`, `callable` and `version`. It holds no secrets.
    `headers` are extra HTTP headers, the API version included; those in `OUT_HEADERS` are left out.

    Raises `InvalidJob` when a value is not canonical JSON (see `canonical`).
    """
    fixed = msgspec.structs.asdict(prompt) | {"params": None}
    sent = [(name.lower(), value) for name, value in (headers or {}).items()]
    document = {
        "schema": KEY_SCHEMA,
        "model": dict(model_identity),
        "prompt": {name: value for name, value in fixed.items() if value is not None},
        "normalize": list(normalize),
        "headers": sorted(header for header in sent if not _is_out_header(header[0])),
    }
    params = effective_params(prompt.params or {})
    return sha256(canonical(document) + _input_json(None, None, params)).digest()


class KeyMaker:
    """Makes the keys of one task's questions, 32 bytes each.

    `shared` tasks leave the tenant out. `opaque_params` is for functions whose params are their
    arguments: then no name is special, and every one of them is in the key.
    """

    __slots__ = ("_digest", "_opaque_params", "_shared", "_text_prefixes")

    def __init__(self, digest: bytes, *, shared: bool, opaque_params: bool = False) -> None:
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"a task digest has {DIGEST_BYTES} bytes, not {len(digest)}")
        self._digest = digest
        self._shared = shared
        self._opaque_params = opaque_params
        self._text_prefixes: dict[str, bytes] = {}

    @property
    def digest(self) -> bytes:
        """The task digest, 32 bytes."""
        return self._digest

    def text_key(self, text: str | bytes, tenant: str = "", namespace: str = "") -> bytes:
        """Return the key of a question that is only `text` (as bytes: UTF-8), normalised before.

        Raises `InvalidJob` for text that is not valid Unicode.
        """
        prefix = None if namespace else self._text_prefixes.get(tenant)
        if prefix is None:
            prefix = self._text_prefix(tenant, namespace)
        if isinstance(text, str):
            text = _utf8(text)
        return sha256(prefix + text).digest()

    def question_key(self, question: Question, tenant: str = "", namespace: str = "") -> bytes:
        """Return the key of any question; one of only text has the key that `text_key` gives.

        Raises `InvalidJob` when a part of it is not canonical JSON (see `canonical`).
        """
        text, messages, params = question.text, question.messages, question.params or {}
        if params and not self._opaque_params:
            params = effective_params(params)
        if text is not None and messages is None and not params:
            return self.text_key(text, tenant, namespace)
        if self._opaque_params:
            body = canonical([text, messages, params])
        else:
            body = _input_json(text, messages, params)
        return sha256(self._prefix(_JSON, tenant, namespace) + body).digest()

    def _text_prefix(self, tenant: str, namespace: str) -> bytes:
        prefix = self._prefix(_TEXT, tenant, namespace)
        if not namespace:
            if len(self._text_prefixes) >= _MAX_TENANTS:
                self._text_prefixes.clear()
            self._text_prefixes[tenant] = prefix
        return prefix

    def _prefix(self, kind: bytes, tenant: str, namespace: str) -> bytes:
        who = b"shared" if self._shared else b"tenant" + _sized(tenant)
        return self._digest + who + _sized(namespace) + kind


def must_bypass(params: Mapping[str, Any]) -> str | None:
    """Return why a request with `params` may neither be answered from the cache nor fill it.

    None when it may: nothing in it refers to state that the API keeps.
    """
    for name, why in BYPASS.items():
        value = params.get(name)
        if name == "tools" and is_array(value):
            value = any(map(_runs_on_server, value))
        if value is not None and value is not False:
            return f"{name}: {why}"
    return None


def _runs_on_server(tool: Any) -> bool:
    # Anthropic's custom tools need no type.
    kind = str(tool.get("type") or "custom") if is_object(tool) else ""
    return kind not in CLIENT_TOOL_TYPES and not kind.startswith(CLIENT_TOOL_PREFIXES)


def effective_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request that can change its answer: those that the key covers."""
    out = [name for name in params if name in OUT_OF_KEY or _is_out_header(name)]
    return {name: value for name, value in params.items() if name not in out}


def _is_out_header(name: object) -> bool:
    lower = str(name).lower()
    return lower in OUT_HEADERS or lower.startswith(_OUT_PREFIXES)


def _input_json(
    text: str | None, messages: list[dict[str, Any]] | None, params: dict[str, Any]
) -> bytes:
    """Return canonical JSON of an API's input; after it, where schemas have one, their order."""
    body = canonical([text, messages, params])
    # Looking for the names in the text is much cheaper than walking every message for them.
    if b'"cache_control"' in body:
        blocks = {name: _uncontrolled(params[name]) for name in ("system", "tools") & params.keys()}
        body = canonical([text, _uncontrolled(messages), params | blocks])
    if b'"properties"' in body:
        body += canonical(list(_property_orders(params)))
    return body


def _uncontrolled(value: Any) -> Any:
    """Return messages, blocks or tools without Anthropic's `cache_control`.

    Only where the API defines it: a tool's input, say, may hold a field of that name as data.
    """
    if is_array(value):
        return [_uncontrolled(item) for item in value]
    if not is_object(value):
        return value
    return {
        name: _uncontrolled(item) if name in {"content", "source"} else item
        for name, item in value.items()
        if name != "cache_control"
    }


def _property_orders(value: Any) -> Iterator[list[str]]:
    """Yield the names in every `properties` object, in their order; visit in sorted order."""
    if is_object(value):
        for name, item in sorted(value.items(), key=itemgetter(0)):
            if name == "properties" and is_object(item):
                yield list(item)
            yield from _property_orders(item)
    elif is_array(value):
        for item in value:
            yield from _property_orders(item)


def _sized(text: str) -> bytes:
    data = _utf8(text)
    return len(data).to_bytes(4, "big") + data


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidJob(f"not valid Unicode, send UTF-8 text: {error}") from error
