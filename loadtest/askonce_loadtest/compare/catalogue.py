"""The peers: what to install, what to run, with which settings and why.

The versions are pinned, so that a comparison can be repeated; `askonce` itself is whatever runs the
comparison. Settings that need a reason have it in the peer's script.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["queue", "cache"]

_CLIENT = ("redis==8.1.0", "hiredis==3.5.0")
_UVLOOP = 'uvloop==0.23.0; platform_system != "Windows"'
_ORJSON = "orjson==3.13.0"
_TASKIQ = ("--workers", "1", "--no-parse", "--log-level", "WARNING")
_CELERY = (
    *("--pool", "gevent", "--concurrency", "100", "--loglevel", "WARNING"),
    *("--without-mingle", "--without-gossip", "--without-heartbeat"),
)


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to compare with."""

    name: str
    kind: Kind
    script: str
    """The file in `peers/`: of a queue its producer, of a cache a process that asks."""
    arguments: tuple[str, ...] = ()
    """Of the script."""
    requirements: tuple[str, ...] = ()
    """What pip installs into its environment; empty for askonce, which runs in ours."""
    worker: tuple[str, ...] = ()
    """The arguments of Python that run a queue's worker."""
    settings: str
    """What differs from its defaults, in a line for people."""
    shows: tuple[str, ...]
    """The packages whose versions the report names first."""


PEERS = (
    Peer(
        name="askonce",
        kind="queue",
        script="askonce_queue_peer.py",
        worker=("-m", "askonce_worker", "worker", "{config}"),
        settings="defaults; ask_many",
        shows=("askonce",),
    ),
    Peer(
        name="saq",
        kind="queue",
        script="saq_queue.py",
        requirements=(
            "saq[hiredis]==0.26.4",
            "typing_extensions==4.16.0",  # it imports this on 3.11 without asking for it
            *_CLIENT,
            _UVLOOP,
            _ORJSON,
        ),
        worker=("-m", "saq", "saq_queue.settings"),
        settings="concurrency 100, orjson, uvloop, hiredis, polls every 10 ms",
        shows=("saq", "redis"),
    ),
    Peer(
        name="arq",
        kind="queue",
        script="arq_queue.py",
        requirements=("arq==0.28.0", "redis==5.3.1", "hiredis==3.5.0", _UVLOOP, _ORJSON),
        worker=("-m", "arq", "arq_queue.WorkerSettings"),
        settings="100 jobs at once, polls every 10 ms, orjson, uvloop, hiredis",
        shows=("arq", "redis"),
    ),
    Peer(
        name="taskiq",
        kind="queue",
        script="taskiq_queue.py",
        requirements=("taskiq==0.13.0", "taskiq-redis==1.2.4", *_CLIENT, _UVLOOP, _ORJSON),
        worker=("-m", "taskiq", "worker", "taskiq_queue:broker", *_TASKIQ),
        settings="Redis streams, 100 tasks at once, polls every 10 ms, orjson, uvloop, hiredis",
        shows=("taskiq", "taskiq-redis"),
    ),
    Peer(
        name="streaq",
        kind="queue",
        script="streaq_queue.py",
        requirements=("streaq==7.2.0", "coredis==6.9.0", *_CLIENT, _UVLOOP, _ORJSON),
        worker=("-m", "streaq", "run", "streaq_queue:worker"),
        settings="100 tasks at once, orjson, uvloop",
        shows=("streaq", "coredis"),
    ),
    Peer(
        name="celery",
        kind="queue",
        script="celery_queue.py",
        requirements=("celery==5.7.0", "gevent==26.9.0", "packaging==26.3", *_CLIENT),
        worker=("-m", "celery", "-A", "celery_queue", "worker", *_CELERY),
        settings="gevent with 100 greenlets, thread-safe result backend, no events, hiredis",
        shows=("celery", "gevent"),
    ),
    Peer(
        name="dramatiq",
        kind="queue",
        script="dramatiq_queue.py",
        requirements=("dramatiq==2.2.1", *_CLIENT),
        worker=("-m", "dramatiq", "dramatiq_queue", "--processes", "1", "--threads", "8"),
        settings="8 threads, results by blocking pops, hiredis",
        shows=("dramatiq", "redis"),
    ),
    Peer(
        name="askonce library",
        kind="cache",
        script="askonce_library_peer.py",
        settings="AnswerCache, defaults: memory tier of 64 MiB before the store",
        shows=("askonce",),
    ),
    Peer(
        name="cashews",
        kind="cache",
        script="cashews_cache.py",
        requirements=("cashews==7.6.0", *_CLIENT, _UVLOOP),
        settings="@cache before @cache(lock=True), uvloop, hiredis",
        shows=("cashews", "redis"),
    ),
    Peer(
        name="cashews memory",
        kind="cache",
        script="cashews_cache.py",
        arguments=("memory",),
        requirements=("cashews==7.6.0", *_CLIENT, _UVLOOP),
        settings="the same with client-side caching",
        shows=("cashews", "redis"),
    ),
    Peer(
        name="aiocache",
        kind="cache",
        script="aiocache_cache.py",
        requirements=("aiocache==0.12.3", *_CLIENT, _UVLOOP),
        settings="@cached_stampede with a lease of 10 s, uvloop, hiredis",
        shows=("aiocache", "redis"),
    ),
    Peer(
        name="litellm",
        kind="cache",
        script="litellm_cache.py",
        requirements=(
            "litellm==1.106.2",
            # Its first cache hit imports these, which only its proxy asks for.
            "fastapi==0.165.0",
            "soundfile==0.14.0",
            *_CLIENT,
            _UVLOOP,
        ),
        settings="acompletion with Cache(type='redis'), uvloop, hiredis",
        shows=("litellm", "redis"),
    ),
    Peer(
        name="langchain-redis",
        kind="cache",
        script="langchain_cache.py",
        requirements=("langchain-redis==0.2.6", "langchain-core==1.7.2", *_CLIENT, _UVLOOP),
        settings="RedisCache as the LLM cache of a model",
        shows=("langchain-redis", "langchain-core"),
    ),
    Peer(
        name="gptcache",
        kind="cache",
        script="gptcache_cache.py",
        requirements=("gptcache==0.1.44",),
        settings="exact match in each process's own memory, 64 threads",
        shows=("gptcache",),
    ),
)

BY_NAME = {peer.name: peer for peer in PEERS}
