"""What to invalidate: from the command line, the configuration, and, for a short key, the store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field

from askonce_queue.errors import StoreUnavailable
from askonce_queue.job import MAX_TAG_CHARS, valid_name
from askonce_queue.store import Store
from askonce_worker.build import build_sources
from askonce_worker.cache.globs import glob_matcher, is_glob
from askonce_worker.cache.invalidation import Target
from askonce_worker.cache.key_prefix import LEAST_DIGITS, Ambiguous, find_key, is_key
from askonce_worker.cache.tags import task_tag
from askonce_worker.cli.inputs import known_task
from askonce_worker.cli.loop import Failed
from askonce_worker.config import Settings
from askonce_worker.config_tables import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The options that say what to invalidate, as given."""

    keys: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    everything: bool = False
    old_versions: bool = False

    def check(self) -> None:
        """Raise `Failed` for what would do nothing, or too much."""
        named = any(astuple(self)[:6])
        if self.old_versions and (
            self.everything or any((*astuple(self)[:1], *astuple(self)[2:6]))
        ):
            raise Failed("--old-versions goes with --task only: the others invalidate all versions")
        if not self.old_versions and self.everything == named:
            raise Failed(
                "say what to invalidate: --key, --task, --model, --tag, --source or --pattern "
                "(one or several), or --old-versions, or --all"
            )
        for key in self.keys:
            if not is_key(key):
                raise Failed(
                    f"a key is 64 hexadecimal digits, or the first {LEAST_DIGITS} or more of them, "
                    f"not {key!r:.70}"
                )
        for tag in self.tags:
            if not valid_name(tag, MAX_TAG_CHARS):
                raise Failed(f"tags are 1 to {MAX_TAG_CHARS} printable characters, not {tag!r:.40}")


async def target_of(chosen: Chosen, settings: Settings, store: Store, *, force: bool) -> Target:
    """What to invalidate. Raises `Failed`, and `StoreUnavailable` if a key cannot be looked for."""
    tasks, globs = tasks_of(chosen, settings, force=force)
    tags = [*map(task_tag, tasks), *chosen.tags, *_source_tags(chosen, settings, force=force)]
    target = Target(
        tuple(dict.fromkeys(tags)),
        [await _key(store, key) for key in chosen.keys],
        (*map(task_tag, globs), *chosen.patterns),
        chosen.everything,
    )
    try:
        target.check()
    except ValueError as error:
        raise Failed(str(error)) from error
    return target


def tasks_of(chosen: Chosen, settings: Settings, *, force: bool) -> tuple[list[str], list[str]]:
    """Names of tasks, and globs over those that are not in the configuration. Raises `Failed`.

    A glob stands for the tasks of the configuration that it matches; with `force` for all.
    """
    names: list[str] = []
    globs: list[str] = []
    for task in chosen.tasks:
        if not is_glob(task):
            if not force:
                known_task(settings, task)
            names.append(task)
        elif force:
            globs.append(task)
        else:
            matches = glob_matcher(task.encode())
            matching = [name for name in settings.tasks if matches(name.encode())]
            if not matching:
                raise Failed(
                    f"{settings.source.path}: no task matches {task!r}{_known(settings.tasks)}"
                )
            names += matching
    for model in chosen.models:
        using = [
            name for name, task in settings.tasks.items() if model in {task.model, task.fallback}
        ]
        if not using:
            what = "uses" if model in settings.models else "is configured for"
            raise Failed(
                f"{settings.source.path}: no task {what} model {model!r}"
                f"{did_you_mean(model, settings.models)}{_known(settings.models, 'models')}"
            )
        names += using
    return list(dict.fromkeys(names)), globs


def _source_tags(chosen: Chosen, settings: Settings, *, force: bool) -> list[str]:
    """The tags of sources and of what depends on them, as configured now."""
    sources = build_sources(settings)
    for name in chosen.sources:
        if not valid_name(name, MAX_TAG_CHARS):
            raise Failed(f"sources are 1 to {MAX_TAG_CHARS} printable characters, not {name!r:.40}")
        if not force and name not in settings.sources:
            raise Failed(
                f"{settings.source.path}: no [sources.{name}]"
                f"{did_you_mean(name, settings.sources)}; --force if it is one that only jobs name"
            )
    return [tag for name in chosen.sources for tag in sources.dependents(name)]


async def _key(store: Store, text: str) -> bytes:
    try:
        key = await find_key(store, text)
    except Ambiguous as error:
        raise Failed(f"several answers have keys that begin with {text}: {error}") from error
    except TimeoutError as error:
        raise StoreUnavailable(f"{error}: give all 64 digits of {text}") from error
    if key is None:
        raise Failed(f"no stored answer has a key that begins with {text}; give all 64 digits")
    return key


def _known(names: Iterable[str] | Mapping[str, object], what: str = "tasks") -> str:
    return f"; known {what}: {', '.join(names) or 'none'}"


def described(chosen: Chosen, target: Target) -> list[str]:
    """What is invalidated, in words for people: tags, keys and patterns."""
    if chosen.everything:
        return ["all answers"]
    keys = [f"key {key.hex()[:16]}" for key in target.keys]
    return [*keys, *target.tags, *(f"pattern {glob}" for glob in target.globs)]


def safe(text: str) -> str:
    """`text` without what a terminal might act on."""
    return re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]", "?", text)
