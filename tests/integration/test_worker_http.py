"""A worker's own port: what it says of itself while its store dies, it drains, or it hangs."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from askonce_queue.embedded import EmbeddedStore
from tests.support.askonce_command import CONFIG, TIMEOUT_S, Askonce, children_of, end
from tests.support.embedded_server import server_pid
from tests.support.waiting import eventually_sync

LISTEN = CONFIG + 'listen = "127.0.0.1:0"\n'
ENQUEUE = ("enqueue", "askonce.toml", "in.jsonl", "--task", "size")
BLOCKING = """
import time
from pathlib import Path

HERE = Path(__file__).parent


async def block(text):
    while text.startswith("wait") and not (HERE / "go").exists():
        time.sleep(0.01)
    return "short"
"""


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        command.configure(LISTEN)
        yield command


class Port:
    """The port of one worker process."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self._host = host

    def ask(
        self, path: str, *, method: str = "GET", timeout_s: float = 10.0
    ) -> tuple[int, str, http.client.HTTPMessage]:
        """Status, body and headers. Raises `OSError` when there is no answer in time."""
        connection = http.client.HTTPConnection(self._host, self.port, timeout=timeout_s)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers
        finally:
            connection.close()

    def status(self, path: str) -> tuple[int, list[str]]:
        """The status of a probe, and its reasons."""
        status, body, _ = self.ask(path)
        said = json.loads(body)
        assert said["ok"] == (status == 200)
        assert said["ok"] == (not said["reasons"])
        return status, cast("list[str]", said["reasons"])

    def ready(self) -> bool:
        return self.status("/readyz")[0] == 200

    def live(self) -> bool:
        return self.status("/livez")[0] == 200

    def closed(self) -> bool:
        """Whether nobody listens there any more."""
        try:
            self.ask("/livez")
        except ConnectionRefusedError:
            return True
        return False

    def metrics(self) -> dict[str, float]:
        """`name{label=value,…}` → value, without the prefix `askonce_`."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.ask("/metrics")[1]):
            for sample in family.samples:
                labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}".removeprefix("askonce_")] = sample.value
        return found


def start(askonce: Askonce, *args: str, **options: Any) -> tuple[subprocess.Popen[str], list[Port]]:
    """Start workers that serve; each with its port, in the order in which they said so."""
    process = askonce.start("worker", "askonce.toml", *args, **options)
    processes = int(args[args.index("--processes") + 1]) if "--processes" in args else 1
    askonce.until_said("worker started", processes)
    urls = re.findall(r"url=http://127\.0\.0\.1:(\d+)", askonce.said())
    assert len(urls) == processes
    return process, [Port(int(port)) for port in urls]


def free_ports(amount: int) -> int:
    """The first of as many neighbouring ports that nobody listens at."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = int(first.getsockname()[1])
            try:
                for number in range(port + 1, port + amount):
                    socket.create_server(("127.0.0.1", number)).close()
            except (OSError, OverflowError):
                continue
            return port


