"""From stream entries to deliveries: envelope, payload, task, normalised input, cache key.

Whatever is wrong with an entry becomes a `Bad` of its own and harms no neighbour.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from askonce_queue.envelope import NAMED, VERSION, Envelope, read_deadline, read_envelope
from askonce_queue.errors import InvalidJob
from askonce_queue.job import MAX_JOB_BYTES, Json, Payload, check_control, check_envelope
from askonce_queue.queue_scripts import Lane, LaneName
from askonce_queue.reply import ErrorCode
from askonce_worker.cache.key import effective_params, must_bypass
from askonce_worker.cache.sources import Sources
from askonce_worker.hits.inputs import input_text
from askonce_worker.models.protocol import Question
from askonce_worker.pool.delivery import Delivery, Outlet
from askonce_worker.tasks import Task

Entry = tuple[bytes, list[bytes] | None]
"""A stream entry as the client library returns it raw: id, then names and values in turn."""

MOST_MESSAGE_CHARS = 500
"""What is said of a bad entry; what is wrong in it may be as large as a job."""

_PLAIN_FIELDS = (b"v", b"c", b"i", b"p")
_NAMED = ord(NAMED)
_PLAIN_LENGTH = 2 * len(_PLAIN_FIELDS)
_TIMED_LENGTH = _PLAIN_LENGTH + 2
"""Of one with a deadline beside them."""
_payload_decoder = msgspec.json.Decoder(Payload)


class Bad(NamedTuple):
    """An entry that is not a job this worker can answer; `fields` are as they came."""

    envelope: Envelope
    fields: list[bytes]
    code: ErrorCode
    message: str


class _Refusal(Exception):
    def __init__(self, code: ErrorCode, message: str) -> None:
        self.code: ErrorCode = code
        self.message = message
        super().__init__(message)


def _by_our_own_clocks(store_ms: float) -> float:
    """A time of the store on the monotonic clock, where the store's clock is this machine's."""
    return store_ms / 1000 - time.time() + time.monotonic()


class Decoder:
    """Reads the entries of every lane for one worker's tasks.

    `moment` turns a time of the store, Unix ms, into one of the monotonic clock `now`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        outlet: Outlet,
        *,
        sources: Sources | None = None,
        max_job_bytes: int = MAX_JOB_BYTES,
        moment: Callable[[float], float] = _by_our_own_clocks,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = tasks
        self._outlet = outlet
        self._sources = sources or Sources({})
        self._max_job_bytes = max_job_bytes
        self._moment = moment
        self._now = now

    def read(self, lane: Lane, entries: Sequence[Entry]) -> tuple[list[Delivery], list[Bad]]:
        """Decode a batch. Never raises for what an entry holds.

        What came too late is neither good nor bad: its reply is on its way.
        """
        good: list[Delivery] = []
        bad: list[Bad] = []
        decode = _payload_decoder.decode
        tasks, outlet, most = self._tasks, self._outlet, self._max_job_bytes
        home: LaneName = "bulk" if lane.home == "bulk" else "interactive"
        timed, last, until = False, (b"", b""), math.inf
        for entry_id, fields in entries:
            # The plain job of a producer, inline: it is nearly every job, and this is the hot path.
            if (
                fields is not None
                and (
                    len(fields) == _PLAIN_LENGTH
                    or (len(fields) == _TIMED_LENGTH and fields[8] == b"d")
                )
                and (fields[0], fields[2], fields[4], fields[6]) == _PLAIN_FIELDS
                and fields[1] == VERSION
                and fields[3]
                and fields[3][0] != _NAMED
                and fields[5]
                and 0 < len(fields[7]) <= most
            ):
                try:
                    payload = decode(fields[7])
                    task = tasks[payload.task]
                    text = payload.text
                    if (
                        text
                        and payload.messages is None
                        and payload.params is None
                        and payload.cache is None
                    ):
                        if task.normalize is not None:
                            text = task.normalize(text)
                        encoded = text.encode()
                        if text and len(encoded) <= task.max_input_bytes:
                            client, job_id = fields[3].decode(), fields[5].decode()
                            delivery = Delivery(
                                lane,
                                home,
                                entry_id,
                                job_id,
                                f"{client}/{job_id}",
                                client,
                                task,
                                payload,
                                text,
                                task.key_maker.text_key(encoded, ""),
                                task.tags,
                                task.cacheable
                                and (task.kept_out is None or not task.kept_out(text)),
                                outlet,
                            )
                            if len(fields) == _TIMED_LENGTH:
                                # Jobs of one enqueue call mostly share it.
                                when = (entry_id.partition(b"-")[0], fields[9])
                                if when != last:
                                    until = self._deadline(delivery, read_deadline(fields[9]))
                                    last = when
                                delivery.deadline = until
                                timed = True
                            good.append(delivery)
                            continue
                except (KeyError, ValueError, RecursionError, msgspec.MsgspecError):
                    pass  # the slow path says what is wrong
            self._read_carefully(lane, home, entry_id, fields, good, bad)
            timed = timed or (bool(good) and good[-1].deadline < math.inf)
        return self._in_time(good) if timed else good, bad

    def _in_time(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those whose deadline has not passed; the others are told."""
        now = self._now()
        for delivery in deliveries:
            if delivery.deadline <= now:
                self._outlet.too_late(delivery)
        return [delivery for delivery in deliveries if delivery.deadline > now]

    def is_overdue(self, envelope: Envelope) -> bool:
        """Whether the deadline of a job has passed."""
        deadline_ms = envelope.deadline_ms
        return deadline_ms > 0 and self._now() >= self._deadline(envelope, deadline_ms)

    def _deadline(self, job: Envelope | Delivery, deadline_ms: int) -> float:
        """A deadline on the monotonic clock: so long after the enqueue, by the store's clock."""
        began_ms = job.origin_ms or int(job.entry_id.partition(b"-")[0])
        return self._moment(began_ms + deadline_ms)

    def _read_carefully(
        self,
        lane: Lane,
        home: LaneName,
        entry_id: bytes,
        fields: list[bytes] | None,
        good: list[Delivery],
        bad: list[Bad],
    ) -> None:
        envelope = read_envelope(entry_id, fields)
        try:
            good.append(self._delivery(lane, home, envelope))
        except _Refusal as refusal:
            message = refusal.message[:MOST_MESSAGE_CHARS]
            bad.append(Bad(envelope, fields or [], refusal.code, message))

    def _delivery(self, lane: Lane, home: LaneName, envelope: Envelope) -> Delivery:
        if envelope.problem:
            raise _Refusal("undecodable", envelope.problem)
        if len(envelope.payload) > self._max_job_bytes:
            raise _Refusal("too_large", f"the payload has more than {self._max_job_bytes} bytes")
        try:
            payload = _payload_decoder.decode(envelope.payload)
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise _Refusal("undecodable", f"the payload is not a job: {error}") from error
        task = self._tasks.get(payload.task)
        if task is None:
            known = ", ".join(sorted(self._tasks))
            message = f"no task {payload.task!r:.60} here; known tasks: {known}"
            raise _Refusal("unknown_task", message)
        try:
            check_envelope(envelope.tenant, envelope.tags)
            question = _question(task, payload)
            bypass = must_bypass(payload.params) if payload.params else None
            asked = payload.cache
            if asked is not None:
                check_control(asked)
            bypass = bypass or task.policy.why_not_cacheable(asked, question.params)
            kept_out = task.kept_out
            if bypass is None and kept_out is not None and kept_out(input_text(question)):
                bypass = "rule: a review of hits has kept such inputs from the cache"
            namespace = asked.namespace if asked is not None else ""
            key = task.key_maker.question_key(question, envelope.tenant, namespace)
        except (InvalidJob, UnicodeEncodeError) as error:
            raise _Refusal("invalid_input", str(error)) from error
        delivery = Delivery(
            lane,
            home,
            envelope.entry_id,
            envelope.job_id,
            envelope.record,
            envelope.address,
            task,
            Payload(task.name, question.text, question.messages, question.params, asked),
            question.text,
            key,
            self._sources.close((*task.tags, *envelope.tags)) if envelope.tags else task.tags,
            bypass is None,
            self._outlet,
            envelope.tenant,
            task.policy.control(asked) if asked is not None else None,
            origin_ms=envelope.origin_ms,
        )
        if envelope.deadline_ms:
            delivery.deadline = self._deadline(envelope, envelope.deadline_ms)
        return delivery


def _question(task: Task, payload: Payload) -> Question:
    """The input as key and model see it. Raises `_Refusal`."""
    text, messages = payload.text, payload.messages
    if (text is None) == (messages is None):
        raise _Refusal("invalid_input", "a job needs exactly one of 'text' and 'messages'")
    if task.normalize is not None:
        if text is not None:
            text = task.normalize(text)
        else:
            messages = [_normalized(task, message) for message in messages or ()]
    if not text and not messages:
        raise _Refusal("invalid_input", "the input is empty")
    size = len(text.encode()) if text is not None else len(msgspec.json.encode(messages))
    if size > task.max_input_bytes:
        raise _Refusal(
            "too_large",
            f"the input has {size} bytes, more than the {task.max_input_bytes} of task "
            f"{task.name!r} (max_input_bytes)",
        )
    # What is not in the key is not asked either: a parameter that the API refuses would have the
    # same question refused for those who ask it without.
    params = effective_params(payload.params) if payload.params else None
    return Question(text, messages, params or None)


def _normalized(task: Task, message: Json) -> Json:
    content = message.get("content")
    if task.normalize is None or not isinstance(content, str):
        return message
    return {**message, "content": task.normalize(content)}
