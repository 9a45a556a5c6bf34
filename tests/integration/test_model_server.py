"""The stand-in model server: reproducible, exactly counted, bounded; and as a process."""

from __future__ import annotations

import asyncio
import io
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from askonce_loadtest import model_server
from askonce_loadtest.model_behaviour import Turn, turn_of
from askonce_loadtest.model_command import model
from askonce_loadtest.model_limits import Limits
from askonce_loadtest.model_server import (
    MAX_REQUEST_BYTES,
    Behaviour,
    ModelServer,
)
from tests.support.waiting import eventually

COMMAND = "import typer; from askonce_loadtest.model_command import model; typer.run(model)"
TEXTS = [f"text {n}" for n in range(2000)]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


async def post(
    session: aiohttp.ClientSession, server: ModelServer, body: object
) -> tuple[int, Any]:
    url = f"{server.base_url}/chat/completions"
    async with session.post(url, data=io.BytesIO(msgspec.json.encode(body))) as response:
        return response.status, await response.json()


def test_turns_depend_on_seed_input_and_count_only() -> None:
    behaviour = Behaviour(seed=1, cut=0.3, latency_ms=10, latency_sigma=0.5)
    first = [turn_of(behaviour, text, 0, None) for text in TEXTS]
    assert first == [turn_of(behaviour, text, 0, None) for text in TEXTS]
    assert first != [turn_of(behaviour, text, 1, None) for text in TEXTS]
    other = msgspec.structs.replace(behaviour, seed=2)
    assert first != [turn_of(other, text, 0, None) for text in TEXTS]


def test_faults_and_latencies_come_in_their_shares() -> None:
    behaviour = Behaviour(
        status_429=0.1, cut=0.2, empty_choices=0.3, latency_ms=10, latency_sigma=1
    )
    turns = [turn_of(behaviour, text, 0, None) for text in TEXTS]
    counts = Counter(turn.fault for turn in turns)
    expected = {"status_429": 200, "cut": 400, "empty_choices": 600, "ok": 800}
    assert counts.keys() == expected.keys()
    assert all(abs(counts[fault] - expected[fault]) < 80 for fault in counts)
    latencies = sorted(turn.latency_s for turn in turns)
    assert 0.009 < latencies[1000] < 0.011
    assert 0.02 < latencies[1680] < 0.034  # one sigma above the median: e times it
    assert turn_of(Behaviour(latency_ms=5), "any", 0, None) == Turn("ok", 0.005)
    assert turn_of(Behaviour(stall=1.0), "any", 0, "ok").fault == "ok"


