"""Sources: what answers are built on (documents, an index), and what those are built on in turn.

An answer carries the tags of all of them when it is built, so that invalidating a source takes
everything that was built on it, however far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from askonce_queue.job import SOURCE_PREFIX, source_tag


class Sources:
    """Which source depends on which: name → names. A circle is as good as any order."""

    def __init__(self, depends_on: Mapping[str, Sequence[str]]) -> None:
        self._depends_on = depends_on
        self._closures = {source_tag(name): _closure(name, depends_on) for name in depends_on}

    def close(self, tags: Iterable[str]) -> tuple[str, ...]:
        """Return `tags` with those of all sources that the sources among them depend on."""
        given = tuple(tags)
        if not self._closures:
            return given
        closed = dict.fromkeys(given)
        for tag in given:
            if tag.startswith(SOURCE_PREFIX):
                closed.update(dict.fromkeys(self._closures.get(tag, ())))
        return tuple(closed)

    def dependents(self, source: str) -> tuple[str, ...]:
        """The tags of `source` and of all that depend on it, to invalidate it by.

        An answer carries what its sources depended on when it was built; what has been written down
        since then is found from here.
        """
        tag = source_tag(source)
        return (
            tag,
            *(other for other, needs in self._closures.items() if tag in needs and other != tag),
        )


def _closure(name: str, depends_on: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    ahead = list(depends_on.get(name, ()))
    while ahead:
        source = ahead.pop()
        if source not in found:
            found[source] = None
            ahead += depends_on.get(source, ())
    return tuple(map(source_tag, found))
