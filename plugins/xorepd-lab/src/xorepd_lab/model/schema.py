"""Types, fields and classes of XAPI's data model, and the notation its tables are written in.

A class is a few lines of text, one type per line::

    string: uuid name_label?w PV_kernel!w
    map string string: other_config!w
    ref host: affinity!w resident_on

`!` marks a member that `create` requires, `?` one that it takes, `~` one that it ignores (needed
only before `w`, since names may end in one), `w` a field with setters, `=x` a default other than
the type's zero value, and a trailing `*` a field that releases up to XCP-ng 8.3
do not have: only pools of the release `26` show it.

Types: `string`, `int`, `float`, `bool`, `datetime`, `ref CLASS`, `set TYPE`, `map KEY TYPE`,
`void`, and the names of enums.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xorepd_lab.model.failures import NULL, ApiError, internal_error


class DateTime(str):
    """A point in time as XAPI writes it: `20250319T04:16:24Z`."""

    __slots__ = ()


class Int32(int):
    """The one kind of integer that XAPI sends as `<i4>`: the counts of `event.from`."""

    __slots__ = ()


EPOCH = DateTime("19700101T00:00:00Z")


def words(text: str) -> list[str]:
    """Return the words of a line; long lists of names read better as one."""
    return text.split()


@dataclass(frozen=True, slots=True)
class Type:
    kind: str
    name: str = ""
    """Class of a reference, name of an enum."""
    values: tuple[str, ...] = ()
    key: "Type | None" = None
    item: "Type | None" = None

    def zero(self) -> Any:
        """Return a fresh zero value."""
        match self.kind:
            case "int":
                return 0
            case "float":
                return 0.0
            case "bool":
                return False
            case "datetime":
                return EPOCH
            case "ref":
                return NULL
            case "set":
                return []
            case "map":
                return {}
            case "enum":
                return self.values[0]
            case _:
                return ""

    def of_text(self, text: str) -> Any:
        """Read a default from a table."""
        match self.kind:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return text == "true"
            case "set":
                return [self.item.of_text(text)] if self.item else [text]
            case "map":
                return dict(pair.split(":", 1) for pair in text.split(","))
            case "datetime":
                return DateTime(text)
            case _:
                return text

    def retype(self, value: Any) -> Any:
        """Give a value that went through JSON its type back."""
        return DateTime(value) if self.kind == "datetime" else value


def parse_type(text: str, enums: Mapping[str, str]) -> Type:
    words = text.split()

    def take() -> Type:
        word = words.pop(0)
        match word:
            case "set":
                return Type("set", item=take())
            case "map":
                key = take()
                return Type("map", key=key, item=take())
            case "ref" | "record":
                return Type(word, words.pop(0))
            case "string" | "int" | "float" | "bool" | "datetime" | "void":
                return Type(word)
            case _:
                return Type("enum", word, tuple(enums[word].split()))

    parsed = take()
    if words:
        raise ValueError(f"cannot read the type {text!r}")
    return parsed


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: Type
    required: bool
    optional: bool
    writable: bool
    default: Any
    newer: bool = False
    """Whether releases up to XCP-ng 8.3 lack it."""

    def fresh(self) -> Any:
        """Return a default that nobody else holds."""
        if isinstance(self.default, list):
            return list(self.default)
        if isinstance(self.default, dict):
            return dict(self.default)
        return self.default


@dataclass(frozen=True)
class ClassSpec:
    name: str
    fields: dict[str, Field] = field(default_factory=dict)

    def blank(self) -> dict[str, Any]:
        return {name: f.fresh() for name, f in self.fields.items()}


_FIELD = re.compile(r"(?P<name>\w+)(?P<mark>[!?~])?(?P<w>w)?(?:=(?P<default>[^*]*))?(?P<new>\*)?$")


def parse_class(name: str, table: str, enums: Mapping[str, str], newer: bool = False) -> ClassSpec:
    """Read a class; with the fields of newer releases, or without."""
    spec = ClassSpec(name)
    for line in table.strip().splitlines():
        kind, _, members = line.partition(": ")
        for word in members.split():
            match = _FIELD.match(word)
            if match is None:
                raise ValueError(f"cannot read the field {word!r} of {name}")
            if match["new"] and not newer:
                continue
            declared = parse_type(kind, enums)
            default = (
                declared.zero() if match["default"] is None else declared.of_text(match["default"])
            )
            spec.fields[match["name"]] = Field(
                name=match["name"],
                type=declared,
                required=match["mark"] == "!",
                optional=match["mark"] == "?",
                writable=match["w"] is not None,
                default=default,
                newer=match["new"] is not None,
            )
    return spec


ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML 1.0 cannot hold."""
_DATE = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)T(\d\d):(\d\d):(\d\d)Z?$")
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,40})$")
_MOST_SHOWN = 100


