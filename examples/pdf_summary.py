"""Summarise PDF files, each distinct document once: `python examples/pdf_summary.py [FILE …]`.

A tool without side effects, as an agent would call it: the same document always gets the same
summary. So the key is the document itself (its SHA-256, not its name) and all that shapes the
summary; a file that was copied, renamed or sent again costs no call, in whatever process.

Without files it writes a few of its own. The model is a Python function, so nothing else is needed.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
import msgspec

from askonce_queue.embedded import EmbeddedStore
from askonce_worker import AnswerCache

PROMPT_VERSION = "1"
"""Change it with the prompt: then every document is summarised anew."""
TTL_S = 30 * 86_400.0

_STREAM = re.compile(rb"<<(?P<head>[^>]*)>>\s*stream\r?\n(?P<body>.*?)\r?\nendstream", re.DOTALL)
_SHOWN = re.compile(rb"\(((?:\\.|[^\\()])*)\)\s*Tj")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[a-z]{4,}")


class Summary(msgspec.Struct):
    """What the tool returns."""

    sentences: list[str]
    words: int


def text_of(pdf: bytes) -> str:
    """The text of a simple PDF: what its pages show with `Tj`. A library reads all the others."""
    lines: list[str] = []
    for stream in _STREAM.finditer(pdf):
        compressed = b"/FlateDecode" in stream["head"]
        body = zlib.decompress(stream["body"]) if compressed else stream["body"]
        lines += [
            re.sub(rb"\\(.)", rb"\1", shown).decode("latin-1") for shown in _SHOWN.findall(body)
        ]
    return " ".join(lines)


async def summarise(text: str, sentences: int) -> Summary:
    """The sentences with the commonest words (Luhn, 1958): stands for a call of a model."""
    words = Counter(_WORD.findall(text.lower()))
    found = _SENTENCE.split(text)

    def weight(sentence: str) -> float:
        own = _WORD.findall(sentence.lower())
        return sum(words[word] for word in own) / max(1, len(own))

    best = sorted(found, key=weight, reverse=True)[:sentences]
    return Summary([sentence for sentence in found if sentence in best], words.total())


async def summarise_all(store_url: str, files: Sequence[Path], sentences: int) -> int:
    """Summarise every file, all at once; return how many calls that took."""
    calls = 0

    async def one(cache: AnswerCache, file: Path) -> None:
        pdf = await anyio.Path(file).read_bytes()

        async def call() -> Summary:
            nonlocal calls
            calls += 1
            text = text_of(pdf)
            if not text:
                raise ValueError(f"{file}: no text that this example can read")
            return await summarise(text, sentences)

        result = await cache.get_or_call(
            "pdf_summary",
            {"sha256": hashlib.sha256(pdf).hexdigest(), "sentences": sentences},
            call,
            returns=Summary,
            version=PROMPT_VERSION,
            ttl_s=TTL_S,
        )
        print(f"{file.name:16} {result.source:10} {' '.join(result.value.sentences)}")

    async with AnswerCache(store_url) as cache:
        await asyncio.gather(*(one(cache, file) for file in files))
    return calls


def write_samples(folder: Path) -> list[Path]:
    """Write three PDF files, two of which are the same document."""
    policy = (
        "Refunds are paid within ten days.",
        "A refund needs the receipt of the order.",
        "Shops are closed on Sundays.",
    )
    notice = (
        "The cache keeps answers for a day.",
        "Answers that expire are asked again.",
        "Lunch is at noon.",
    )
    files: list[Path] = []
    for name, lines in (("policy.pdf", policy), ("copy.pdf", policy), ("notice.pdf", notice)):
        shown = b" ".join(b"(%s) Tj T*" % line.encode("latin-1") for line in lines)
        page = zlib.compress(b"BT /F1 12 Tf 72 720 Td 14 TL " + shown + b" ET")
        head = b"<< /Length %d /Filter /FlateDecode >>" % len(page)
        files.append(folder / name)
        files[-1].write_bytes(
            b"%PDF-1.4\n1 0 obj << /Type /Catalog /Pages 2 0 R >> endobj\n"
            b"2 0 obj << /Type /Pages /Kids [3 0 R] /Count 1 >> endobj\n"
            b"3 0 obj << /Type /Page /Parent 2 0 R /Contents 4 0 R /MediaBox [0 0 595 842]"
            b" /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
            b" >> >> >> endobj\n"
            b"4 0 obj " + head + b" stream\n" + page + b"\nendstream endobj\n"
            b"trailer << /Root 1 0 R >>\n%%EOF\n"
        )
    return files


async def main() -> int:
    """Parse the command line, summarise, say what it cost."""
    parser = argparse.ArgumentParser(description="Summarise PDF files, each document once.")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="PDF files")
    parser.add_argument("--sentences", type=int, default=1, help="length of a summary")
    parser.add_argument("--store", type=Path, metavar="DIR", help="keep the answers here")
    arguments = parser.parse_args()
    files: list[Path] = arguments.files
    with tempfile.TemporaryDirectory(prefix="askonce-pdf-") as work:
        files = files or write_samples(Path(work))
        async with EmbeddedStore(arguments.store or Path(work) / "store") as store:
            try:
                calls = await summarise_all(store.url, files, arguments.sentences)
            except (OSError, ValueError) as error:
                parser.error(str(error))
    print(f"{len(files)} files, {calls} calls of the model")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
