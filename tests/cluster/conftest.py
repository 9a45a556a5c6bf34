"""Fixtures of the tests that need more than one server."""

from __future__ import annotations

from tests.support.cluster import cluster, session_cluster, store_cluster

__all__ = ["cluster", "session_cluster", "store_cluster"]