def test_latencies_may_have_two_modes_or_come_from_a_list() -> None:
    two = Behaviour(latency_ms=10, slow=0.25, slow_latency_ms=1000, latency_sigma=0.2)
    latencies = [turn_of(two, text, 0, None).latency_s for text in TEXTS]
    slow = [latency for latency in latencies if latency > 0.1]
    assert abs(len(slow) - 500) < 80
    assert 0.9 < sorted(slow)[len(slow) // 2] < 1.1
    assert latencies == [turn_of(two, text, 0, None).latency_s for text in TEXTS]
    faults = msgspec.structs.replace(two, cut=0.5)  # who is slow has no more faults than others
    cut_and_slow = [turn_of(faults, text, 0, None) for text in TEXTS]
    cut_and_slow = [turn for turn in cut_and_slow if turn.fault == "cut" and turn.latency_s > 0.1]
    assert abs(len(cut_and_slow) - 250) < 60
    listed = Behaviour(latencies_ms=(1, 5, 5, 70), latency_ms=10_000, slow=1.0)
    counts = Counter(turn_of(listed, text, 0, None).latency_s for text in TEXTS)
    assert counts.keys() == {0.001, 0.005, 0.07}
    assert abs(counts[0.005] - 1000) < 100


@pytest.mark.parametrize(
    "shares", [{"cut": 0.6, "stall": 0.6}, {"cut": -0.1}, {"cut": float("nan")}]
)
def test_shares_beyond_the_whole_are_refused(shares: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Behaviour(**shares)


async def test_equal_questions_get_equal_bytes_and_are_counted(
    session: aiohttp.ClientSession,
) -> None:
    async with ModelServer() as server:
        body = chat("hello", messages=[
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        ])  # fmt: skip
        assert await post(session, server, body) == await post(session, server, body)
        await post(session, server, chat("other"))
        assert server.calls == {"hello": 2, "other": 1}
        async with session.get(f"{server.root_url}/stats?calls=1") as response:
            stats = await response.json()
        assert stats["calls"] == {"hello": 2, "other": 1}
        assert (stats["total_calls"], stats["repeated_inputs"]) == (3, 1)
        assert (stats["max_calls_per_input"], stats["distinct_inputs"]) == (2, 2)


async def test_calls_in_flight_are_counted_and_stalls_end_with_the_server(
    session: aiohttp.ClientSession,
) -> None:
    async with ModelServer(Behaviour(stall=1.0)) as server:
        calls = [asyncio.create_task(post(session, server, chat(str(n)))) for n in range(5)]
        await eventually(lambda: server.in_flight == 5)
        assert server.max_in_flight == 5
        assert server.faults == {"stall": 5}
    assert [status for status, _ in await asyncio.gather(*calls)] == [503] * 5


async def test_reset_forgets_and_can_change_the_behaviour(session: aiohttp.ClientSession) -> None:
    async with ModelServer() as server:
        await post(session, server, chat("hello"))
        url = f"{server.root_url}/reset"
        async with session.post(url, data=b'{"status_500": 1.0}') as response:
            assert (await response.json())["total_calls"] == 0
        assert (await post(session, server, chat("hello")))[0] == 500
        assert server.calls == {"hello": 1}
        for wrong in (b'{"status_500": 2}', b'{"typo": 1}', b"{", b'{"cut":0.6,"stall":0.6}'):
            async with session.post(url, data=wrong) as response:
                assert response.status == 400
        assert server.calls == {"hello": 1}


async def test_beyond_its_bound_calls_are_counted_together(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_server, "MAX_TRACKED_INPUTS", 2)
    async with ModelServer() as server:
        for text in ("a", "b", "c", "a", "c"):
            await post(session, server, chat(text))
        assert server.calls == {"a": 2, "b": 1}
        assert (server.untracked_calls, server.total_calls) == (2, 5)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (chat("hello", stream=True), 400),
        (chat("hello", n=2), 400),
        ({"model": "m"}, 400),
        ([], 400),
        (chat("x" * MAX_REQUEST_BYTES), 413),
    ],
)
async def test_what_it_does_not_do_is_an_error_in_the_shape_of_the_api(
    session: aiohttp.ClientSession, body: object, status: int
) -> None:
    async with ModelServer() as server:
        answered, error = await post(session, server, body)
        assert answered == status
        assert error["error"]["message"]
        assert server.total_calls == 0


MESSAGES = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x" * 36}]}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat("x" * 36),
    "/v1/messages": MESSAGES,
    "/v1/responses": {"model": "m", "input": "x" * 36},
    "/v1/moderations": {"model": "m", "input": "x" * 36},
    "/predict": {"inputs": "x" * 36},
}
"""Path → a request of 10 tokens."""


async def reply_of(
    session: aiohttp.ClientSession, server: ModelServer, path: str, body: object
) -> tuple[int, dict[str, str], Any]:
    """Status, headers in lower case, and body."""
    data = io.BytesIO(msgspec.json.encode(body))
    async with session.post(server.root_url + path, data=data) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, headers, await response.json()


