"""TLS, as askonce is configured for it: who is trusted gets through, others are told why not."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from askonce_loadtest.servers.certificates import Certificates, KeyPair, make_certificates
from askonce_loadtest.servers.cluster import Cluster
from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.tls import TlsFront
from askonce_queue import Client, ConfigError, Job, StoreUnavailable, queue_scripts
from askonce_queue.checks import check_store
from askonce_queue.shards import shard_tags
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_queue.sync import Client as SyncClient
from askonce_worker.config import load_settings
from tests.support.cluster_work import IMPATIENT, SHARDS, Kind, store_of, succeeds, worker_on

PASSWORD = "p/w@1"  # noqa: S105 -- it lives for a test
COUNTED = queue_scripts.count("0", {"x|y": 1})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    one = Node(tmp_path_factory.mktemp("node"), password=PASSWORD)
    asyncio.run(one.start())
    yield one
    one.close()


@pytest.fixture
async def front(node: Node, certificates: Certificates) -> AsyncIterator[TlsFront]:
    """It wants to see a certificate of its clients."""
    await node.command("FLUSHALL")
    async with TlsFront(node.address, certificates.server, client_ca=certificates.ca) as started:
        yield started


def config_of(front: TlsFront, certificates: Certificates, **options: Any) -> StoreConfig:
    """A client that trusts the authority and is trusted by it."""
    given: dict[str, Any] = {
        "url": f"rediss://:p%2Fw%401@127.0.0.1:{front.port}/0",
        "tls_ca_file": str(certificates.ca),
        "tls_cert_file": str(certificates.client.cert),
        "tls_key_file": str(certificates.client.key),
        **IMPATIENT,
        **options,
    }
    return StoreConfig(**given)


async def test_clients_and_workers_get_through(front: TlsFront, certificates: Certificates) -> None:
    config = config_of(front, certificates)
    job = Job(task="echo", text="hello")

    def ask_in_thread() -> str:
        with SyncClient(config) as client:
            return str(client.ask(job, timeout_s=5.0).source)

    async with worker_on(config).running(), Client(config) as client:
        assert (await client.ask(job)).source == "model"
        assert await asyncio.to_thread(ask_in_thread) in ("memory", "store")


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_connection_that_is_cut_is_replaced(
    front: TlsFront, certificates: Certificates, kind: Kind
) -> None:
    async with store_of(config_of(front, certificates), kind) as store:
        for _ in range(3):
            await store.run(COUNTED)
            front.cut()
        await store.run(COUNTED)


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tls_ca_file": "other_ca"}, "certificate verify failed"),
        ({"tls_cert_file": None, "tls_key_file": None}, "certificate required|closed|reset"),
        ({"tls_cert_file": "stranger", "tls_key_file": "stranger"}, "unknown ca|closed|reset"),
        ({"tls_key_file": "stranger"}, "key values mismatch"),
        ({"tls_ca_file": "nowhere"}, "No such file"),
        ({"url": "rediss://127.0.0.1:{}"}, "[Aa]uthentication required"),
        ({"url": "redis://127.0.0.1:{}"}, "closed|reset"),
    ],
    ids=["authority", "none", "stranger", "key", "nowhere", "password", "plain"],
)
async def test_strangers_are_told(
    front: TlsFront,
    certificates: Certificates,
    kind: Kind,
    wrong: dict[str, Any],
    said: str,
) -> None:
    options: dict[str, Any] = {}
    for name, value in wrong.items():
        if name == "url":
            options[name] = value.format(front.port)
            if value.startswith("redis:"):
                options |= dict.fromkeys(("tls_ca_file", "tls_cert_file", "tls_key_file"))
        elif value in ("other_ca", "nowhere"):
            options[name] = str(getattr(certificates, value, "/nowhere.pem"))
        elif value is not None:
            pair = getattr(certificates, value)
            options[name] = str(pair.cert if "cert" in name else pair.key)
        else:
            options[name] = None
    config = config_of(front, certificates, **options)
    async with store_of(config, kind) as store:
        with pytest.raises(RedisError, match=f"(?i){said}") as caught:
            await store.run(COUNTED)
        assert PASSWORD not in str(caught.value)
        if isinstance(store, Store):
            with pytest.raises(StoreUnavailable, match=f"(?i){said}"):
                await check_store(store)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_certificates_are_replaced_without_a_restart(
    front: TlsFront, certificates: Certificates, kind: Kind, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(pair: KeyPair) -> None:
        cert.write_bytes(pair.cert.read_bytes())
        key.write_bytes(pair.key.read_bytes())

    install(certificates.expired_client)
    config = config_of(front, certificates, tls_cert_file=str(cert), tls_key_file=str(key))
    async with store_of(config, kind) as store:
        for _ in range(2):
            with pytest.raises(RedisError):
                await store.run(COUNTED)
        install(certificates.client)
        await succeeds(partial(store.run, COUNTED))


@pytest.mark.parametrize("server", ["expired_server", "misnamed_server"])
async def test_a_server_that_is_not_who_it_says(
    node: Node, certificates: Certificates, server: str
) -> None:
    async with TlsFront(node.address, getattr(certificates, server)) as front:
        with pytest.raises(StoreUnavailable, match=r"certificate (has expired|is not valid)"):
            await check(config_of(front, certificates))


async def test_files_of_a_configuration_stand_beside_it(
    front: TlsFront, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command is run."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    for path in (certificates.ca, *certificates.client):
        shutil.copy(path, folder / path.name)
    (folder / "password").write_text(f"{PASSWORD}\n")
    path = tmp_path / "askonce.toml"
    path.write_text(
        f"""
        [redis]
        url = "rediss://127.0.0.1:{front.port}"
        password_file = "secrets/password"
        tls_ca_file = "secrets/ca.pem"
        tls_cert_file = "secrets/{certificates.client.cert.name}"
        tls_key_file = "secrets/{certificates.client.key.name}"
        """
    )
    monkeypatch.chdir(folder)
    await check(load_settings(Path("../askonce.toml")).redis)
    config = load_settings(path).redis
    await check(config)
    (folder / "ca.pem").write_bytes(certificates.other_ca.read_bytes())
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        await check(config)
    (folder / "ca.pem").unlink()
    with pytest.raises(ConfigError, match=r"redis.tls_ca_file: .* found none at secrets/ca\.pem"):
        load_settings(path)


async def check(config: StoreConfig | None) -> None:
    assert config is not None
    async with store_of(config) as store:
        assert isinstance(store, Store)
        await check_store(store)


async def test_a_cluster_behind_tls(store_cluster: Cluster, certificates: Certificates) -> None:
    """Every address that it announces is one of TLS."""
    fronts: list[TlsFront] = []
    async with AsyncExitStack() as stack:
        for one in store_cluster.nodes:
            front = TlsFront(one.address, certificates.server, client_ca=certificates.ca)
            fronts.append(await stack.enter_async_context(front))
        await announce(store_cluster, [front.port for front in fronts])
        url = f"rediss://127.0.0.1:{fronts[0].port}"
        config = config_of(fronts[0], certificates, url=url, cluster=True, shards=SHARDS)
        calls = [queue_scripts.count(tag, {"x|y": 1}) for tag in shard_tags(SHARDS)]
        for kind in ("async", "sync"):
            async with store_of(config, "sync" if kind == "sync" else "async") as store:
                assert await store.run_many(calls) == [None] * SHARDS
        await announce(store_cluster, [0] * len(fronts))


async def announce(cluster: Cluster, ports: Sequence[int]) -> None:
    """Have clients sent to these ports in place of the nodes' own."""
    await asyncio.gather(*map(cluster.announce, cluster.nodes, ports))
