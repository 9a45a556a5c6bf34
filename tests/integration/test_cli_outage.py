"""`askonce run` while its store dies and comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from askonce_queue.embedded import EmbeddedStore
from tests.support.askonce_command import CONFIG, TIMEOUT_S, Askonce
from tests.support.embedded_server import server_pid
from tests.support.waiting import eventually_sync


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        yield command


def test_a_store_that_is_away_for_a_while_delays_a_run(askonce: Askonce, tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "other", maxmemory="64mb") as embedded:
        askonce.configure(f'[redis]\nurl = "{embedded.url}"\n{CONFIG}')
        texts = [*(f"wait {i}" for i in range(5)), *(f"text {i}" for i in range(3000))]
        askonce.write("in.jsonl", [{"text": text} for text in texts])
        process = askonce.start(*askonce.run_args("in.jsonl", "--window", "600"))
        eventually_sync(lambda: len(askonce.calls()) > 5, timeout_s=TIMEOUT_S)
        os.kill(server_pid(embedded.url), signal.SIGKILL)
        askonce.go()
        askonce.until_said("trying again")
        embedded.revive()
        assert process.wait(TIMEOUT_S) == 0, askonce.said()
    lines = askonce.read("out.jsonl")
    assert [line["id"] for line in lines] == [str(i + 1) for i in range(len(texts))]
    assert all("label" in line for line in lines)
