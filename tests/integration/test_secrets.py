"""Secrets: shown nowhere, whatever goes wrong, and rotated while a worker runs."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import redis.asyncio
import structlog
from aiohttp import web

from askonce_loadtest.model_server import ModelServer
from askonce_queue import Client, Job, names
from askonce_queue.reply import Reply
from askonce_queue.store_config import StoreConfig
from askonce_worker.build import build_tasks, open_models
from askonce_worker.cli import doctor, stats
from askonce_worker.cli.loop import Signals
from askonce_worker.config import load_settings
from askonce_worker.config_listen import ListenAddress
from askonce_worker.models.http_model import HttpModel
from askonce_worker.observe import log
from askonce_worker.observe.observer import observed
from askonce_worker.pool.worker import Worker
from tests.support.chat_models import answering
from tests.support.queue_worker import QUICK
from tests.support.waiting import eventually

KEY = "sk-secret-2b7e151628aed2a6"
PASSWORD = "store-secret-abf7158809cf"  # noqa: S105 -- of nothing
SPLIT_KEY = "sk-split-\nsecret-4f3c"
SECRETS = (KEY, PASSWORD, "secret-4f3c")
ASK = """
[models.{name}]
kind = "openai"
base_url = "{url}"
model = "m"
api_key_file = "{file}"
timeout_s = 2
breaker = {{ enabled = false }}