def parse_integer(text: str) -> int | None:
    """Read an integer as XAPI does; None when it is none, or has more than 64 bits."""
    if not _INTEGER.match(text):
        return None
    number = int(text, 16 if "x" in text.lower() else 10)
    return number if -(1 << 63) <= number < 1 << 63 else None


def storable(text: str) -> str:
    """Return what the database keeps of a string: all up to the first character XML cannot hold."""
    found = ILLEGAL.search(text)
    return str(text) if found is None else text[: found.start()]


def mismatch(expected: str, value: Any) -> ApiError:
    """Return the failure of an argument of the wrong type, which XAPI does not name."""
    match value:
        case None:
            shown = "null"
        case bool():
            shown = str(value).lower()
        case list() | dict():
            shown = "[...]" if isinstance(value, list) else "{...}"
        case _:
            shown = str(value)[:_MOST_SHOWN]
    return internal_error(f"Failure(\"Expected {expected}, got '{shown}'\")")


def coerce(declared: Type, value: Any) -> Any:
    """Turn what the wire gave into a value of the declared type.

    Integers and floats may come as strings, since XML-RPC has no 64-bit ones.

    Raises:
        ApiError: INTERNAL_ERROR with the text of the exception that the real decoder dies of.

    Source: ocaml-rpc: src/lib/rpc.ml, rpcmarshal.ml.
    """
    match declared.kind:
        case "string" | "ref" if isinstance(value, str) and not isinstance(value, DateTime):
            return storable(value)
        case "int" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "int" if isinstance(value, str):
            number = parse_integer(value)
            if number is None:
                raise mismatch("int64", value)
            return number
        case "float" if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        case "float" if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                raise mismatch("float", value) from None
        case "bool" if isinstance(value, bool):
            return value
        case "enum" if isinstance(value, str):
            if value not in declared.values:
                raise internal_error(f"Failure(\"Unknown tag '{value[:_MOST_SHOWN]}'\")")
            return value
        case "datetime" if isinstance(value, str):
            found = _DATE.match(value)
            if found is None:
                raise internal_error(f"Invalid argument: {value[:_MOST_SHOWN]} is not a date")
            year, month, day, hour, minute, second = found.groups()
            return DateTime(f"{year}{month}{day}T{hour}:{minute}:{second}Z")
        case "set" if isinstance(value, list) and declared.item is not None:
            return [coerce(declared.item, item) for item in value]
        case "map" if isinstance(value, dict) and declared.item and declared.key:
            return {
                str(coerce(declared.key, key)): coerce(declared.item, item)
                for key, item in value.items()
            }
        case "void":
            return None
        case "record" if isinstance(value, dict):
            return value
        case "record":
            raise internal_error('Failure("bad __structure")')
        case _:
            raise mismatch(_NAMES.get(declared.kind, declared.kind), value)


_NAMES = {"int": "int64", "ref": "string", "enum": "string", "set": "array", "datetime": "DateTime"}
