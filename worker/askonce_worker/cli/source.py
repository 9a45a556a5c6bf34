"""The input of `askonce run` and `enqueue`: a file or stdin, read in a thread of its own.

Bounded: at most `READ_AHEAD` batches wait to be asked. What a slow pipe has sent is handed on at
once, so `tail -f … | askonce run … -` answers line by line.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.from_thread
from anyio.lowlevel import current_token

from askonce_worker.cli.loop import Failed
from askonce_worker.cli.records import MAX_LINE_BYTES, Format, Line, Record, read_csv, read_jsonl

STDIN = Path("-")
READ_BYTES = 1 << 18
MAX_BATCH = 500
MAX_BATCH_BYTES = 1 << 20
READ_AHEAD = 4

_BOM = b"\xef\xbb\xbf"
