"""The recipe that every queue's worker follows: get the answer, or take a lock and call the model.

It is the careful version of what the documentation of Redis and many posts recommend: a lock per
key (SET NX PX with a random token), a second look once the lock is held, a release that deletes
only its own lock, and a poll while somebody else has it. Without the second look it asks twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

TTL_S = 3_600
LOCK_MS = 10_000
POLL_S = 0.02
RELEASE = "if redis.call('get',KEYS[1])==ARGV[1] then return redis.call('del',KEYS[1]) end"


async def get_or_call(redis: Any, model_url: str, text: str) -> str:
    """Return the answer to `text`; `redis` is a `redis.asyncio.Redis` with `decode_responses`."""
    key = "answer:" + hashlib.sha256(text.encode()).hexdigest()
    while True:
        answer: str | None = await redis.get(key)
        if answer is not None:
            return answer
        token = uuid.uuid4().hex
        if await redis.set(f"lock:{key}", token, nx=True, px=LOCK_MS):
            try:
                answer = await redis.get(key)
                if answer is None:
                    answer = await ask_model(model_url, text)
                    await redis.set(key, answer, ex=TTL_S)
                return answer
            finally:
                await redis.eval(RELEASE, 1, f"lock:{key}", token)
        await asyncio.sleep(POLL_S)


def get_or_call_sync(redis: Any, model_url: str, text: str) -> str:
    """The same with a `redis.Redis`."""
    key = "answer:" + hashlib.sha256(text.encode()).hexdigest()
    while True:
        answer: str | None = redis.get(key)
        if answer is not None:
            return answer
        token = uuid.uuid4().hex
        if redis.set(f"lock:{key}", token, nx=True, px=LOCK_MS):
            try:
                answer = redis.get(key)
                if answer is None:
                    answer = ask_model_sync(model_url, text)
                    redis.set(key, answer, ex=TTL_S)
                return answer
            finally:
                redis.eval(RELEASE, 1, f"lock:{key}", token)
        time.sleep(POLL_S)


async def ask_model(model_url: str, text: str) -> str:
    """Ask the model server's `/predict` and return the best label; a connection a call."""
    address = urlsplit(model_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        body = json.dumps({"inputs": text}).encode()
        head = (
            f"POST /predict HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        return _label(await reader.read())
    finally:
        writer.close()


def ask_model_sync(model_url: str, text: str) -> str:
    """The same, blocking."""
    connection = http.client.HTTPConnection(urlsplit(model_url).netloc, timeout=60)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/predict", json.dumps({"inputs": text}), headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise RuntimeError(f"the model answered {response.status}")
        return _best(response.read())
    finally:
        connection.close()


def _label(response: bytes) -> str:
    head, _, body = response.partition(b"\r\n\r\n")
    if b" 200 " not in head[:16]:
        raise RuntimeError(f"the model answered {head[:80]!r}")
    return _best(body)


def _best(body: bytes) -> str:
    label: str = json.loads(body)[0]["label"]
    return label
