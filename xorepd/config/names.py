"""How a configuration names objects: by UUID, by exact name, or by a pattern of names."""

from __future__ import annotations

import re
import uuid
from functools import lru_cache


def is_pattern(text: str) -> bool:
    """Return whether a text is a pattern: `*` matches any text, `?` any character.

    Brackets match themselves, because names such as `db [old]` are common.
    """
    return "*" in text or "?" in text


def names(text: str, uuid: str, name: str) -> bool:
    """Return whether a text of the configuration matches the object with this UUID and name."""
    if is_pattern(text):
        return _compiled(text).fullmatch(name) is not None
    return text == name or text.lower() == uuid


def as_uuid(text: str) -> str:
    """Return a UUID as pools write it; empty if the text is not a UUID."""
    try:
        found = str(uuid.UUID(text))
    except ValueError:
        return ""
    return found if found == text.lower() else ""  # other spellings are names


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    # Several stars in a row match what one matches, but would be slow on long names.
    parts = re.split(r"(\*+|\?)", pattern)
    return re.compile("".join(map(_part, parts)), re.DOTALL)


def _part(text: str) -> str:
    if text == "?":
        return "."
    return ".*" if text.startswith("*") else re.escape(text)
