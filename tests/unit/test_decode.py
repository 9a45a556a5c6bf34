"""Decoding entries: whatever stands in one, it is a delivery or bad, and harms no neighbour."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from askonce_queue.job import MAX_TAGS
from askonce_queue.queue_scripts import Lane
from askonce_queue.reply import WireReply
from askonce_worker.cache.policy import Control
from askonce_worker.hits.rules import Rule, keeper_out
from askonce_worker.models.protocol import Question
from askonce_worker.pool.decode import Bad, Decoder, Entry
from askonce_worker.pool.delivery import Delivery
from askonce_worker.tasks import Task
from tests.support.queue_worker import INTERACTIVE, EchoModel, echo_tasks

LIMIT = 2000


class NoOutlet:
    def crowded(self, stream: Lane, *, beyond: bool) -> bool:
        raise AssertionError(f"decoding asks for no room: {stream} {beyond}")

    def too_late(self, delivery: Delivery) -> None:
        raise AssertionError(f"no deadline has passed: {delivery}")

    def defer(self, delivery: Delivery) -> None:
        raise AssertionError(f"decoding defers nothing: {delivery}")

    def put(self, delivery: Delivery, reply: WireReply) -> None:
        raise AssertionError(f"decoding settles nothing: {delivery}, {reply}")


def tasks() -> dict[str, Task]:
    plain = echo_tasks(EchoModel(), max_input_bytes=1000)
    trimmed = echo_tasks(EchoModel(), normalize=str.strip)["echo"]
    trimmed.name = "trim"
    return plain | {"trim": trimmed}


DECODER = Decoder(tasks(), NoOutlet(), max_job_bytes=LIMIT)


def entry(payload: bytes | dict[str, Any], *more: bytes, order: str = "vcip") -> Entry:
    data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
    values = {"v": b"1", "c": b"client", "i": b"job", "p": data}
    fields = [part for name in order for part in (name.encode(), values[name])]
    return (b"1700000000000-0", [*fields, *more])


def read(*entries: Entry) -> tuple[list[Delivery], list[Bad]]:
    return DECODER.read(INTERACTIVE, entries)


def good(one: Entry) -> Delivery:
    deliveries, bad = read(one)
    assert bad == []
    (delivery,) = deliveries
    return delivery


def bad(one: Entry) -> Bad:
    deliveries, found = read(one)
    assert deliveries == []
    (only,) = found
    assert only.fields == (one[1] or [])
    return only


class TestGood:
    def test_a_plain_job(self) -> None:
        delivery = good(entry({"task": "echo", "text": "hi"}))
        assert (delivery.job_id, delivery.record) == ("job", "client/job")
        assert (delivery.address, delivery.tags, delivery.cacheable) == (
            "client",
            ("task:echo",),
            True,
        )
        assert delivery.question() == Question(text="hi")

    def test_the_quick_and_the_careful_way_agree(self) -> None:
        quick = good(entry({"task": "trim", "text": " hi "}))
        careful = good(entry({"task": "trim", "text": " hi "}, order="picv"))
        for name in ("job_id", "record", "address", "text", "key", "tags", "cacheable"):
            assert getattr(quick, name) == getattr(careful, name)
        assert quick.question() == careful.question() == Question(text="hi")

    def test_tenants_have_keys_of_their_own(self) -> None:
        job = {"task": "echo", "text": "hi"}
        keys = {good(entry(job, *more)).key for more in ((), (b"n", b"a"), (b"n", b"b"))}
        assert len(keys) == 3

    def test_tags_and_reply_stream(self) -> None:
        delivery = good(entry({"task": "echo", "text": "hi"}, b"g", b"x\ny", b"r", b"@sink"))
        assert delivery.tags == ("task:echo", "x", "y")
        assert (delivery.address, delivery.record) == ("@sink", "client/job")

    def test_messages_are_normalised_for_key_and_model(self) -> None:
        spaced = good(entry({"task": "trim", "messages": [{"role": "user", "content": " hi "}]}))
        tidy = good(entry({"task": "trim", "messages": [{"role": "user", "content": "hi"}]}))
        assert spaced.key == tidy.key
        assert spaced.question() == tidy.question()

    def test_what_refers_to_state_of_the_api_is_not_cacheable(self) -> None:
        params = {"previous_response_id": "r1"}
        assert not good(entry({"task": "echo", "text": "hi", "params": params})).cacheable

    def test_sampling_is_not_cacheable(self) -> None:
        job = {"task": "echo", "text": "hi", "params": {"temperature": 0.7}}
        assert not good(entry(job)).cacheable
        assert good(entry(job | {"params": {"temperature": 0}})).cacheable

    def test_cache_control(self) -> None:
        job = {"task": "echo", "text": "hi"}
        plain = good(entry(job))
        assert plain.control is None
        delivery = good(entry(job | {"cache": {"max_age_s": 5, "no_store": True}}))
        assert delivery.control == Control(max_age_s=5, no_store=True)
        assert delivery.key == plain.key
        assert not good(entry(job | {"cache": {"cacheable": False}})).cacheable

    def test_a_namespace_only_narrows(self) -> None:
        job = {"task": "echo", "text": "hi"}
        keys = {
            good(entry(job | {"cache": cache}, *more)).key
            for cache in ({}, {"namespace": "a"}, {"namespace": "b"})
            for more in ((), (b"n", b"a"))
        }
        assert len(keys) == 6


class TestBad:
    @pytest.mark.parametrize(
        ("payload", "code"),
        [
            (b"", "undecodable"),
            (b"\xff\x00", "undecodable"),
            (b"[]", "undecodable"),
            (b'{"task":"echo","text":"\xff"}', "undecodable"),
            (b'{"task":"echo","text":"\\ud800"}', "undecodable"),
            (b'{"task":"echo","text":5}', "undecodable"),
            (b'{"task":null,"text":"a"}', "undecodable"),
            (b'{"text":"a"}', "undecodable"),
            (b'{"task":"echo","text":"a","surprise":1}', "undecodable"),
            (b'{"task":"echo","messages":["a"]}', "undecodable"),
            (b"[" * 1900, "undecodable"),
            (b"x" * (LIMIT + 1), "too_large"),
            (b'{"task":"echo","text":"a","cache":{"max-age":5}}', "undecodable"),
            (b'{"task":"echo","text":"a","cache":{"max_age_s":-5}}', "invalid_input"),
            (b'{"task":"nope","text":"a"}', "unknown_task"),
            (b'{"task":"echo"}', "invalid_input"),
            (b'{"task":"echo","text":""}', "invalid_input"),
            (b'{"task":"trim","text":"  "}', "invalid_input"),
            (b'{"task":"echo","messages":[]}', "invalid_input"),
            (b'{"task":"echo","text":"a","messages":[]}', "invalid_input"),
            (b'{"task":"echo","text":"a","params":{"n":1' + b"0" * 30 + b"}}", "invalid_input"),
            (b'{"task":"echo","text":"' + b"x" * 1001 + b'"}', "too_large"),
            (b'{"task":"echo","messages":[{"c":"' + b"x" * 1001 + b'"}]}', "too_large"),
        ],
    )
    def test_the_code_says_what_is_wrong(self, payload: bytes, code: str) -> None:
        found = bad(entry(payload))
        assert found.code == code
        assert found.message
        assert (found.envelope.address, found.envelope.job_id) == ("client", "job")

    @pytest.mark.parametrize("fields", [None, []])
    def test_entries_without_fields(self, fields: list[bytes] | None) -> None:
        assert bad((b"1-0", fields)).code == "undecodable"

    def test_tags_and_tenants_have_the_bounds_of_admission(self) -> None:
        job = {"task": "echo", "text": "a"}
        many = b"\n".join(b"t%d" % n for n in range(MAX_TAGS + 1))
        for more in ((b"g", many), (b"n", b"x" * 201), (b"g", b"a\n\nb"), (b"n", b"\0")):
            assert bad(entry(job, *more)).code == "invalid_input"

    def test_a_job_without_an_id_is_nobodys(self) -> None:
        assert bad(entry({"task": "echo", "text": "a"}, b"i", b"")).code == "undecodable"

    @pytest.mark.parametrize(("order", "absent"), [("vcip", b"i"), ("vcip", b"c"), ("pciv", b"c")])
    def test_an_empty_client_or_id_is_none(self, order: str, absent: bytes) -> None:
        """Its reply would go to a stream that nobody reads or sweeps."""
        one = entry({"task": "echo", "text": "a"}, order=order)
        assert one[1] is not None
        one[1][one[1].index(absent) + 1] = b""
        assert bad(one).code == "undecodable"


NAMES = st.sampled_from([b"v", b"c", b"i", b"p", b"r", b"n", b"g", b"d"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
TASKS = st.sampled_from(["echo", "trim", "nope", ""])


def raw_json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return b'{"task":"echo","text":"\\udfff"}'


def job_of(task: str, parts: dict[str, Any]) -> bytes:
    return raw_json({"task": task, **parts})


PAYLOADS = (
    st.binary(max_size=60)
    | JSON.map(raw_json)
    | st.builds(job_of, TASKS, st.dictionaries(st.sampled_from(["text", "messages"]), JSON))
    | st.builds(job_of, TASKS, st.fixed_dictionaries({"text": st.text(), "params": JSON}))
    | st.builds(job_of, TASKS, st.fixed_dictionaries({"text": st.text(max_size=1500)}))
)
FIELDS = st.none() | st.lists(
    st.tuples(NAMES | st.binary(max_size=2), st.binary(max_size=20) | PAYLOADS)
).map(lambda pairs: [part for pair in pairs for part in pair])
ENTRIES = st.tuples(
    st.just(b"1-1"),
    FIELDS | PAYLOADS.map(lambda payload: entry(payload)[1]),
)


@given(st.lists(ENTRIES, max_size=6))
@example([(b"1-1", [b"v", b"1", b"c", b"", b"i", b"", b"p", b'{"task":"echo","text":"a"}'])])
def test_every_entry_is_either_good_or_bad(entries: list[Entry]) -> None:
    numbered: list[Entry] = [(b"1-%d" % n, fields) for n, (_, fields) in enumerate(entries)]
    deliveries, found = read(*numbered)
    ids = [delivery.entry_id for delivery in deliveries]
    ids += [one.envelope.entry_id for one in found]
    assert sorted(ids) == sorted(entry_id for entry_id, _ in numbered)
    for delivery in deliveries:
        question = delivery.question()
        assert (question.text is None) != (question.messages is None)
        assert len(delivery.key) == 32


@given(PAYLOADS)
def test_the_order_of_fields_changes_nothing(payload: bytes) -> None:
    first, second = read(entry(payload)), read(entry(payload, order="picv"))
    assert [one.key for one in first[0]] == [one.key for one in second[0]]
    assert [(one.code, one.message) for one in first[1]] == [
        (one.code, one.message) for one in second[1]
    ]


@given(st.lists(PAYLOADS, max_size=4), st.integers(0, 4))
def test_neighbours_are_not_harmed(garbage: list[bytes], place: int) -> None:
    entries = [entry(payload) for payload in garbage]
    entries.insert(min(place, len(entries)), (b"9-9", entry({"task": "echo", "text": "me"})[1]))
    deliveries, _ = read(*entries)
    assert b"9-9" in [delivery.entry_id for delivery in deliveries]


def test_what_is_not_in_the_key_is_not_asked() -> None:
    """Else a parameter that an API refuses has the question refused for everyone."""
    plain, odd = (
        good(entry({"task": "echo", "text": "a"} | extra))
        for extra in ({}, {"params": {"stream": True, "metadata": "not an object"}})
    )
    assert plain.key == odd.key
    assert plain.question() == odd.question()
    seeded = good(entry({"task": "echo", "text": "a", "params": {"seed": 1, "stream": True}}))
    assert seeded.question().params == {"seed": 1}
    assert seeded.key != plain.key


@pytest.mark.parametrize("extra", [{}, {"params": {"seed": 7}}])
def test_a_rule_keeps_inputs_from_the_cache_on_both_paths(extra: dict[str, Any]) -> None:
    known = tasks()
    known["echo"].kept_out = keeper_out([Rule("echo", "*balance*")])
    known["trim"].kept_out = keeper_out([Rule("trim", "balance")])
    decoder = Decoder(known, NoOutlet())
    jobs = [("echo", "my Balance"), ("echo", "hello"), ("trim", " balance "), ("trim", "hello")]
    entries = [entry({"task": task, "text": text, **extra}) for task, text in jobs]
    deliveries, bad = decoder.read(INTERACTIVE, entries)
    assert not bad
    assert [one.cacheable for one in deliveries] == [False, True, False, True]
    messages = [{"role": "user", "content": "my balance"}]
    ((chat,), _) = decoder.read(INTERACTIVE, [entry({"task": "echo", "messages": messages})])
    assert not chat.cacheable


class LateOutlet(NoOutlet):
    def __init__(self) -> None:
        self.late: list[str] = []

    def too_late(self, delivery: Delivery) -> None:
        self.late.append(delivery.job_id)


@pytest.mark.parametrize("more", [[], [b"n", b"tenant"], [b"o", b"2000"]])
def test_what_came_too_late_is_told_so_and_goes_no_further(more: list[bytes]) -> None:
    """Enqueued at 1000 (or, before it was deferred, at 2000), read at 5000, in ms."""
    outlet = LateOutlet()
    decoder = Decoder(tasks(), outlet, moment=lambda ms: ms / 1000, now=lambda: 5.0)
    began = 2000 if more[:1] == [b"o"] else 1000
    entries: list[tuple[bytes, list[bytes] | None]] = [
        (
            b"1000-%d" % left_ms,
            [
                *(b"v", b"1", b"c", b"client", b"i", b"left %d" % left_ms),
                *(b"p", b'{"task":"echo","text":"x"}', b"d", b"%d" % (5000 - began + left_ms)),
                *more,
            ],
        )
        for left_ms in (0, 1, 500)
    ]
    good, bad = decoder.read(INTERACTIVE, entries)
    assert bad == []
    assert outlet.late == ["left 0"]
    assert [delivery.job_id for delivery in good] == ["left 1", "left 500"]
    assert [delivery.deadline for delivery in good] == [5.001, 5.5]
