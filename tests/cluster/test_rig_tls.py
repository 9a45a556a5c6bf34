"""TLS before a server: who is trusted gets through, and nobody else, on either side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError

from askonce_loadtest.servers.certificates import Certificates, KeyPair, make_certificates
from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.tls import TlsFront
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    socket = tmp_path / "s"
    async with Node(tmp_path / "node", conf=[f"unixsocket {socket}"]) as started:
        yield started


async def ping(url: str) -> bool:
    async with redis.asyncio.Redis.from_url(url, protocol=2) as client:
        return bool(await client.ping())


async def test_both_kinds_of_client_get_through(node: Node, certificates: Certificates) -> None:
    with TlsFront(node.address, certificates.server, client_ca=certificates.ca) as front:
        url = front.url(certificates.ca, certificates.client)
        with redis.Redis.from_url(url) as client:
            client.set("key", "x" * 1_000_000)
        async with redis.asyncio.Redis.from_url(url) as other:
            assert await other.strlen("key") == 1_000_000
            assert await other.get("key") == b"x" * 1_000_000


async def test_a_unix_socket_can_be_behind_it(
    node: Node, certificates: Certificates, tmp_path: Path
) -> None:
    del node
    async with TlsFront(tmp_path / "s", certificates.server) as front:
        assert await ping(front.url(certificates.ca))


async def test_a_password_goes_through(tmp_path: Path, certificates: Certificates) -> None:
    async with (
        Node(tmp_path / "node", password="p/w@1") as node,  # noqa: S106 -- it lives for a test
        TlsFront(node.address, certificates.server) as front,
    ):
        assert await ping(front.url(certificates.ca, password=node.password))


@pytest.mark.parametrize("client", [None, "stranger", "expired_client"])
async def test_clients_without_a_good_certificate_are_refused(
    node: Node, certificates: Certificates, client: str | None
) -> None:
    shown: KeyPair | None = getattr(certificates, client) if client else None
    async with TlsFront(node.address, certificates.server, client_ca=certificates.ca) as front:
        with pytest.raises(RedisConnectionError):
            await ping(front.url(certificates.ca, shown))
        assert await ping(front.url(certificates.ca, certificates.client))


@pytest.mark.parametrize(
    ("server", "ca", "reason"),
    [
        ("server", "other_ca", "unable to get local issuer certificate|self.signed"),
        ("expired_server", "ca", "certificate has expired"),
        ("misnamed_server", "ca", "certificate is not valid for '127.0.0.1'|mismatch"),
    ],
)
async def test_clients_refuse_servers_without_a_good_certificate(
    node: Node, certificates: Certificates, server: str, ca: str, reason: str
) -> None:
    async with TlsFront(node.address, getattr(certificates, server)) as front:
        with pytest.raises(RedisConnectionError, match=reason):
            await ping(front.url(getattr(certificates, ca)))


async def test_connections_can_be_cut(node: Node, certificates: Certificates) -> None:
    async with (
        TlsFront(node.address, certificates.server) as front,
        redis.asyncio.Redis.from_url(front.url(certificates.ca)) as client,
    ):
        assert await client.ping()

        async def alone() -> bool:
            return len((await node.command("CLIENT", "LIST")).splitlines()) == 1

        assert not await alone()
        front.cut()
        await eventually(alone)
        with pytest.raises(RedisConnectionError):
            await client.ping()
        assert await client.ping()
