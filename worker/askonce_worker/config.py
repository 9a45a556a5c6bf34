"""The configuration file: TOML → `Settings`, checked as a whole.

Every fault is one line that names file, key and what was expected:
`askonce.toml: tasks.intent.max_tokens: expected int, got str`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from askonce_queue.store_config import FILE_OPTIONS, StoreConfig
from askonce_worker.config_models import (
    MODEL_KINDS,
    AnthropicModelConfig,
    ApiModelConfig,
    BatchConfig,
    LimitsConfig,
    ModelConfig,
    PriceConfig,
    PythonModelConfig,
)
from askonce_worker.config_schema import (
    NAME,
    BudgetConfig,
    CacheConfig,
    CostsConfig,
    EmbeddedConfig,
    HitLogConfig,
    LaneWeights,
    NormalizeStep,
    SourceConfig,
    TaskConfig,
    WorkerConfig,
)
from askonce_worker.config_tables import ConfigFile, Table, did_you_mean

__all__ = [
    "AnthropicModelConfig",
    "ApiModelConfig",
    "BatchConfig",
    "BudgetConfig",
    "CacheConfig",
    "CostsConfig",
    "EmbeddedConfig",
    "HitLogConfig",
    "LaneWeights",
    "LimitsConfig",
    "ModelConfig",
    "NormalizeStep",
    "PriceConfig",
    "PythonModelConfig",
    "Settings",
    "SourceConfig",
    "StoreConfig",
    "TaskConfig",
    "WorkerConfig",
    "load_settings",
]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration file, checked. `redis` is None when the embedded store is used."""

    source: ConfigFile
    redis: StoreConfig | None
    embedded: EmbeddedConfig
    models: dict[str, ModelConfig]
    tasks: dict[str, TaskConfig]
    worker: WorkerConfig
    costs: CostsConfig
    sources: dict[str, SourceConfig] = {}

    @property
    def embedded_folder(self) -> Path:
        """The embedded store's state folder, absolute."""
        return self.source.folder / Path(self.embedded.folder).expanduser()

    @property
    def shards(self) -> int:
        """The number of shards of the store."""
        return 1 if self.redis is None else self.redis.shards

    def api_key(self, model_name: str) -> str | None:
        """The API key of a model; None if it needs none. Raises `ConfigError` if it is not there.

        It is looked up here and not on loading: producers and operators need no keys.
        """
        model, key = self.models[model_name], f"models.{model_name}"
        if isinstance(model, PythonModelConfig):
            return None
        if model.api_key_file is not None:
            return _key_in_file(self.source, model.api_key_file, f"{key}.api_key_file")
        if model.api_key_env is None:
            return None
        secret = os.environ.get(model.api_key_env, "").strip()
        if not secret:
            raise self.source.error(
                f"{key}.api_key_env",
                f"expected a key in the environment variable {model.api_key_env}, got nothing",
            )
        return secret


def load_settings(path: Path) -> Settings:
    """Read and check a configuration file. Raises `ConfigError`, with a message of one line."""
    source = ConfigFile(path)
    known = [part.name for part in msgspec.structs.fields(Settings) if part.name != "source"]
    source.check_names(source.root, known, "")
    models = {
        name: _model(source, table, f"models.{name}") for name, table in _named(source, "models")
    }
    sources = _sources(source)
    return Settings(
        source=source,
        redis=_store(source) if "redis" in source.root else None,
        embedded=source.section(EmbeddedConfig, "embedded"),
        models=models,
        tasks={
            name: _task(source, table, f"tasks.{name}", models, sources)
            for name, table in _named(source, "tasks")
        },
        sources=sources,
        worker=source.section(WorkerConfig, "worker"),
        costs=source.section(CostsConfig, "costs"),
    )


