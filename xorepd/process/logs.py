"""Logging: one line per event, for people on a terminal and as JSON elsewhere, never a secret.

Events of ours and of the libraries (which use `logging`) take the same path, and the last step
before a line is made masks what must not be in it, wherever it came from.
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
"""Characters of a value: a traceback fits."""

_TRACEBACKS = frozenset({"exception", "stack"})
"""Facts of several lines."""

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
    """Send all logging of the process to one stream.

    Args:
        level: Least level that is shown: `debug`, `info`, `warning` or `error`.
        style: How lines look; `auto` asks whether the stream is a terminal.
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
        # Before the mask: a traceback quotes texts.
        structlog.processors.format_exc_info,
        mask_secrets,
        _event_first,
        *([_visible_only] if console else []),  # JSON escapes what a terminal obeys
        structlog.dev.ConsoleRenderer(
            colors=out.isatty(),
            # The pretty one prints local variables, and those hold passwords.
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
    """Set the least level that is shown; libraries speak from `warning` on unless we debug."""
    logging.getLogger().setLevel(level.upper())
    for library in ("aiohttp", "asyncio", "concurrent"):
        logging.getLogger(library).setLevel(level.upper() if level != "info" else "WARNING")


def mask_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace every value that is, or contains, a secret; and references, which tell nothing.

    What is too long for a line is cut.
    """
    return {key: _masked(key, value) for key, value in event.items()}


def _event_first(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Order a line as a person reads it: when, how bad, what, and then the facts."""
    first = {key: event[key] for key in ("timestamp", "level", "event") if key in event}
    return first | dict(event)


def _visible_only(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace what a terminal obeys or hides, as everywhere where people look."""
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
