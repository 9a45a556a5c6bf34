"""Certificates made anew for a run: an authority, a server, clients, and those that must fail."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import trustme

from askonce_loadtest.servers.ports import HOST

LONG_AGO = timedelta(days=60)
YESTERDAY = timedelta(days=1)


class KeyPair(NamedTuple):
    """Files (PEM): a certificate with its chain, and its private key."""

    cert: Path
    key: Path


class Certificates(NamedTuple):
    """Who is trusted and who is not. Servers are `localhost` and 127.0.0.1."""

    ca: Path
    """The authority that clients and servers trust."""
    server: KeyPair
    client: KeyPair
    expired_server: KeyPair
    """Of the same authority, valid until yesterday."""
    misnamed_server: KeyPair
    """Of the same authority, but for another host."""
    expired_client: KeyPair
    other_ca: Path
    """An authority that has signed none of the above."""
    stranger: KeyPair
    """A client of the other authority."""


def make_certificates(folder: Path) -> Certificates:
    """Make new authorities and certificates in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ca, other = trustme.CA(), trustme.CA()
    now = datetime.now(UTC)
    expired = functools.partial(ca.issue_cert, not_before=now - LONG_AGO, not_after=now - YESTERDAY)
    here = ("localhost", HOST)
    return Certificates(
        ca=_write_ca(ca, folder / "ca.pem"),
        server=_write(ca.issue_cert(*here), folder / "server"),
        client=_write(ca.issue_cert("client.askonce.test"), folder / "client"),
        expired_server=_write(expired(*here), folder / "expired_server"),
        misnamed_server=_write(ca.issue_cert("elsewhere.test"), folder / "misnamed_server"),
        expired_client=_write(expired("client.askonce.test"), folder / "expired_client"),
        other_ca=_write_ca(other, folder / "other_ca.pem"),
        stranger=_write(other.issue_cert("stranger.test"), folder / "stranger"),
    )


def _write_ca(ca: trustme.CA, path: Path) -> Path:
    ca.cert_pem.write_to_path(str(path))
    return path


def _write(leaf: trustme.LeafCert, stem: Path) -> KeyPair:
    cert, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
    for number, blob in enumerate(leaf.cert_chain_pems):
        blob.write_to_path(str(cert), append=number > 0)
    leaf.private_key_pem.write_to_path(str(key))
    return KeyPair(cert, key)
