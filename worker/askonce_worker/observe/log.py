"""Structured logs on stderr: console lines for people, or one JSON object a line.

Every line has `event`, `level`, `timestamp` (UTC, ISO 8601) and `logger`. What other libraries say
through `logging` takes the same way. Secrets have no business in a log: fields named like one, and
passwords in URLs, are masked whoever logs them.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, cast

import msgspec
import structlog

Style = Literal["console", "json"]

MASK = "***"
_SECRET_FIELD = re.compile(r"api_?key|authorization|password|secret", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^\s/@]*:)[^\s/]*(?=@)", re.IGNORECASE)
_QUERY_PASSWORD = re.compile(r"(?P<before>://\S*[?&]password=)[^\s&]*", re.IGNORECASE)


def configure(style: Style, *, level: int = logging.INFO) -> None:
    """Send all logs of this process from `level` on to stderr, in `style`."""
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_json)
        if style == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            sort_keys=False,
            # The usual one shows local variables: keys, and what people have asked.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if style == "json" else []),
            _mask_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Stderr,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=max(level, logging.WARNING), force=True)


def hand_to_standard_logging() -> None:
    """Hand log events to the standard library's `logging`, unless structlog is configured.

    For askonce as a library: what is logged is then the application's choice, as usual.
    """
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            _mask_secrets,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def without_password(url: str) -> str:
    """`url`, or a text with URLs in it, with passwords masked."""
    for password in (_URL_PASSWORD, _QUERY_PASSWORD):
        url = password.sub(rf"\g<before>{MASK}", url)
    return url


class _Stderr:
    """Prints to what `sys.stderr` is at that moment: a progress bar puts itself in its place."""

    def __init__(self, name: str = "askonce") -> None:
        self.name = name

    def msg(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


class _ToStructlog(logging.Handler):
    """Hands on what libraries log by the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(
            record.levelno, record.getMessage(), exc_info=record.exc_info
        )


def _add_logger_name(
    logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    event["logger"] = cast("_Stderr", logger).name
    return event


def _mask_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = MASK if _SECRET_FIELD.search(name) else _masked(value)
    return event


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return without_password(value) if "://" in value else value
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {k: MASK if _SECRET_FIELD.search(str(k)) else _masked(v) for k, v in items}
    return value


def _json(event: Any, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()
