from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from askonce_queue.errors import ConfigError
from askonce_worker.config import ApiModelConfig, PythonModelConfig, StoreConfig
from tests.support.config_file import MODEL, TASK, ConfigLoader

WHOLE = """
[redis]
url = "redis://127.0.0.1:6379/0"
shards = 3

[models.gpt]
kind = "openai"
base_url = "https://api.example.com/v1"
model = "gpt-5-mini"
api_key_env = "EXAMPLE_API_KEY"
timeout_s = 20
max_concurrency = 64

[models.local]
kind = "python"
call = "examples.intent:classify"
version = "2"

[tasks.intent]
model = "gpt"
system = "Classify."
labels = ["card_lost", "card_arrival"]
temperature = 0
max_tokens = 16
normalize = ["nfkc", "whitespace"]
params = { seed = 7, stop = ["."] }
cache = { ttl = "24h", memory_ttl = "250ms" }
max_input_bytes = "8kb"

[tasks.local]
model = "local"
shared = true

[worker]
batch = 100
memory_bytes = "128mb"
log = "json"
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigLoader:
    monkeypatch.chdir(tmp_path)
    return ConfigLoader(tmp_path)


def test_the_whole_schema_loads(load: ConfigLoader) -> None:
    settings = load(WHOLE)
    assert settings.redis == StoreConfig(url="redis://127.0.0.1:6379/0", shards=3)
    assert settings.shards == 3
    gpt, local = settings.models["gpt"], settings.models["local"]
    assert isinstance(gpt, ApiModelConfig)
    assert (gpt.timeout_s, gpt.max_concurrency) == (20.0, 64)
    assert isinstance(local, PythonModelConfig)
    assert (local.call, local.version) == ("examples.intent:classify", "2")
    intent = settings.tasks["intent"]
    assert intent.labels == ("card_lost", "card_arrival")
    assert intent.normalize == ("nfkc", "whitespace")
    assert intent.params == {"seed": 7, "stop": ["."]}
    assert (intent.cache.ttl_s, intent.cache.memory_ttl_s) == (86400.0, 0.25)
    assert intent.max_input_bytes == 8192
    assert settings.tasks["local"].shared
    assert settings.worker.memory_bytes == 128 << 20
    assert settings.worker.log == "json"


def test_an_empty_file_means_the_embedded_store_and_defaults(load: ConfigLoader) -> None:
    settings = load("")
    assert settings.redis is None
    assert settings.shards == 1
    assert settings.embedded_folder == load.folder / ".askonce"
    assert settings.embedded.maxmemory == 1 << 30
    assert settings.worker.batch == 500


def test_a_task_has_defaults(load: ConfigLoader) -> None:
    task = load(TASK).tasks["intent"]
    assert task.temperature == 0
    assert task.cache.ttl_s == 86400.0
    assert task.cache.cacheable
    assert task.labels == ()
    assert task.max_input_bytes == 65536


def test_settings_travel_to_worker_processes(load: ConfigLoader) -> None:
    settings = load(WHOLE)
    copy = pickle.loads(pickle.dumps(settings))  # noqa: S301 -- our own bytes
    assert (copy.redis, copy.models, copy.tasks) == (
        settings.redis,
        settings.models,
        settings.tasks,
    )


def test_system_files_are_read_beside_the_configuration(load: ConfigLoader) -> None:
    (load.folder / "prompt.txt").write_text("Classify ✓", encoding="utf-8")
    task = load(TASK + 'system_file = "prompt.txt"').tasks["intent"]
    assert task.system == "Classify ✓"


def test_sampled_answers_are_kept_when_the_task_says_so(load: ConfigLoader) -> None:
    settings = load(TASK + "temperature = 0.5\ncache = { cacheable = false }")
    assert not settings.tasks["intent"].cache.cacheable


def test_keys_come_from_the_environment_on_use(
    load: ConfigLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(MODEL + 'api_key_env = "EXAMPLE_API_KEY"')
    monkeypatch.delenv("EXAMPLE_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"models\.gpt\.api_key_env: .* EXAMPLE_API_KEY, got no"):
        settings.api_key("gpt")
    monkeypatch.setenv("EXAMPLE_API_KEY", "abc\n")
    assert settings.api_key("gpt") == "abc"


def test_keys_come_from_files(load: ConfigLoader) -> None:
    (load.folder / "key").write_text("abc\n")
    assert load(MODEL + 'api_key_file = "key"').api_key("gpt") == "abc"
    (load.folder / "key").write_text("\n")
    with pytest.raises(ConfigError, match=r"models\.gpt\.api_key_file: .*, got an empty one"):
        load(MODEL + 'api_key_file = "key"').api_key("gpt")


def test_keys_in_files_are_read_on_use(load: ConfigLoader) -> None:
    """Producers and operators use the same configuration, and may not be able to read them."""
    settings = load(MODEL + 'api_key_file = "sk-not-for-logs"')
    with pytest.raises(ConfigError) as caught:
        settings.api_key("gpt")
    assert str(caught.value) == (
        "askonce.toml: models.gpt.api_key_file: expected a readable UTF-8 file: "
        "No such file or directory"
    )
    (load.folder / "sk-not-for-logs").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="it has other bytes"):
        settings.api_key("gpt")
    with pytest.raises(ConfigError, match="no path has such characters"):
        load(MODEL + 'api_key_file = "sk\\u0000"').api_key("gpt")


def test_keys_come_from_credentials_of_systemd(
    load: ConfigLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = load.folder / "credentials"
    credentials.mkdir()
    (credentials / "key").write_text("abc\n")
    settings = load(MODEL + 'api_key_file = "$CREDENTIALS_DIRECTORY/key"')
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=r"models\.gpt\.api_key_file: .* LoadCredential="):
        settings.api_key("gpt")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert settings.api_key("gpt") == "abc"
    store = 'url = "redis://h"\npassword_file = "$CREDENTIALS_DIRECTORY/key"'
    redis = load(f"[redis]\n{store}").redis
    assert redis is not None
    assert redis.secret("password") == "abc"


def test_models_without_keys_need_none(load: ConfigLoader) -> None:
    settings = load(MODEL + '[models.p]\nkind = "python"\ncall = "a.b:c"')
    assert settings.api_key("gpt") is None
    assert settings.api_key("p") is None