[tasks.{name}]
model = "{name}"
labels = ["good", "bad"]
hit_log = {{ share = 1.0 }}
"""
WORKER = """
[worker]
max_attempts = 1
remember_exhausted_s = 0.001
log_level = "debug"
"""


async def misbehave(request: web.Request) -> web.StreamResponse:
    """Repeat the key in every way that an API may think of."""
    echo = request.headers["Authorization"]
    way = request.path.split("/")[1]
    error = {"error": {"message": f"no such key: {echo}", "code": echo, "type": echo}}
    match way:
        case "redirect":
            raise web.HTTPFound(f"http://127.0.0.1:1/?key={echo}")
        case "text":
            return web.Response(text=f"<html>{echo}</html>", content_type="text/html")
        case "label":
            message = {"role": "assistant", "content": json.dumps({"label": echo})}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            return web.json_response({"choices": [choice]})
        case "reason":
            return web.Response(status=500, reason=echo, headers={"x-request-id": echo})
        case "cut":
            response = web.StreamResponse(headers={"Content-Length": "9999", "X-Echo": echo})
            await response.prepare(request)
            await response.write(echo.encode())
            assert request.transport is not None
            request.transport.abort()
            return response
        case _:
            return web.json_response(error, status=int(way))


NO_SIGNALS = Signals(lambda: None)
WAYS = ("400", "401", "403", "404", "429", "500", "redirect", "text", "label", "reason", "cut")


@pytest.fixture
def restored() -> Iterator[None]:
    """Give the process its logging back."""
    root, structured = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.configure(**structured)


@pytest.fixture
async def login(store: redis.asyncio.Redis, store_url: str) -> Any:
    """A store's URL with a password in it."""
    await store.execute_command("ACL", "SETUSER", "shop", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    yield store_url.replace("unix://", "unix://shop@") + f"?password={PASSWORD}"
    await store.execute_command("ACL", "DELUSER", "shop")


@asynccontextmanager
async def served(
    path: Path, url: str | StoreConfig
) -> AsyncGenerator[tuple[Worker, Client, ListenAddress]]:
    """A worker as `askonce worker` runs it, with a client, and where it tells of itself."""
    settings = load_settings(path)
    config = msgspec.structs.replace(settings.worker, **QUICK)
    location = url if isinstance(url, StoreConfig) else StoreConfig(url=url)
    async with AsyncExitStack() as stack:
        backends = await stack.enter_async_context(open_models(settings))
        worker = Worker(location, build_tasks(settings, backends), config)
        at = await stack.enter_async_context(
            observed(
                ListenAddress("127.0.0.1", 0),
                vitals=worker.vitals,
                counters=worker.counters,
                store=location,
                config=config,
                models={name: name for name in settings.tasks},
            )
        )
        await stack.enter_async_context(worker.running())
        client = await stack.enter_async_context(Client(location, name="shop"))
        yield worker, client, at


@pytest.mark.parametrize("style", ["console", "json"])
async def test_no_secret_is_shown_anywhere(
    style: log.Style,
    tmp_path: Path,
    store: redis.asyncio.Redis,
    login: str,
    restored: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong keys, keys repeated by the API, redirects, TLS, unsendable keys, a bug of our own."""
    del restored
    log.configure(style, level=logging.DEBUG)
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "split").write_text(SPLIT_KEY)
    exchange = HttpModel._exchange

    async def with_a_bug(model: HttpModel, *args: Any) -> Any:
        key = model._key()
        if "bug" in repr(model):
            headers = {"Authorization": key}
            raise RuntimeError(f"a bug, with {len(headers)} headers in hand")
        return await exchange(model, *args)

    monkeypatch.setattr(HttpModel, "_exchange", with_a_bug)
    async with answering(misbehave) as url:
        root = url.removesuffix("/v1")
        models = {f"way-{way}": (f"{root}/{way}", "key") for way in WAYS}
        models["tls"] = (url.replace("http://", "https://"), "key")
        models["nobody"] = ("http://127.0.0.1:1/v1", "key")
        models["split"] = (url, "split")
        models["bug"] = (f"{root}/bug", "key")
        config = WORKER + "".join(
            ASK.format(name=name, url=url, file=file) for name, (url, file) in models.items()
        )
        path = tmp_path / "askonce.toml"
        path.write_text(config)
        shown: list[str] = []
        async with served(path, login) as (worker, client, at):
            for name in models:
                reply = await client.ask(Job(task=name, text="hello"))
                assert reply.error is not None, name
                shown.append(str(reply))
            await worker.counters.flush(worker._commands, "0")
            shown.append(repr(worker.vitals()))
            async with aiohttp.ClientSession() as session:
                for page in ("metrics", "readyz", "livez"):
                    async with session.get(f"http://{at}/{page}") as response:
                        shown.append(await response.text())
        codes = " ".join(shown)
        for code in ("unauthorized", "rejected", "unavailable", "rate_limited", "out_of_set"):
            assert code in codes
        shown.append(repr(await store.xrange(names.hits("0").decode())))
        monkeypatch.undo()
        await _tell(path, login, config + ASK.format(name="unreadable", url=url, file=KEY))
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "model call failed" in said
    assert "WRONGPASS" in said or "invalid username" in said
    assert "model unreadable" in said
    assert "a bug, with 1 headers in hand" in said
    assert not [secret for secret in SECRETS for text in (said, *shown) if secret in text]


def write(path: Path, text: str) -> None:
    path.write_text(text)


async def _tell(path: Path, url: str, tables: str) -> None:
    """Have the commands for people say what they find; once with a password that is refused."""
    for password in ("", "-wrong"):
        write(path, f'[redis]\nurl = "{url}{password}"\n{tables}')
        for as_json in (True, False):
            await doctor._run(doctor.Options(config=path, json=as_json), NO_SIGNALS)
        if not password:
            await stats._run(stats.Options(config=path, json=True), NO_SIGNALS)


def test_locals_of_a_traceback_are_not_shown(
    restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    del restored
    log.configure("console")
    headers = {"Authorization": f"Bearer {KEY}"}
    try:
        int(str(len(headers)) + "?")
    except ValueError:
        structlog.get_logger("askonce.test").exception("it failed")
    said = capsys.readouterr().err
    assert "ValueError" in said
    assert KEY not in said


def test_passwords_in_urls_are_masked_wherever_they_stand() -> None:
    for url in (
        f"redis://shop:{PASSWORD}@host/0",
        f"unix://shop@/run/store.sock?db=1&password={PASSWORD}",
        f"redis://:{PASSWORD}@host/0?password={PASSWORD}&db=1 is away",
    ):
        assert PASSWORD not in log.without_password(url)
        assert "***" in log.without_password(url)
    assert log.without_password("redis://h/0?db=1") == "redis://h/0?db=1"


async def test_an_api_key_is_rotated_while_a_worker_runs(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path
) -> None:
    """The API stops accepting the old one; the new one is used as soon as it is in the file."""
    del store
    key, path = tmp_path / "key", tmp_path / "askonce.toml"
    key.write_text("old\n")
    async with ModelServer(api_key="old") as server:
        path.write_text(ASK.format(name="tone", url=server.base_url, file="key") + WORKER)
        async with served(path, store_url) as (_, client, _at):
            asked = 0

            async def ask() -> Reply:
                nonlocal asked
                asked += 1
                return await client.ask(Job(task="tone", text=f"question {asked}"))

            assert (await ask()).answer
            server._api_key = "new"
            refused = await ask()
            assert refused.error is not None
            assert refused.error.code == "unauthorized"
            # As Kubernetes does it: another file takes the name.
            (tmp_path / "next").write_text("new\n")
            (tmp_path / "next").replace(key)

            async def is_answered() -> bool:
                return (await ask()).answer is not None

            await eventually(is_answered)
            key.unlink()  # a key that is away is used on
            for _ in range(3):
                assert await is_answered()


async def test_the_password_of_the_store_is_rotated_while_a_worker_runs(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path
) -> None:
    """Connections that are open stay; new ones are made with what is in the file then."""
    path = tmp_path / "askonce.toml"
    (tmp_path / "password").write_text("old\n")
    user = ("ACL", "SETUSER", "shop", "on", "~*", "&*", "+@all")
    await store.execute_command(*user, ">old")
    url = store_url.replace("unix://", "unix://shop@")
    location = StoreConfig(url=url, password_file=str(tmp_path / "password"))
    try:
        async with ModelServer() as server:
            (tmp_path / "key").write_text(KEY)
            path.write_text(ASK.format(name="tone", url=server.base_url, file="key") + WORKER)
            async with served(path, location) as (worker, client, _):
                assert (await client.ask(Job(task="tone", text="before"))).answer
                await store.execute_command(*user, ">new", "<old")
                (tmp_path / "password").write_text("new\n")
                await store.execute_command("CLIENT", "KILL", "USER", "shop", "SKIPME", "yes")
                reply = await client.ask(Job(task="tone", text="after"), timeout_s=20)
                assert reply.answer
                assert not worker._commands.down()
    finally:
        await store.execute_command("ACL", "DELUSER", "shop")
