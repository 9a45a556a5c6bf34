"""`askonce worker` and `askonce enqueue`: processes that come, crash, hang, drain and go."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from askonce_queue import names
from askonce_queue.connections import connect_sync
from askonce_queue.embedded import EmbeddedStore
from tests.support.askonce_command import CONFIG, TIMEOUT_S, Askonce, children_of, end
from tests.support.embedded_server import is_running
from tests.support.waiting import eventually_sync

ENQUEUE = ("enqueue", "askonce.toml", "in.jsonl", "--task", "size")


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        yield command


def in_store(askonce: Askonce, *words: str | bytes | int) -> Any:
    """The reply of the command's own store to one command."""
    with EmbeddedStore(askonce.store) as embedded:
        store = connect_sync(embedded.url, role="commands")
        try:
            return cast("Any", store.execute_command(*words))
        finally:
            store.close()


def backlog(askonce: Askonce, lane: str = "bulk") -> int:
    return int(in_store(askonce, "XLEN", names.jobs("0", "default", lane)))


def named_replies(askonce: Askonce, stream: str) -> list[dict[str, Any]]:
    """What a consumer in any language finds."""
    entries = in_store(askonce, "XRANGE", names.replies("0", f"@{stream}"), "-", "+")
    lines = [line for _, fields in entries for line in fields[fields.index(b"r") + 1].splitlines()]
    return [json.loads(line) for line in lines]


# enqueue, and workers in bursts


@pytest.mark.parametrize("processes", ["1", "2"])
def test_enqueued_jobs_are_done_by_a_burst(askonce: Askonce, processes: str) -> None:
    askonce.write("in.jsonl", [{"text": f"text {i % 30}", "id": f"job-{i}"} for i in range(700)])
    done = askonce(*ENQUEUE)
    assert done.stdout.splitlines() == ["700 jobs enqueued", "replies: reply:{0}:@size"]
    assert backlog(askonce) == 700
    askonce("worker", "askonce.toml", "--burst", "--processes", processes)
    assert backlog(askonce) == 0
    assert len(askonce.calls()) == 30
    replies = named_replies(askonce, "size")
    assert {reply["id"] for reply in replies} == {f"job-{i}" for i in range(700)}
    assert all("answer" in reply for reply in replies)
    assert not askonce.store_is_up()


def test_models_are_found_in_the_working_directory(askonce: Askonce) -> None:
    (askonce.folder / "conf").mkdir()
    (askonce.folder / "askonce.toml").rename(askonce.folder / "conf" / "askonce.toml")
    askonce.store = askonce.folder / "conf" / ".askonce"
    askonce.write("in.jsonl", [{"text": "hello"}])
    askonce("enqueue", "conf/askonce.toml", "in.jsonl", "--task", "size")
    askonce("worker", "conf/askonce.toml", "--burst", "--processes", "2")
    assert len(named_replies(askonce, "size")) == 1


def test_enqueue_refuses_bad_lines_and_takes_the_others(askonce: Askonce) -> None:
    lines: list[object] = [
        {"text": "hello", "id": "a"},
        "{broken",
        {"text": "hello again", "id": "a"},
        {"text": "x", "id": "line\nbreak"},
        {"text": "bye"},
    ]
    askonce.write("in.jsonl", lines)
    done = askonce(*ENQUEUE, "--reply-to", "nightly", "--lane", "interactive", code=1)
    assert done.stdout.splitlines() == ["2 jobs enqueued", "replies: reply:{0}:@nightly"]
    assert "line 3: id 'a' again" in done.stderr
    assert "3 lines refused" in done.stderr
    assert backlog(askonce, "interactive") == 2


def test_an_id_that_is_in_use_is_refused_and_its_neighbours_are_not(askonce: Askonce) -> None:
    lines = [{"text": f"text {i}", "id": f"{i}"} for i in range(600)]
    askonce.write("in.jsonl", [*lines, {"text": "other", "id": "3"}, {"text": "more"}])
    done = askonce(*ENQUEUE, code=1)
    assert done.stdout.splitlines()[0] == "601 jobs enqueued"
    assert "id '3': in use" in done.stderr
    assert backlog(askonce) == 601


def test_enqueue_waits_for_a_full_queue_or_ends(askonce: Askonce) -> None:
    askonce.configure(CONFIG + "max_backlog = 5\n")
    askonce.write("in.jsonl", [{"text": f"text {i}"} for i in range(12)])
    done = askonce(*ENQUEUE, "--no-wait", code=1)
    assert done.stdout.splitlines()[0] == "5 jobs enqueued"
    assert "the queue is full: the backlog is at its bound (max_backlog)" in done.stderr
    process = askonce.start(*ENQUEUE)
    askonce.until_said("waiting")
    worker = askonce.start("worker", "askonce.toml")
    assert process.wait(TIMEOUT_S) == 0
    assert end(worker) == 0
    askonce("worker", "askonce.toml", "--burst")
    assert len(named_replies(askonce, "size")) == 17


# workers that stay


