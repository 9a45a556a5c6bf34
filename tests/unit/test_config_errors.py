from __future__ import annotations

from pathlib import Path

import pytest

from askonce_queue.errors import ConfigError
from askonce_worker.config import load_settings
from tests.support.config_file import MODEL, TASK, ConfigLoader

KINDS = "'openai', 'openai-responses', 'openai-moderations', 'predict', 'anthropic', 'python'"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigLoader:
    monkeypatch.chdir(tmp_path)
    return ConfigLoader(tmp_path)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('max_tokens = "x"', "tasks.intent.max_tokens: expected int, got str"),
        ("max_tokens = 0", "tasks.intent.max_tokens: expected int >= 1, got 0"),
        (
            'lables = ["a"]',
            "tasks.intent: unknown key 'lables' (did you mean 'labels'?); known keys: model, ",
        ),
        ("zzz = 1", "tasks.intent: unknown key 'zzz'; known keys: model, "),
        ("labels = []", "tasks.intent.labels: expected array of length >= 1, got []"),
        ('labels = ["a", ""]', "tasks.intent.labels[1]: expected str of length >= 1, got ''"),
        ('labels = ["a", 3]', "tasks.intent.labels[1]: expected str, got int"),
        ('labels = ["a", "a"]', "tasks.intent.labels: expected distinct ones, got 'a' twice"),
        (
            'normalize = ["nfk"]',
            "tasks.intent.normalize[0]: expected 'nfkc' or 'nfc' or 'whitespace' or 'casefold'",
        ),
        ("cache = 3", "tasks.intent.cache: expected table, got int"),
        (
            "cache = { tll = 1 }",
            "tasks.intent.cache: unknown key 'tll' (did you mean 'ttl'?); known keys: ttl, ",
        ),
        (
            'cache = { ttl = "1 week" }',
            'tasks.intent.cache.ttl: expected a duration like "24h", "5m", "30s" or "250ms", ',
        ),
        (
            "cache = { ttl = 0 }",
            "tasks.intent.cache.ttl: expected a duration above 0 and up to 3650d, got 0",
        ),
        ("temperature = -1", "tasks.intent.temperature: expected float >= 0.0, got -1"),
        (
            'temperature = "hot"',
            "tasks.intent.temperature: expected float or 'default', got 'hot'",
        ),
        ("temperature = 0.5", "tasks.intent.cache.cacheable: expected true or false, because "),
        (
            'temperature = "default"',
            "tasks.intent.cache.cacheable: expected true or false, because ",
        ),
        ('system_file = "no"', "tasks.intent.system_file: expected a readable UTF-8 file: "),
        ('system_file = "."', "tasks.intent.system_file: expected a readable UTF-8 file: "),
        (
            'system = "a"\nsystem_file = "b"',
            "tasks.intent.system_file: expected none beside system",
        ),
        (
            "params = { a = [1979-05-27] }",
            "tasks.intent.params: expected values that JSON has, got 1979-05-27",
        ),
        ("params = { a = nan }", "tasks.intent.params: expected values that JSON has, got nan"),
        (
            "params = { a = { b = -inf } }",
            "tasks.intent.params: expected values that JSON has, got -inf",
        ),
        (
            "[models.gpt.limits]\nconcurrency = 0",
            "models.gpt.limits.concurrency: expected int >= 1, got 0",
        ),
        (
            "[models.gpt.limits]\nrpm = 5",
            "models.gpt.limits: unknown key 'rpm'; known keys: concurrency, requests_per_minute, ",
        ),
        (
            """[models.tei]
            kind = "predict"
            base_url = "http://tei"
            model = "m"
            limits.tokens_per_minute = 5""",
            "models.tei.limits: expected no tokens_per_minute, as kind 'predict' reports no tokens",
        ),
        (
            '[models.own]\nkind = "python"\ncall = "m:f"\nlimits = { tokens_per_minute = 5 }',
            "models.own.limits: expected no tokens_per_minute, as kind 'python' reports no tokens",
        ),
        (
            'max_input_bytes = "1tb"',
            'tasks.intent.max_input_bytes: expected a size like "64mb" or "1gb", ',
        ),
    ],
)
def test_a_wrong_task_is_one_line(load: ConfigLoader, lines: str, expected: str) -> None:
    assert load.error(TASK + lines).startswith(expected)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            "[models.m]",
            f"models.m.kind: expected one of {KINDS}, got nothing",
        ),
        (
            '[models.m]\nkind = "opnai"',
            f"models.m.kind: expected one of {KINDS}, got 'opnai'",
        ),
        (
            "[models.m]\nkind = ['openai']",
            f"models.m.kind: expected one of {KINDS}, got ['openai']",
        ),
        ("[models.m]\nkind = 'openai'", "models.m.base_url: missing; expected str"),
        ("[models.m]\nkind = 'python'", "models.m.call: missing; expected str"),
        (
            "[models.m]\nkind = 'python'\ncall = 'classify'",
            "models.m.call: expected str matching regex ",
        ),
        (
            "[models.m]\nkind = 'python'\ncall = 'a:b'\ntimeout_s = 0",
            "models.m.timeout_s: expected float > 0.0, got 0",
        ),
        (
            "[models.m]\nkind = 'python'\ncall = 'a:b'\ntimeout_s = inf",
            "models.m.timeout_s: expected float <= 604800.0, got inf",
        ),
        (MODEL + "batch = {}", "models.gpt.batch: expected none, as 'openai' takes one question"),
        (
            "[models.m]\nkind = 'python'\ncall = 'a:b'\nbatch = { size = 33 }",
            "models.m.batch: expected a size of at most max_concurrency, 32: each question in",
        ),
        (
            "[models.m]\nkind = 'python'\ncall = 'a:b'\nbatch = { size = 0 }",
            "models.m.batch.size: expected int >= 1, got 0",
        ),
        (
            "[models.m]\nkind = 'python'\ncall = 'a:b'\nbatch = { wait_ms = 1001 }",
            "models.m.batch.wait_ms: expected float <= 1000",
        ),
        (
            MODEL + 'api_key_file = "a"\napi_key_env = "B"',
            "models.gpt.api_key_file: expected none beside api_key_env",
        ),
        (
            MODEL + "[tasks.intent]\nmodel = 'gpt'\nfallback = 'gtp'",
            "tasks.intent.fallback: no [models.gtp] in this file (did you mean 'gpt'?)",
        ),
        (
            MODEL + "[tasks.intent]\nmodel = 'gpt'\nfallback = 'gpt'",
            "tasks.intent.fallback: expected another model than 'gpt'",
        ),
        (
            MODEL + "[tasks.intent]\nmodel = 'gpt'\nbudget = { per_day = 5 }",
            "tasks.intent.budget.per_day: expected a [models.gpt.price]: without one nothing is ",
        ),
        (
            MODEL + "[tasks.intent]\nmodel = 'gpt'\nbudget = { per_day = 0 }",
            "tasks.intent.budget.per_day: expected float > 0.0, got 0",
        ),
        (
            MODEL + "[tasks.intent]\nmodel = 'gpt'\nbudget = { perday = 5 }",
            "tasks.intent.budget: unknown key 'perday' (did you mean 'per_day'?)",
        ),
        (
            MODEL + "[tasks.intent]\nmodel = 'gpt'\nbudget = { per_day = 5, warn_at = 80 }",
            "tasks.intent.budget.warn_at: expected float <= 1.0, got 80",
        ),
        (MODEL.replace("https", "file"), "models.gpt.base_url: expected one like "),
        (MODEL.replace("//", "//me:secret@"), "models.gpt.base_url: expected one like "),
        ("[models]\na = 3", "models.a: expected table, got int"),
        ("models = 3", "models: expected table, got int"),
        ('[models."a b"]', "models: expected names of 1 to 64 letters, digits, "),
        (f"[models.{'a' * 65}]", "models: expected names of 1 to 64 letters, digits, "),
        ('[tasks."é"]', "tasks: expected names of 1 to 64 letters, digits, "),
        ("[tasks.intent]", "tasks.intent.model: missing; expected str"),
        (
            MODEL + "[tasks.intent]\nmodel = 'gtp'",
            "tasks.intent.model: no [models.gtp] in this file (did you mean 'gpt'?)",
        ),
        ("[tasks.t]\nmodel = 'gpt'", "tasks.t.model: no [models.gpt] in this file"),
        ("[task.t]", "unknown key 'task' (did you mean 'tasks'?); known keys: redis, "),
        ("[redis]", "redis.url: missing; expected str"),
        ("[redis]\nurl = 'localhost'", "redis.url: expected a store's URL: "),
        ("[redis]\nurl = 'redis://h/first'", "redis.url: expected a store's URL: the database "),
        ("[redis]\nurl = 'redis://h'\nshards = 0", "redis.shards: expected 1 to 256, got 0"),
        ("[redis]\nurl = 'redis://h'\nshards = '1'", "redis.shards: expected int, got str"),
        ("[embedded]\nmaxmemory = 'much'", "embedded.maxmemory: expected a size like "),
        ("[worker]\nbatch = 0", "worker.batch: expected int >= 1, got 0"),
        (
            "[worker]\nlanes = { bulk = 0 }",
            "worker.lanes.bulk: expected int >= 1, got 0",
        ),
        ("[worker]\nlanes = { fast = 1 }", "worker.lanes: unknown key 'fast'; known keys: "),
        ("[worker]\nbatch = true", "worker.batch: expected int, got bool"),
        ("[worker]\ndrain_s = -1", "worker.drain_s: expected float > 0.0, got -1"),
        ("[worker]\nlog = 'xml'", "worker.log: expected 'console' or 'json', got 'xml'"),
        ("[worker]\npool = 'a b'", "worker.pool: expected str matching regex "),
        (
            "[worker]\nlease_renew_s = 6",
            "worker.lease_renew_s: expected at most half of lease_ttl_s",
        ),
        ("[worker]\nmemory_bytes = true", "worker.memory_bytes: expected a size like "),
        (
            "[worker]\n\nbatch = ",
            "not valid TOML: Invalid value (at end of document)",
        ),
        ("\n\n[a\nb = 1", "not valid TOML: Expected ']' at the end of a table declaration (at "),
        ("[a]\n[a]", "not valid TOML: Cannot declare ('a',) twice (at line 2, column 3)"),
        ("a = " + "[" * 5000, "not valid TOML: nested too deeply"),
        (b"[a\xff]", "expected UTF-8, got another byte at 2"),
        ('"a\\nb" = 1', "unknown key 'a\\nb'; known keys: "),
    ],
)
def test_a_wrong_file_is_one_line(load: ConfigLoader, lines: str | bytes, expected: str) -> None:
    assert load.error(lines).startswith(expected)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^/no/such/file: expected a readable file: No such "):
        load_settings(Path("/no/such/file"))


def test_a_key_in_place_of_a_variable_is_not_shown(load: ConfigLoader) -> None:
    message = load.error(MODEL + 'api_key_env = "sk-not-for-logs"')
    assert message == "models.gpt.api_key_env: expected the name of an environment variable"
