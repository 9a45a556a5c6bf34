"""Views of dead letters: whatever stands in one, they show it, and nothing of it acts."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from askonce_worker.cli import dead_shown
from askonce_worker.dead_letters import DeadLetter
from askonce_worker.dead_letters.letter import read_letter
from tests.support.dead_letters import BURIED_MS, envelope

HEAD = ("code", "poison", "message", "it died", "stream", "jobs:{0}:default:bulk", "entry", "1-7")


def letter_of(*head: str, **fields: Any) -> DeadLetter:
    words: list[Any] = list(head or HEAD)
    for name, value in envelope(**fields).items():
        words += [name, value]
    data = [word.encode() if isinstance(word, str) else word for word in words]
    return read_letter("0", f"{BURIED_MS}-3".encode(), data)


def page_of(letter: DeadLetter) -> str:
    rows = dead_shown.as_page(letter, BURIED_MS)
    return "\n".join(f"{name} {value}".lstrip() for name, value in rows)


def test_a_line_has_all_columns_and_no_more_lines() -> None:
    letter = letter_of(*HEAD[:3], "one\ntwo\tthree\x1b[2J", *HEAD[4:], i="a\tb")
    assert dead_shown.as_line(letter, BURIED_MS + 7_200_000) == (
        f"0:{BURIED_MS}-3\t2h\tpoison\techo\tclient/a\\tb\tone\\ntwo\\tthree\\x1b[2J"
    )
    bare = letter_of(*HEAD[:3], "", *HEAD[4:], c="", i="", p="no JSON")
    assert dead_shown.as_line(bare, BURIED_MS).split("\t")[1:] == ["0s", "poison", "-", "-", "-"]


@pytest.mark.parametrize(
    ("age_s", "shown"),
    [(-5, "0s"), (0.2, "0s"), (59, "59s"), (61, "1m"), (3601, "1h"), (86_400 * 40, "40d")],
)
def test_ages(age_s: float, shown: str) -> None:
    now_ms = BURIED_MS + int(1000 * age_s)
    assert dead_shown.as_line(letter_of(), now_ms).split("\t")[1] == shown


@pytest.mark.parametrize(
    ("payload", "as_json", "in_page"),
    [
        (b'{"task": "echo"}', {"payload": {"task": "echo"}}, '16 bytes, JSON\n{\n  "task": "echo"'),
        (b"12345678901234567890123", {"payload": 12345678901234567890123}, "JSON\n1234567890123"),
        ("grün\n\x1b".encode(), {"payload_text": "grün\n\x1b"}, "7 bytes, text\ngrün\n\\x1b"),
        (b"\x00\xff\x10ab", {"payload_hex": "00ff106162"}, "5 bytes, hex\n00 ff106162"),
        (b"[" * 5000, {"payload_text": "[" * 5000}, "5,000 bytes, text\n[[[["),
        (b"", {}, "payload none"),
    ],
)
def test_payloads(payload: bytes, as_json: dict[str, object], in_page: str) -> None:
    letter = letter_of(p=payload)
    told = json.loads(dead_shown.as_json(letter, BURIED_MS))
    assert {name: told[name] for name in told if name.startswith("payload")} == as_json
    assert in_page in page_of(letter)


def test_json_on_a_terminal_is_the_same_json_without_controls() -> None:
    letter = letter_of(p='{"text": "\x9b2J \u202e \U000e0001"}'.encode())
    shown = dead_shown.as_json(letter, BURIED_MS)
    assert shown.isprintable()
    assert json.loads(shown)["payload"] == {"text": "\x9b2J \u202e \U000e0001"}
    assert "\\u202e" in page_of(letter)


def test_everything_is_told() -> None:
    letter = letter_of(n="acme", g="x\ny", r="@nightly", d="5", extra=b"\xff")
    assert json.loads(dead_shown.as_json(letter, BURIED_MS + 1500)) == {
        "id": f"0:{BURIED_MS}-3",
        "at": "2023-11-14T22:13:20.000Z",
        "age_s": 1.5,
        "code": "poison",
        "message": "it died",
        "lane": "bulk",
        "entry": "1-7",
        "task": "echo",
        "client": "client",
        "job": "j1",
        "tenant": "acme",
        "tags": ["x", "y"],
        "enqueued_at": "1970-01-01T00:00:00.001Z",
        "deadline_at": "1970-01-01T00:00:00.006Z",
        "reply_to": "nightly",
        "payload": {"task": "echo", "text": "hello"},
        "fields": {"extra": "\\xff"},
    }
    page = page_of(letter)
    for part in ("tenant acme", "tags x, y", "reply to nightly", "field extra \\xff", "possible"):
        assert part in page
    assert "retry not possible: envelope version b'9'" in page_of(letter_of(v="9"))


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_a_table_cuts_clients_and_messages_never_ids(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    letters = [letter_of(*HEAD[:3], "m" * 500, *HEAD[4:], c="c" * 90) for _ in range(3)]
    console.print(dead_shown.as_table(letters, BURIED_MS))
    shown = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
    assert shown.count(f"0:{BURIED_MS}-3 ") == 3
    rows = [line for line in shown.splitlines() if "poison" in line]
    assert len(rows) == 3
    assert all(len(line.rstrip()) <= width for line in rows)
    assert all(re.search(r"poison +echo +c+…?.* m+", line) for line in rows)


# --- whatever stands in a letter -----------------------------------------------------------------

NAMES = st.sampled_from([b"v", b"c", b"i", b"p", b"r", b"n", b"g", b"d"]) | st.binary(max_size=3)
VALUES = (
    st.binary(max_size=40)
    | st.text(max_size=20).map(lambda text: text.encode(errors="surrogatepass"))
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"1", b"@name", b"[" * 5000, b'{"task":' * 3000, b"9" * 5000, b"-9" * 99])
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
HEADS = st.tuples(VALUES, VALUES, VALUES, VALUES) | st.none()
SEQUENCE = st.integers(0, 2**64 - 1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(fields=FIELDS, head=HEADS, ms=SEQUENCE, now_ms=st.integers(0, 2**43))
def test_nothing_in_a_letter_can_break_a_view_of_it(
    fields: list[tuple[bytes, bytes]],
    head: tuple[bytes, bytes, bytes, bytes] | None,
    ms: int,
    now_ms: int,
) -> None:
    words = [word for pair in fields for word in pair]
    if head:
        names_of = (b"code", b"message", b"stream", b"entry")
        words = [w for pair in zip(names_of, head, strict=True) for w in pair] + words
    letter = read_letter("0", f"{ms}-0".encode(), words)
    shown = dead_shown.as_json(letter, now_ms)
    assert shown.isprintable()
    told = json.loads(shown)
    assert told["id"] == str(letter.id)
    given = [kind for kind in ("payload", "payload_text", "payload_hex") if kind in told]
    assert len(given) == bool(letter.payload)
    assert dead_shown.as_line(letter, now_ms).replace("\t", "").isprintable()
    assert dead_shown.as_line(letter, now_ms).count("\t") == 5
    for name, value in dead_shown.as_page(letter, now_ms):
        assert f"{name}{value}".replace("\n", "").isprintable()
    dead_shown.as_table([letter], now_ms)