def test_a_worker_tells_of_itself(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": f"text {i % 9}"} for i in range(600)])
    askonce(*ENQUEUE)
    worker, (port,) = start(askonce)
    eventually_sync(lambda: port.metrics()["deliveries_total{end=settled}"] == 600)
    assert port.status("/livez") == (200, [])
    eventually_sync(port.ready)
    metrics = port.metrics()
    hits = {name: value for name, value in metrics.items() if name.startswith("hits_total")}
    assert sum(hits.values()) == 591
    assert metrics["misses_total{task=size}"] == 9
    assert metrics["model_calls_total{model=sizes,reason=fill,task=size}"] == 9
    assert metrics["model_call_duration_seconds_count{model=sizes}"] == 9
    assert metrics["flights_total{end=filled,task=size}"] == 9
    assert metrics["memory_tier_entries{}"] == 9
    assert metrics["memory_tier_bytes{}"] > 9 * 32
    assert metrics["store_reachable{shard=0}"] == metrics["worker_ready{}"] == 1
    assert metrics["last_read_age_seconds{shard=0}"] < 10
    assert metrics["process_resident_memory_bytes{}"] > 1e6
    consumer = json.loads(port.ask("/readyz")[1])["consumer"]
    assert f"consumer={consumer}" in askonce.said()
    assert len(_listening(worker.pid)) == 1
    assert end(worker) == 0
    assert port.closed()


def test_nothing_else_is_served(askonce: Askonce) -> None:
    worker, (port,) = start(askonce)
    for path in ("/", "/metrics/", "/livez/x", "/debug", "/../etc/passwd", "/metrics%00"):
        assert port.ask(path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert port.ask("/metrics", method=method)[0] == 405, method
    for path in ("/livez", "/readyz", "/metrics"):
        status, body, headers = port.ask(path, method="HEAD")
        assert status in (200, 503)
        assert body == ""
        assert headers["Cache-Control"] == "no-store"
    for request in (
        b"\x16\x03\x01 this is no HTTP\r\n\r\n",
        b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nContent-Length: much\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"a: " + b"b" * 9_000 + b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port.port)) as connection:
            connection.sendall(request)
            assert b" 400 " in connection.recv(1000)
    with socket.create_connection(("127.0.0.1", port.port)) as half:
        half.sendall(b"GET /livez HTTP/1.1\r\n")
        assert port.live()
        assert end(worker) == 0
    assert "error" not in askonce.said()


def test_asks_that_wait_and_what_waits_in_the_store(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [*({"text": "wait"} for _ in range(10)), {"text": "fail"}])
    askonce(*ENQUEUE)
    worker, (port,) = start(askonce)
    eventually_sync(lambda: port.metrics()["deliveries_held{}"] == 10)
    metrics = port.metrics()
    assert metrics["flights_in_progress{}"] == metrics["leases_held{}"] == 1
    assert metrics["model_slots_in_use{model=sizes}"] == 1
    assert metrics["errors_total{task=size}"] == 1
    assert metrics["model_errors_total{code=model_failed,model=sizes,task=size}"] == 1
    bulk = "{lane=bulk,pool=default,shard=0}"
    eventually_sync(lambda: port.metrics().get(f"pending_jobs{bulk}") == 10, timeout_s=30)
    metrics = port.metrics()
    assert metrics[f"backlog_jobs{bulk}"] == 10
    assert metrics[f"oldest_job_age_seconds{bulk}"] > 0
    assert metrics["backlog_jobs{lane=interactive,pool=default,shard=0}"] == 0
    assert metrics["dead_letters{pool=default,shard=0}"] == 0
    askonce.go()
    eventually_sync(lambda: port.metrics()["waits_total{task=size}"] == 9)
    assert port.metrics()["hits_total{source=coalesced,task=size}"] == 9
    assert end(worker) == 0


# The store


def test_an_outage_of_the_store_makes_it_unready_and_not_dead(
    askonce: Askonce, tmp_path: Path
) -> None:
    with EmbeddedStore(tmp_path / "other", maxmemory="64mb") as embedded:
        askonce.configure(f'[redis]\nurl = "{embedded.url}"\n{LISTEN}')
        worker, (port,) = start(askonce)
        eventually_sync(port.ready)
        eventually_sync(lambda: "dead_letters{pool=default,shard=0}" in port.metrics())
        os.kill(server_pid(embedded.url), signal.SIGKILL)
        eventually_sync(lambda: not port.ready())
        assert port.status("/livez") == (200, [])
        (reason,) = port.status("/readyz")[1]
        assert reason.startswith("shard 0 cannot be reached: ")
        metrics = port.metrics()
        assert metrics["store_reachable{shard=0}"] == metrics["worker_ready{}"] == 0
        eventually_sync(lambda: not any(name.startswith("backlog") for name in port.metrics()), 30)
        assert port.live()
        embedded.revive()
        eventually_sync(port.ready, timeout_s=30)
        assert port.status("/livez") == (200, [])
        askonce.write("in.jsonl", [{"text": "hello"}])
        askonce(*ENQUEUE)
        eventually_sync(lambda: port.metrics()["deliveries_total{end=settled}"] == 1)
        assert end(worker) == 0


# The end


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_makes_it_unready_at_once_while_jobs_finish(
    askonce: Askonce, processes: int
) -> None:
    askonce.write("in.jsonl", [{"text": "wait"}])
    askonce(*ENQUEUE)
    worker, ports = start(askonce, "--processes", str(processes))
    eventually_sync(lambda: all(port.ready() for port in ports))
    eventually_sync(lambda: askonce.calls() == ["wait"])
    (busy,) = [port for port in ports if port.metrics()["deliveries_held{}"]]
    worker.send_signal(signal.SIGTERM)
    eventually_sync(lambda: busy.status("/readyz") == (503, ["draining"]), timeout_s=2)
    assert busy.status("/livez") == (200, [])
    assert busy.metrics()["deliveries_held{}"] == 1
    assert busy.metrics()["worker_ready{}"] == 0
    askonce.go()
    assert worker.wait(TIMEOUT_S) == 0
    assert all(port.closed() for port in ports)


# A loop that hangs


def test_a_loop_that_hangs_answers_nothing_and_is_replaced(askonce: Askonce) -> None:
    (askonce.folder / "sizes_model.py").write_text(BLOCKING)
    first = free_ports(2)
    config = LISTEN.replace(":0", f":{first}").replace(":classify", ":block")
    # Or the other worker would take the job over, and hang as well.
    askonce.configure(config.replace("heartbeat_ttl_s = 1.0", "heartbeat_ttl_s = 60.0"))
    env = {"WATCHDOG_USEC": "6000000"}
    worker, _ = start(askonce, "--processes", "2", env=env)
    ports = [Port(first), Port(first + 1)]
    eventually_sync(lambda: all(port.ready() for port in ports))
    before = children_of(worker)
    askonce.write("in.jsonl", [{"text": "wait"}])
    askonce(*ENQUEUE)
    silent = eventually_sync(lambda: [port for port in ports if _is_silent(port)])
    (other,) = set(ports) - set(silent)
    assert other.live()
    askonce.until_said("worker process hangs")
    askonce.go()
    eventually_sync(lambda: _answers(silent[0]) and silent[0].ready(), timeout_s=TIMEOUT_S)
    after = children_of(worker)
    assert len(set(before) & set(after)) == 1
    assert len(after) == 2
    assert end(worker) == 0


def _is_silent(port: Port) -> bool:
    try:
        port.ask("/livez", timeout_s=0.5)
    except (TimeoutError, ConnectionResetError):
        return True
    return False


def _answers(port: Port) -> bool:
    try:
        port.ask("/livez", timeout_s=0.5)
    except OSError:
        return False
    return True


# Where it listens


def test_each_process_has_its_own_port(askonce: Askonce) -> None:
    worker, ports = start(askonce, "--processes", "2")
    assert len({port.port for port in ports}) == 2
    consumers = {json.loads(port.ask("/livez")[1])["consumer"] for port in ports}
    assert len(consumers) == 2
    assert end(worker) == 0


def test_processes_take_neighbouring_ports_and_keep_them(askonce: Askonce) -> None:
    first = free_ports(2)
    askonce.configure(LISTEN.replace(":0", f":{first}"))
    worker, ports = start(askonce, "--processes", "2")
    assert {port.port for port in ports} == {first, first + 1}
    os.kill(children_of(worker)[1], signal.SIGKILL)
    askonce.until_said("worker started", 3)
    assert all(Port(number).live() for number in (first, first + 1))
    assert end(worker) == 0


def test_ipv6(askonce: Askonce) -> None:
    askonce.configure(LISTEN.replace("127.0.0.1:0", "[::1]:0"))
    process = askonce.start("worker", "askonce.toml")
    askonce.until_said("worker started")
    (number,) = re.findall(r"url=http://\[::1\]:(\d+)", askonce.said())
    assert Port(int(number), "::1").live()
    assert end(process) == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_a_port_in_use_ends_the_start(askonce: Askonce, processes: int) -> None:
    with socket.create_server(("127.0.0.1", free_ports(2) + processes - 1)) as taken:
        last = int(taken.getsockname()[1])
        askonce.configure(LISTEN.replace(":0", f":{last - processes + 1}"))
        done = askonce("worker", "askonce.toml", "--processes", str(processes), code=2)
    assert done.stderr == (
        "askonce: askonce.toml: worker.listen: expected an address that is free, got "
        f"127.0.0.1:{last}: somebody listens there already\n"
    )
    assert not askonce.store_is_up()


def test_an_address_of_another_machine(askonce: Askonce) -> None:
    askonce.configure(LISTEN.replace("127.0.0.1", "192.0.2.1"))
    done = askonce("worker", "askonce.toml", code=2)
    assert "no interface of this machine has that address" in done.stderr


def test_more_processes_than_ports(askonce: Askonce) -> None:
    askonce.configure(LISTEN.replace(":0", ":65535"))
    done = askonce("worker", "askonce.toml", "--processes", "3", code=2)
    assert done.stderr == (
        "askonce: askonce.toml: worker.listen: expected a port of at most 65533, because each of "
        "3 processes has its own, got 65535\n"
    )


def test_a_burst_serves_too(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": "wait"}])
    askonce(*ENQUEUE)
    worker, (port,) = start(askonce, "--burst")
    eventually_sync(port.ready)
    askonce.go()
    assert worker.wait(TIMEOUT_S) == 0


def test_by_default_nothing_is_served(askonce: Askonce) -> None:
    askonce.configure(CONFIG)
    worker = askonce.start("worker", "askonce.toml")
    askonce.until_said("worker started")
    assert not _listening(worker.pid)
    assert "serving" not in askonce.said()
    assert end(worker) == 0


def _listening(pid: int) -> set[str]:
    """The TCP sockets at which a process listens."""
    tables = "".join(Path(f"/proc/net/{kind}").read_text() for kind in ("tcp", "tcp6"))
    rows = [line.split() for line in tables.splitlines()]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"}
    return inodes & {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
