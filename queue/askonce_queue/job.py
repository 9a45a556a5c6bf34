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
SOURCE_PREFIX = "source:"
MAX_CONTROL_S = 10 * 365 * 86_400
MIN_DEADLINE_S = 0.001
MAX_DEADLINE_S = 30 * 86_400


class CacheControl(
    msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, kw_only=True, frozen=True
):
    """How one job's answer may be found and kept: HTTP's request directives, in seconds.

    `no_store`: an answer that is there will do, a new one is not kept for this job's sake.
    `no_cache`: ask the model anew, and keep its answer. `max_age_s`, `min_fresh_s`, `max_stale_s`:
    which stored answers will do. `only_if_cached`: the error `not_cached` instead of a model call.
    `stale_if_error_s`: an answer this stale will do if the model fails. `ttl_s`: an answer older
    than that will not do, and a new one is kept no longer; what is stored already stays.
    `namespace`: asks of different namespaces never share. `cacheable`: the caller's word instead of
    the task's on whether answers are shared and kept.
    """

    cacheable: bool | None = None
    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    min_fresh_s: float | None = None
    max_stale_s: float | None = None
    stale_if_error_s: float | None = None
    ttl_s: float | None = None
    namespace: str = ""


class Payload(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The JSON part of a job: exactly one of `text` and `messages`.

    `params` are further request parameters for the model. Whatever stands in them is part of the
    cache key, unless `docs/CACHE_KEY.md` lists it as one that cannot change an answer.
    """

    task: str
    text: str | None = None
    messages: list[Json] | None = None
    params: Json | None = None
    cache: CacheControl | None = None


class Job(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One request to a task, as producers write it.

    Exactly one of `text` (str) and `messages` (chat messages, `{"role", "content"}`) is given.
    `id` defaults to a new unique id. `tags` are names by which the answer can be invalidated;
    `sources` are what it is built on (documents, an index), by which it can be invalidated, too.
    `deadline_s`: seconds from its enqueue, by the store's clock, after which an answer is not worth
    a model call: then its reply is the error `deadline_exceeded`. None: it waits, however long.
    """

    task: str
    text: str | None = None
    messages: list[Json] | None = None
    params: Json | None = None
    id: str | None = None
    tenant: str = ""
    tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    cache: CacheControl | None = None
    deadline_s: float | None = None

    @property
    def all_tags(self) -> tuple[str, ...]:
        """Its tags, and those that stand for its sources."""
        return self.tags + tuple(map(source_tag, self.sources)) if self.sources else self.tags


def source_tag(source: str) -> str:
    """The tag of answers that are built on a source."""
    return SOURCE_PREFIX + source


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
            Payload(
                task=job.task,
                text=job.text,
                messages=job.messages,
                params=job.params,
                cache=job.cache,
            )
        )
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidJob(f"the job is not valid JSON or Unicode: {error}") from error
    if len(payload) > max_bytes:
        raise InvalidJob(
            f"the job has {len(payload)} bytes, more than the limit of {max_bytes}: shorten it"
        )
    if job.id is not None and not valid_name(job.id, MAX_ID_CHARS):
        raise InvalidJob(f"job ids are 1 to {MAX_ID_CHARS} printable characters: {job.id!r:.60}")
    if job.tenant != "" or job.tags != () or job.sources != ():
        check_envelope(job.tenant, job.all_tags)
    if job.cache is not None:
        check_control(job.cache)
    if job.deadline_s is not None:
        check_deadline(job.deadline_s)
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


def check_control(control: CacheControl) -> None:
    """Check the cache control of a job; raises `InvalidJob`."""
    for name in ("max_age_s", "min_fresh_s", "max_stale_s", "stale_if_error_s", "ttl_s"):
        seconds = getattr(control, name)
        if seconds is not None and not 0 <= seconds <= MAX_CONTROL_S:
            raise InvalidJob(f"cache.{name} is from 0 to {MAX_CONTROL_S} seconds, not {seconds}")
    if control.min_fresh_s is not None and control.max_stale_s is not None:
        raise InvalidJob("cache.max_stale_s cannot be met beside cache.min_fresh_s: give one")
    if control.only_if_cached and control.no_cache:
        raise InvalidJob("cache.only_if_cached cannot be met beside cache.no_cache: give one")
    if control.namespace and not valid_name(control.namespace, MAX_TENANT_CHARS):
        raise InvalidJob(f"cache.namespace has at most {MAX_TENANT_CHARS} printable characters")


def check_deadline(seconds: object) -> None:
    """Check the deadline of a job; raises `InvalidJob`."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not MIN_DEADLINE_S <= cast("float", seconds) <= MAX_DEADLINE_S:
        raise InvalidJob(
            f"deadline_s is from {MIN_DEADLINE_S} to {MAX_DEADLINE_S} seconds after the enqueue, "
            f"not {seconds!r:.60}; leave it out for a job that waits as long as it takes"
        )


def valid_name(name: object, max_chars: int) -> bool:
    """Whether `name` can stand in an envelope: printable, so no line break and no surrogate."""
    return isinstance(name, str) and 0 < len(name) <= max_chars and name.isprintable()
