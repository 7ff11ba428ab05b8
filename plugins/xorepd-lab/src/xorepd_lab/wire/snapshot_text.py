r"""`VM.snapshot_metadata`: a VM's record as one line of text, from which VM.revert restores it.

    (('uuid' '1f0e…') ('name__label' 'web01') ('tags' '(\'a\' \'b\')') …)

An S-expression of pairs. Every value is text; sets and maps are S-expressions again. Names are
those of XAPI's database, where members of a group have two underscores.

Source: xapi: ocaml/xapi/helpers.ml (vm_to_string), ocaml/database/db_names.ml.
"""

import re
from collections.abc import Mapping
from typing import Any

from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.schema import ClassSpec, DateTime, Field, Type

GROUPS = ("name", "memory", "VCPUs", "actions", "PV", "HVM")
LEFT_OUT = ("snapshot_metadata", "allowed_operations", "current_operations")
"""The dump of a dump would grow with each one; what goes on now is no one's wish."""

_PLAIN = re.compile(r"[^'\\]*")


def dump_record(record: Mapping[str, Any]) -> str:
    """Return a record as text."""
    pairs = (
        f"({_quote(column(name))} {_quote(_text(value))})"
        for name, value in record.items()
        if name not in LEFT_OUT
    )
    return f"({' '.join(pairs)})"


def load_record(text: str, spec: ClassSpec) -> dict[str, Any]:
    """Return the fields that a text holds and the class knows, with their types.

    Raises:
        ApiError: INVALID_VALUE ["Invalid vm_string"].
    """
    names = {column(name): name for name in spec.fields}
    found: dict[str, Any] = {}
    try:
        for key, value in _pairs(_read(text)):
            if key in names:
                found[names[key]] = _value(spec.fields[names[key]], value)
    except (ValueError, IndexError) as error:
        raise ApiError("INVALID_VALUE", "Invalid vm_string") from error
    return found


def column(field: str) -> str:
    """Return the name that a field has in XAPI's database."""
    group, _, rest = field.partition("_")
    return f"{group}__{rest}" if group in GROUPS and rest else field


def _quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return f"({' '.join(_quote(_text(item)) for item in value)})"
        case dict():
            pairs = (f"({_quote(_text(k))} {_quote(_text(v))})" for k, v in value.items())
            return f"({' '.join(pairs)})"
        case _:
            return str(value)


def _value(field: Field, text: str) -> Any:
    return _typed(field.type, text)


def _typed(declared: Type, text: str) -> Any:
    match declared.kind:
        case "int":
            return int(text)
        case "float":
            return float(text)
        case "bool":
            return text == "true"
        case "datetime":
            return DateTime(text)
        case "set" if declared.item is not None:
            return [_typed(declared.item, _string(item)) for item in _read(text)]
        case "map" if declared.item is not None:
            return {key: _typed(declared.item, value) for key, value in _pairs(_read(text))}
        case _:
            return text


def _pairs(parsed: list[Any]) -> list[tuple[str, str]]:
    for pair in parsed:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("no pair")
    return [(_string(key), _string(value)) for key, value in parsed]


def _string(item: Any) -> str:
    if not isinstance(item, str):
        raise ValueError("no text")
    return item


def _read(text: str) -> list[Any]:
    """Return an S-expression as nested lists of texts."""
    outermost: list[Any] = []
    open_lists = [outermost]
    position = 0
    while position < len(text):
        match text[position]:
            case "(":
                inner: list[Any] = []
                open_lists[-1].append(inner)
                open_lists.append(inner)
                position += 1
            case ")":
                open_lists.pop()
                position += 1
            case "'":
                item, position = _read_quoted(text, position + 1)
                open_lists[-1].append(item)
            case " ":
                position += 1
            case _:
                raise ValueError(f"unexpected {text[position]!r} at {position}")
    if len(open_lists) != 1 or len(outermost) != 1 or not isinstance(outermost[0], list):
        raise ValueError("unbalanced")
    return outermost[0]


def _read_quoted(text: str, position: int) -> tuple[str, int]:
    """Return a quoted text and the position behind its closing quote."""
    parts = []
    while True:
        plain = _PLAIN.match(text, position)
        if plain is None:
            raise ValueError("unbalanced")
        parts.append(plain.group())
        position = plain.end()
        if text[position] == "'":
            return "".join(parts), position + 1
        parts.append(text[position + 1])
        position += 2
