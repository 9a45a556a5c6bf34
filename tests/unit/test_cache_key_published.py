"""The key's published page lists what the code does; stateful requests go past the cache."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from askonce_worker.cache.key import (
    BYPASS,
    IN_KEY,
    OUT_HEADERS,
    OUT_OF_KEY,
    OUT_OF_TASK,
    KeyMaker,
    must_bypass,
)

DOC = Path(__file__).parents[2] / "docs" / "CACHE_KEY.md"
ROW = re.compile(r"^\| `?([^|`]+)`? \| (.+) \|$", re.MULTILINE)
"""A row of a table; the first two of a section are the head of its table."""


@pytest.mark.parametrize(
    "params",
    [
        {"store": True},
        {"background": True},
        {"previous_response_id": "resp_1"},
        {"conversation": {"id": "conv_1"}},
        {"container": "cntr_1"},
        {"mcp_servers": [{"url": "https://example.com"}]},
        {"web_search_options": {}},
        *(
            {"tools": [{"type": kind}]}
            for kind in ("web_search_20250305", "mcp", "code_interpreter")
        ),
        {"tools": [{"type": "function"}, {"type": "file_search"}]},
        {"tools": ["of no known shape"]},
        {"tools": {"of": "no known shape"}},
    ],
)
def test_stateful_requests_go_past_the_cache(params: dict[str, Any]) -> None:
    reason = must_bypass(params)
    assert reason is not None
    assert reason.startswith(f"{next(iter(params))}: ")


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"store": False, "background": None, "seed": 1, "user": "u"},
        {"tools": []},
        {"tools": [{"type": "function"}, {"name": "f"}, {"type": "bash_20250124"}]},
    ],
)
def test_stateless_requests_do_not(params: dict[str, Any]) -> None:
    assert must_bypass(params) is None


def test_the_published_page_lists_exactly_the_tables() -> None:
    sections = re.split(r"^## ", DOC.read_text(encoding="utf-8"), flags=re.MULTILINE)
    published = {section.splitlines()[0]: dict(ROW.findall(section)[2:]) for section in sections}
    assert published["In the key"] == IN_KEY
    assert published["Out: request parameters"] == OUT_OF_KEY
    assert published["Out: headers"] == OUT_HEADERS
    assert published["Out: settings of a task"] == OUT_OF_TASK
    assert published["Past the cache"] == BYPASS


def test_the_formula_of_a_text_key() -> None:
    digest = bytes(range(32))
    expected = hashlib.sha256(
        digest + b"tenant" + b"\0\0\0\4acme" + b"\0\0\0\2ns" + b"t" + b"hello"
    )
    assert KeyMaker(digest, shared=False).text_key("hello", "acme", "ns") == expected.digest()


def test_a_task_digest_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeyMaker(b"short", shared=False)