def test_run_says_when_nobody_works(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": "hello"}])
    run = askonce.start(*askonce.run_args("in.jsonl", "--no-worker"))
    askonce.until_said("no worker is alive in pool 'default'")
    worker = askonce.start("worker", "askonce.toml")
    assert run.wait(TIMEOUT_S) == 0
    assert end(worker) == 0


def test_run_leaves_it_to_running_workers(askonce: Askonce) -> None:
    worker = askonce.start("worker", "askonce.toml", "--processes", "2", "--log", "json")
    askonce.until_said("worker started", 2)
    askonce.write("in.jsonl", [{"text": f"text {i % 9}"} for i in range(600)])
    askonce.run("in.jsonl", "--no-worker")
    summary = askonce.summary()
    assert (summary["jobs"], summary["model_calls"]) == (600, 9)
    assert len(askonce.calls()) == 9
    assert end(worker) == 0
    assert not askonce.store_is_up()
    for line in askonce.said().splitlines():
        event = json.loads(line)
        assert {"event", "level", "timestamp", "logger"} <= set(event)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_lets_jobs_under_way_finish(askonce: Askonce, processes: int) -> None:
    askonce.write("in.jsonl", [{"text": "wait"}])
    askonce(*ENQUEUE)
    worker = askonce.start("worker", "askonce.toml", "--processes", str(processes))
    eventually_sync(lambda: askonce.calls() == ["wait"], timeout_s=TIMEOUT_S)
    askonce.until_said("worker started", processes)
    worker.send_signal(signal.SIGTERM)
    askonce.until_said("draining", processes)
    askonce.go()
    assert worker.wait(TIMEOUT_S) == 0
    assert [reply["source"] for reply in named_replies(askonce, "size")] == ["model"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_signal_hands_them_back(askonce: Askonce, processes: int) -> None:
    askonce.write("in.jsonl", [{"text": "wait"}])
    askonce(*ENQUEUE)
    worker = askonce.start("worker", "askonce.toml", "--processes", str(processes))
    eventually_sync(lambda: askonce.calls() == ["wait"], timeout_s=TIMEOUT_S)
    askonce.until_said("worker started", processes)
    worker.send_signal(signal.SIGTERM)
    askonce.until_said("draining", processes)
    assert end(worker) == 0
    assert backlog(askonce) == 1
    askonce.go()
    askonce("worker", "askonce.toml", "--burst")
    assert len(named_replies(askonce, "size")) == 1


def test_ctrl_c_is_130(askonce: Askonce) -> None:
    worker = askonce.start("worker", "askonce.toml")
    askonce.until_said("worker started")
    assert end(worker, signal.SIGINT) == 130
    assert not askonce.store_is_up()


# The supervisor


def test_a_crashed_worker_is_replaced(askonce: Askonce) -> None:
    worker = askonce.start("worker", "askonce.toml", "--processes", "2")
    askonce.until_said("worker started", 2)
    victim, other = children_of(worker)
    os.kill(victim, signal.SIGKILL)
    askonce.until_said("worker started", 3)
    assert "killed by SIGKILL" in askonce.said()
    assert other in children_of(worker)
    assert len(children_of(worker)) == 2
    assert end(worker) == 0
    assert not askonce.store_is_up()


def test_workers_drain_when_their_supervisor_is_gone(askonce: Askonce) -> None:
    worker = askonce.start("worker", "askonce.toml", "--processes", "2")
    askonce.until_said("worker started", 2)
    children = children_of(worker)
    worker.kill()
    worker.wait(TIMEOUT_S)
    eventually_sync(lambda: not any(map(is_running, children)), timeout_s=TIMEOUT_S)
    assert askonce.said().count("worker stopped") == 2
    assert not askonce.store_is_up()


# sd_notify


class Manager:
    """What systemd is to a service: a socket that hears how it is."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0"))
        self._socket.settimeout(TIMEOUT_S)
        self.heard: list[str] = []

    def until_heard(self, message: str) -> None:
        while message not in self.heard:
            self.heard.append(self._socket.recv(1024).decode())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_service_manager_hears_of_it(
    askonce: Askonce, manager: Manager, processes: int
) -> None:
    env = {"NOTIFY_SOCKET": str(askonce.folder / "notify"), "WATCHDOG_USEC": "4000000"}
    worker = askonce.start("worker", "askonce.toml", "--processes", str(processes), env=env)
    manager.until_heard("READY=1")
    assert askonce.said().count("worker started") == processes
    manager.until_heard("WATCHDOG=1")
    worker.send_signal(signal.SIGTERM)
    manager.until_heard("STOPPING=1")
    assert worker.wait(TIMEOUT_S) == 0
    assert manager.heard.count("READY=1") == 1


def test_an_abstract_socket(askonce: Askonce) -> None:
    address = f"@askonce-test-{os.getpid()}"
    manager = Manager(address)
    try:
        worker = askonce.start("worker", "askonce.toml", env={"NOTIFY_SOCKET": address})
        manager.until_heard("READY=1")
        assert end(worker) == 0
    finally:
        manager.close()


def test_a_worker_that_hangs_is_killed_and_replaced(askonce: Askonce) -> None:
    env = {"WATCHDOG_USEC": "2000000"}
    worker = askonce.start("worker", "askonce.toml", "--processes", "2", env=env)
    askonce.until_said("worker started", 2)
    victim = children_of(worker)[0]
    os.kill(victim, signal.SIGSTOP)
    askonce.until_said("worker process hangs", 1)
    askonce.until_said("worker started", 3)
    assert not is_running(victim)
    assert end(worker) == 0


def test_nobody_to_notify_is_no_error(askonce: Askonce) -> None:
    for address in ("/nowhere/notify", "nonsense", "vsock:2:1"):
        process = askonce.start("worker", "askonce.toml", "--burst", env={"NOTIFY_SOCKET": address})
        assert process.wait(TIMEOUT_S) == 0
