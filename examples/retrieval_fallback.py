"""Answer from documents when there is no ready answer: `python examples/retrieval_fallback.py`.

A support bot knows some answers by heart. For all other questions it looks for the best passages
and has a model answer from them: slow, dear, and asked in bursts, when something has just happened.
Such answers are good for as long as the documents are: so they live for five minutes, and name the
documents as their sources, by which they are taken back at once when those change.

The model is a Python function, so nothing else is needed.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from askonce_queue.embedded import EmbeddedStore
from askonce_queue.job import source_tag
from askonce_queue.store import Store
from askonce_worker import AnswerCache
from askonce_worker.cache.invalidation import invalidate

TTL_S = 300.0
BY_HEART = {"how do i reset my password?": "Choose 'Forgot password' and follow the mail."}
DOCUMENTS = {
    "shipping": "Parcels to Norway take five days. Parcels to Chile take twelve days.",
    "refunds": "Refunds are paid within ten days, to the card that was charged.",
}
QUESTIONS = (
    "How do I reset my password?",
    "How long do parcels to Norway take?",
    "how long do  parcels to Norway take?",
    "When are refunds paid?",
)

_WORD = re.compile(r"[a-z]{4,}")


def words(text: str) -> set[str]:
    """What two texts have to share to be about the same."""
    return set(_WORD.findall(text.lower()))


class Bot:
    """Answers questions; `calls` counts those of the model."""

    def __init__(self, cache: AnswerCache, documents: Mapping[str, str]) -> None:
        self.cache = cache
        self.documents = documents
        self.calls = 0

    async def answer(self, question: str) -> tuple[str, str]:
        """The answer to a question, and where it came from."""
        asked = " ".join(question.lower().split())
        if asked in BY_HEART:
            return BY_HEART[asked], "by heart"
        # What is asked is cached, not what was retrieved: a hit saves the retrieval as well.
        result = await self.cache.get_or_call(
            "support_fallback",
            {"question": asked},
            lambda: self.retrieve_and_ask(asked),
            returns=str,
            ttl_s=TTL_S,
            memory_ttl_s=60.0,
            # Any document may hold a better passage tomorrow. With many, name the index instead.
            sources=sorted(self.documents),
        )
        return result.value, result.source

    async def retrieve_and_ask(self, question: str) -> str:
        """The sentence with most of the question's words: stands for an index and a model."""
        self.calls += 1
        wanted = words(question)
        sentences = [
            sentence.strip(" .") + "."
            for text in self.documents.values()
            for sentence in re.split(r"(?<=\.)\s", text)
        ]
        return max(sentences, key=lambda sentence: len(words(sentence) & wanted))


async def ask_all(bot: Bot) -> None:
    """Ask every question, one after the other."""
    before = bot.calls
    for question in QUESTIONS:
        answer, source = await bot.answer(question)
        print(f"  {source:9} {question:38} {answer}")
    print(f"  {bot.calls - before} calls of the model")


async def main() -> int:
    """Ask twice, change a document, ask again."""
    documents = dict(DOCUMENTS)
    with tempfile.TemporaryDirectory(prefix="askonce-retrieval-") as work:
        async with EmbeddedStore(Path(work)) as embedded, AnswerCache(embedded.url) as cache:
            bot = Bot(cache, documents)
            print("A first round:")
            await ask_all(bot)
            print("Within five minutes:")
            await ask_all(bot)

            documents["shipping"] = "Parcels to Norway take nine days, because of a strike."
            store = Store(embedded.url)
            done = await invalidate(store, [source_tag("shipping")])
            await store.aclose()
            if not done.complete:
                print(f"not confirmed everywhere: {done.failures}", file=sys.stderr)
                return 1
            await asyncio.sleep(0.5)  # every process has heard of it by then (stamp_bound_s)
            print("After the shipping document has changed:")
            await ask_all(bot)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
