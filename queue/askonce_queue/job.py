"""What a producer asks: the job, its payload on the wire, and the bounds checked on admission.

A stream entry is an *envelope* of flat fields (see `envelope.py`) around one JSON *payload*. The
payload holds what a model sees; the envelope holds what the queue needs, so that a job whose
payload cannot be decoded can still be answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import msgspec

from askonce_queue.errors import InvalidJob

Json = dict[str, Any]

MAX_JOB_BYTES = 256 * 1024
"""Largest payload accepted, in bytes of JSON. A `Client` may lower it."""
MAX_ID_CHARS = 200
MAX_TAGS = 16
MAX_TAG_CHARS = 200
MAX_TENANT_CHARS = 200


class Payload(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The JSON part of a job: exactly one of `text` and `messages`.

    `params` are further request parameters for the model. Whatever stands in them is part of the
    cache key, unless `docs/CACHE_KEY.md` lists it as one that cannot change an answer.
    """

    task: str
    text: str | None = None
    messages: list[Json] | None = None
    params: Json | None = None


class Job(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One request to a task, as producers write it.

    Exactly one of `text` (str) and `messages` (chat messages, `{"role", "content"}`) is given.
    `id` defaults to a new unique id. `tags` are names by which the answer can be invalidated.
    """

    task: str
    text: str | None = None
    messages: list[Json] | None = None
    params: Json | None = None
    id: str | None = None
    tenant: str = ""
    tags: tuple[str, ...] = ()


_encoder = msgspec.json.Encoder()


def encode_payload(job: Job, max_bytes: int = MAX_JOB_BYTES) -> bytes:
    """Check `job` and return its JSON payload.

    Raises `InvalidJob` for anything a worker would refuse anyway, so that the producer hears of it
    at once: no input or two, text that is not valid Unicode, oversized payloads, ids or tags.
    """
    if (job.text is None) == (job.messages is None):
        raise InvalidJob("a job needs exactly one of 'text' and 'messages'")
    try:
        if job.messages is not None or job.params is not None:
            _check_numbers((job.messages, job.params))
        payload = _encoder.encode(
            Payload(task=job.task, text=job.text, messages=job.messages, params=job.params)
        )
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidJob(f"the job is not valid JSON or Unicode: {error}") from error
    if len(payload) > max_bytes:
        raise InvalidJob(
            f"the job has {len(payload)} bytes, more than the limit of {max_bytes}: shorten it"
        )
    if job.id is not None and not valid_name(job.id, MAX_ID_CHARS):
        raise InvalidJob(f"job ids are 1 to {MAX_ID_CHARS} printable characters: {job.id!r:.60}")
    if job.tenant != "" or job.tags != ():
        check_envelope(job.tenant, job.tags)
    return payload


def _check_numbers(value: Any) -> None:
    """Refuse what JSON has no number for; the encoder would write null, and ask something else."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a JSON number")
    items: Iterable[Any] = ()
    if isinstance(value, dict):
        items = cast("Iterable[Any]", value.values())
    elif isinstance(value, list | tuple):
        items = cast("Iterable[Any]", value)
    for item in items:
        _check_numbers(item)


def check_envelope(tenant: str, tags: tuple[str, ...]) -> None:
    """Check tenant and tags of a job; raises `InvalidJob`."""
    if tenant != "" and not valid_name(tenant, MAX_TENANT_CHARS):
        raise InvalidJob(f"tenants are at most {MAX_TENANT_CHARS} printable characters")
    if len(tags) > MAX_TAGS:
        raise InvalidJob(f"a job has at most {MAX_TAGS} tags, this one has {len(tags)}")
    for tag in tags:
        if not valid_name(tag, MAX_TAG_CHARS):
            raise InvalidJob(f"tags are 1 to {MAX_TAG_CHARS} printable characters: {tag!r:.60}")


def valid_name(name: object, max_chars: int) -> bool:
    """Whether `name` can stand in an envelope: printable, so no line break and no surrogate."""
    return isinstance(name, str) and 0 < len(name) <= max_chars and name.isprintable()
