"""Logging: one line per event, for people on a terminal and as JSON elsewhere, without secrets.

Our events and those of libraries (which use `logging`) take the same path. The last step before
formatting masks secrets, wherever they come from.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from xorepd.errors import shortened, without_references
from xorepd.screen import visible

MASK = "***"
LONGEST = 20_000
"""Most characters of a value: a traceback fits."""

_TRACEBACKS = frozenset({"exception", "stack"})
"""Keys whose values have several lines."""

_SECRET_KEY = re.compile(
    r"passw(or)?d|secret|session(_?(id|ref|uuid|opaque))?|token|authorization|cookie|credentials?",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"""(?P<before>
        \b(?:session_id|session_ref|session|password|passwd|token|secret)['"]?\s*[=:]\s*['"]?
        | \bAuthorization:\s*(?:Basic|Bearer)\s+
        | \bhttps?://[^/\s:@]+:(?=[^/\s@]*@)
    )(?P<secret>[^\s&'"<>,;)}\]@]+)""",
    re.IGNORECASE | re.VERBOSE,
)


def configure(
    *, level: str, style: Literal["auto", "console", "json"], out: TextIO | None = None
) -> None:
    """Send all logs of the process to one stream.

    Args:
        level: Least level to show: `debug`, `info`, `warning` or `error`.
        style: Format of lines; `auto` depends on whether the stream is a terminal.
        out: The stream; standard error by default.
    """
    out = sys.stderr if out is None else out
    console = style == "console" or (style == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        # Before the mask, because a traceback may quote secrets.
        structlog.processors.format_exc_info,
        mask_secrets,
        _event_first,
        *([_visible_only] if console else []),  # JSON escapes control characters itself
        structlog.dev.ConsoleRenderer(
            colors=out.isatty(),
            # The default one prints local variables, which may hold passwords.
            exception_formatter=structlog.dev.plain_traceback,
        )
        if console
        else structlog.processors.JSONRenderer(default=str),
    ]
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name], processors=last
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    set_level(level)


def set_level(level: str) -> None:
    """Set the least level to show. Libraries log from `warning` on, unless the level is `debug`."""
    logging.getLogger().setLevel(level.upper())
    for library in ("aiohttp", "asyncio", "concurrent"):
        logging.getLogger(library).setLevel(level.upper() if level != "info" else "WARNING")


def mask_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Mask secrets and XAPI references in all values, and shorten long values."""
    return {key: _masked(key, value) for key, value in event.items()}


def _event_first(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Put time, level and event first, in the order in which people read."""
    first = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
    return first | dict(event)


def _visible_only(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace control and invisible characters, as in all output for people."""
    return {visible(k): _visible(v, "\n" if k in _TRACEBACKS else "") for k, v in event.items()}


def _visible(value: Any, keep: str = "") -> Any:
    match value:
        case str():
            return visible(value, keep=keep)
        case Mapping():
            return {visible(str(k)): _visible(v) for k, v in value.items()}
        case list():
            return [_visible(item) for item in value]
        case _:
            return value


def _masked(key: object, value: Any) -> Any:
    if isinstance(key, str) and _SECRET_KEY.fullmatch(key) and value is not None:
        return MASK
    match value:
        case str():
            value = shortened(value, LONGEST)
            masked = _SECRET_TEXT.sub(lambda match: match["before"] + MASK, value)
            return without_references(masked)
        case Mapping():
            return {_masked(None, k): _masked(k, v) for k, v in value.items()}
        case list() | tuple():
            return [_masked(None, item) for item in value]
        case bool() | int() | float() | None:
            return value
        case _:
            return _masked(None, str(value))
