"""The tables of models in the configuration file, as structs."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from askonce_worker.config_units import Amount, Count, Duration

Version = Literal["2023-06-01", "2026-10-21"]
BATCHING_KINDS = ("openai-moderations", "predict")
"""Kinds of APIs that take several inputs in one request."""


class PriceConfig(msgspec.Struct, frozen=True):
    """`[models.NAME.price]`: what a call costs, in the currency of `[costs]`."""

    input: Amount = 0.0
    """A million input tokens."""
    output: Amount = 0.0
    """A million output tokens."""
    per_call: Amount = 0.0
    """Each call as such, whether or not it answers and reports tokens."""


class BatchConfig(msgspec.Struct, frozen=True):
    """`[models.NAME.batch]`: several questions in one request, of models that take them."""

    size: Annotated[int, Meta(gt=0, le=1024)] = 32
    """Questions in one request, at most."""
    wait_ms: Annotated[float, Meta(ge=0, le=1000)] = 5.0
    """How long the first of them waits for others."""


class BreakerConfig(msgspec.Struct, frozen=True):
    """`[models.NAME.breaker]`: when a model is held for dead, and how it is tried again."""

    enabled: bool = True
    failures: Count = 8
    """So many failed calls in a row, of at least three different questions, open it."""
    open_s: Duration = 1.0
    """The longest that it is open at first; twice as long after each probe that fails."""
    longest_open_s: Duration = 30.0
    """And no longer than that."""
    probes: Count = 1
    """Calls at once that try whether the model is back."""

    def __post_init__(self) -> None:
        if self.longest_open_s < self.open_s:
            raise ValueError("longest_open_s: expected at least open_s")


class LimitsConfig(msgspec.Struct, frozen=True):
    """`[models.NAME.limits]`: what all workers on a store together may ask a model."""

    concurrency: Count | None = None
    """Calls at the same time. Beside it, `max_concurrency` bounds each worker process."""
    requests_per_minute: Count | None = None
    """Calls begun in any minute, retries among them."""
    tokens_per_minute: Count | None = None
    """Tokens of input and output, of the calls begun in any minute."""

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self != LimitsConfig()


WITHOUT_TOKENS = ("python", "predict", "openai-moderations")
"""Kinds of models that do not say how many tokens a call has used."""


def _check_limits(kind: str, limits: LimitsConfig) -> None:
    """Raise `ValueError` for a limit of what is not reported."""
    if limits.tokens_per_minute is not None and kind in WITHOUT_TOKENS:
        raise ValueError(
            f"limits: expected no tokens_per_minute, as kind {kind!r} reports no tokens"
        )


class ApiModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[models.NAME]` of a model behind an HTTP API; what they have in common.

    `kind`: `openai` is any server with OpenAI's chat completions, `openai-responses` and
    `openai-moderations` are OpenAI's other APIs, `predict` is a text classification server (TEI).
    """

    kind: Literal["openai", "openai-responses", "openai-moderations", "predict"]
    base_url: str
    model: str
    api_key_env: str | None = None
    api_key_file: str | None = None
    timeout_s: Duration = 30.0
    max_concurrency: Count = 256
    """Questions in flight in one worker, whether they share requests or not."""
    adaptive: bool = True
    """Whether fewer calls are made at once while the model answers 429 or too late."""
    breaker: BreakerConfig = BreakerConfig()
    price: PriceConfig = PriceConfig()
    batch: BatchConfig | None = None
    """Only for `openai-moderations` and `predict`."""
    limits: LimitsConfig = LimitsConfig()

    def __post_init__(self) -> None:
        _check_limits(self.kind, self.limits)
        if self.batch is not None and self.kind not in BATCHING_KINDS:
            raise ValueError(f"batch: expected none, as {self.kind!r} takes one question a request")
        check_batch(self.batch, self.max_concurrency)
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_file: expected none beside api_key_env")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            # Not shown: it may be the key itself.
            raise ValueError("api_key_env: expected the name of an environment variable")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(
                'base_url: expected one like "https://api.example.com/v1", without credentials'
            )


class AnthropicModelConfig(ApiModelConfig, frozen=True, kw_only=True):
    """`[models.NAME]` with `kind = "anthropic"`: Anthropic's messages."""

    kind: Literal["anthropic"]  # type: ignore[assignment]
    base_url: str = "https://api.anthropic.com"
    api_version: Version = "2023-06-01"
    """Which generation of the API. The newer takes no temperature."""


class PythonModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[models.NAME]` with `kind = "python"`: a function of this process."""

    kind: Literal["python"]
    call: Annotated[str, Meta(pattern=r"^[\w.]+:[\w.]+$")]
    """`package.module:function`, from the working directory or the installed packages."""
    version: str = ""
    """Part of the cache key: change it when the function changes."""
    timeout_s: Duration = 30.0
    max_concurrency: Count = 32
    """Questions in flight in one worker, and threads of a `def`."""
    adaptive: bool = False
    """Whether fewer calls are made at once while it takes too long."""
    breaker: BreakerConfig | None = None
    """Without one, a function that raises fails its question, and nothing else."""
    price: PriceConfig = PriceConfig()
    batch: BatchConfig | None = None
    """Given: the function takes a list of texts, and returns a list as long."""
    limits: LimitsConfig = LimitsConfig()

    def __post_init__(self) -> None:
        _check_limits(self.kind, self.limits)
        check_batch(self.batch, self.max_concurrency)


def check_batch(batch: BatchConfig | None, max_concurrency: int) -> None:
    """Raise `ValueError` for batches that can never be full."""
    if batch is not None and batch.size > max_concurrency:
        most = f"at most max_concurrency, {max_concurrency}"
        raise ValueError(f"batch: expected a size of {most}: each question in flight counts")


ModelConfig = ApiModelConfig | AnthropicModelConfig | PythonModelConfig
MODEL_KINDS: dict[str, type[ModelConfig]] = {
    "openai": ApiModelConfig,
    "openai-responses": ApiModelConfig,
    "openai-moderations": ApiModelConfig,
    "predict": ApiModelConfig,
    "anthropic": AnthropicModelConfig,
    "python": PythonModelConfig,
}