def _store(source: ConfigFile) -> StoreConfig:
    """The `[redis]` table; its files count from the configuration file, and must be there."""
    store = source.section(StoreConfig, "redis")
    files: dict[str, str] = {}
    for option in FILE_OPTIONS:
        name = getattr(store, option)
        if name is not None:
            path = source.path_of(name, f"redis.{option}")
            if not path.is_file():
                at = "" if "password" in option else f" at {name}"  # it may be the password itself
                raise source.error(f"redis.{option}", f"expected a file, found none{at}")
            files[option] = str(path)
    return msgspec.structs.replace(store, **files)


def _named(source: ConfigFile, section: str) -> list[tuple[str, Table]]:
    """The tables `[section.NAME]`."""
    tables = source.table(source.root, section, section)
    for name in tables:
        if not NAME.fullmatch(name):
            raise source.error(
                section,
                f"expected names of 1 to 64 letters, digits, '_', '.' and '-', got {name!r}",
            )
    return [(name, source.table(tables, name, f"{section}.{name}")) for name in tables]


def _model(source: ConfigFile, table: Table, key: str) -> ModelConfig:
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in MODEL_KINDS:
        kinds = ", ".join(repr(known) for known in MODEL_KINDS)
        got = "nothing" if kind is None else repr(kind)
        raise source.error(f"{key}.kind", f"expected one of {kinds}, got {got}")
    return source.convert(table, MODEL_KINDS[kind], key)


def _sources(source: ConfigFile) -> dict[str, SourceConfig]:
    """The tables `[sources.NAME]`; all that they depend on are there, too."""
    sources = {
        name: source.convert(table, SourceConfig, f"sources.{name}")
        for name, table in _named(source, "sources")
    }
    for name, config in sources.items():
        _check_sources(source, config.depends_on, sources, f"sources.{name}.depends_on")
    return sources


def _check_sources(
    source: ConfigFile, named: Iterable[str], known: Iterable[str], key: str
) -> None:
    """Raise `ConfigError` for a source that has no table.

    A slip of the pen would not be noticed before an answer outlives what it was built on.
    """
    for name in named:
        if name not in known:
            raise source.error(key, f"no [sources.{name}] in this file{did_you_mean(name, known)}")


def _task(
    source: ConfigFile,
    table: Table,
    key: str,
    models: dict[str, ModelConfig],
    sources: dict[str, SourceConfig],
) -> TaskConfig:
    task = source.convert(table, TaskConfig, key)
    _check_sources(source, task.cache.sources, sources, f"{key}.cache.sources")
    for field, model in (("model", task.model), ("fallback", task.fallback)):
        if model is not None and model not in models:
            raise source.error(
                f"{key}.{field}", f"no [models.{model}] in this file{did_you_mean(model, models)}"
            )
    if task.fallback == task.model:
        raise source.error(f"{key}.fallback", f"expected another model than {task.model!r}")
    if task.budget.per_day is not None and models[task.model].price == PriceConfig():
        raise source.error(
            f"{key}.budget.per_day",
            f"expected a [models.{task.model}.price]: without one nothing is ever spent",
        )
    if task.temperature != 0 and "cacheable" not in table.get("cache", {}):
        raise source.error(
            f"{key}.cache.cacheable",
            f"expected true or false, because temperature is {task.temperature!r}: "
            "may one sampled answer serve everyone who asks the same?",
        )
    if task.system_file is not None:
        text = source.read_text(task.system_file, f"{key}.system_file")
        task = msgspec.structs.replace(task, system=text, system_file=None)
    return task


def _key_in_file(source: ConfigFile, name: str, key: str) -> str:
    """The key in a file. What is told of one that cannot be read does not quote its name: it may be
    the key itself, in the wrong place.
    """
    path = source.path_of(name, key)
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise source.error(key, "expected a readable UTF-8 file: it has other bytes") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no path has such characters"
        raise source.error(key, f"expected a readable UTF-8 file: {why}") from None
    if not secret:
        raise source.error(key, "expected a file with a key, got an empty one")
    return secret