@pytest.mark.parametrize("path", ASKED)
async def test_a_limit_of_requests_is_told_and_enforced(
    session: aiohttp.ClientSession, path: str
) -> None:
    async with ModelServer(Behaviour(requests_per_minute=2)) as server:
        replies = [await reply_of(session, server, path, ASKED[path]) for _ in range(3)]
        assert [status for status, _, _ in replies] == [200, 200, 429]
        assert (server.total_calls, server.total_requests, server.limited) == (2, 2, 1)
        headers = replies[-1][1]
        assert 25 <= int(headers["retry-after"]) <= 30  # the next of two a minute
        if path == "/v1/messages":
            assert headers["anthropic-ratelimit-requests-limit"] == "2"
            assert replies[0][1]["anthropic-ratelimit-requests-remaining"] == "1"
            assert headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        elif path != "/predict":
            assert headers["x-ratelimit-limit-requests"] == "2"
            assert replies[0][1]["x-ratelimit-remaining-requests"] == "1"
            assert 50 < float(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
        server.reset()
        assert (await reply_of(session, server, path, ASKED[path]))[0] == 200


async def test_tokens_of_input_and_output_are_limited(session: aiohttp.ClientSession) -> None:
    """An answer is paid for when it is there."""
    path = "/v1/chat/completions"
    async with ModelServer(Behaviour(tokens_per_minute=25)) as server:
        status, headers, body = await reply_of(session, server, path, ASKED[path])
        usage = body["usage"]
        assert (status, usage["prompt_tokens"], usage["completion_tokens"]) == (200, 10, 11)
        assert headers["x-ratelimit-remaining-tokens"] == "4"
        status, headers, _ = await reply_of(session, server, path, ASKED[path])
        assert status == 429
        assert int(headers["retry-after"]) == 15  # 6 of 10 tokens are missing, 25 come a minute


def test_limits_fill_up_again() -> None:
    now = 0.0
    limits = Limits(60, None, lambda: now)
    assert [limits.admit(1) for _ in range(60)] == [0] * 60
    assert limits.admit(1) == pytest.approx(1.0)
    now += 10
    assert [limits.admit(1) for _ in range(10)] == [0] * 10
    assert limits.admit(1) > 0
    now += 1e6
    assert [limits.admit(1) > 0 for _ in range(61)] == [False] * 60 + [True]


@pytest.mark.parametrize(
    ("path", "given", "tokens"),
    [
        ("/v1/messages", MESSAGES | {"system": "x" * 8}, ("input_tokens", 12)),
        (
            "/v1/responses",
            {"model": "m", "input": "x" * 36, "instructions": "x" * 4},
            ("input_tokens", 11),
        ),
    ],
)
async def test_what_a_model_reads_is_counted(
    session: aiohttp.ClientSession, path: str, given: object, tokens: tuple[str, int]
) -> None:
    async with ModelServer() as server:
        _, _, body = await reply_of(session, server, path, given)
        assert body["usage"][tokens[0]] == tokens[1]


async def test_classifiers_take_many(session: aiohttp.ClientSession) -> None:
    labels = {"a": "hate", "b": "violence", "c": "positive"}
    async with ModelServer(labels=labels, script={"d": ["out_of_set"]}) as server:
        many = {"model": "m", "input": ["a", "b"]}
        _, _, body = await reply_of(session, server, "/v1/moderations", many)
        flagged = [
            [name for name, is_flagged in result["categories"].items() if is_flagged]
            for result in body["results"]
        ]
        assert flagged == [["hate"], ["violence"]]
        lists = {"inputs": [["c"], ["d"]]}
        _, _, body = await reply_of(session, server, "/predict", lists)
        assert [result[0]["label"] for result in body] == ["positive", "a-label-nobody-offered"]
        for wrong in ([["c", "d"]], ["c", "d"], [], [["x"]] * 33):
            status, _, _ = await reply_of(session, server, "/predict", {"inputs": wrong})
            assert status == 400
        assert (server.total_calls, server.total_requests) == (4, 2)


async def test_it_listens_on_loopback_only_and_says_when_it_cannot() -> None:
    async with ModelServer() as server:
        assert server.base_url == f"http://127.0.0.1:{server.port}/v1"
        with pytest.raises(OSError, match="address already in use"):
            await ModelServer(port=server.port).__aenter__()


async def test_as_a_process_it_announces_itself_and_ends_on_sigterm(
    session: aiohttp.ClientSession, tmp_path: Any
) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('{"hello": "greeting"}')
    latencies = tmp_path / "latencies"
    latencies.write_text("1\n2.5\n\n3\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMMAND,
        "--port", "0", "--latency-file", str(latencies), "--labels", str(labels),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        base_url = (await process.stdout.readline()).decode().strip()
        url = f"{base_url}/chat/completions"
        async with session.post(url, data=msgspec.json.encode(chat("hello"))) as response:
            reply = await response.json()
        assert reply["choices"][0]["message"]["content"] == "greeting"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def invoke(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(model)
    return CliRunner().invoke(app, arguments)


def test_the_command_refuses_shares_and_files_that_cannot_be_meant(tmp_path: Any) -> None:
    absent = str(tmp_path / "absent.json")
    for wrong in (["--cut", "0.6", "--stall", "0.6"], ["--labels", absent], ["--cut", "2"]):
        assert invoke(*wrong).exit_code == 2
    latencies = tmp_path / "latencies"
    for text in ("", "12\nsoon\n", "-1", "nan", "1e9"):
        latencies.write_text(text)
        result = invoke("--latency-file", str(latencies))
        assert result.exit_code == 2
        assert "latencies" in re.sub(r"[\s│]", "", result.stderr)  # it may be in two lines


def test_the_command_says_when_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        result = invoke("--port", str(port))
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
