"""XML-RPC as XAPI reads and writes it: 64-bit integers and strings are untyped `<value>` text.

No library would do: they type everything, refuse integers above 31 bits, expand entities, and take
`<boolean>true</boolean>` for what it says, where XAPI takes everything but `1` for false.

Source: ocaml-rpc: src/lib/xmlrpc.ml.
"""

import base64
import binascii
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from xml.parsers import expat

from xorepd_lab.model.schema import ILLEGAL, DateTime, Int32, parse_integer

DEEPEST = 100
"""Elements inside each other; the deepest argument of the API needs some twenty."""

_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
_TO_ESCAPE = re.compile('[&<>"]')
_NOT_PLAIN = re.compile(f"{ILLEGAL.pattern}|{_TO_ESCAPE.pattern}")


class Malformed(Exception):
    """The request is no RPC; HTTP answers 500 to it."""


# -- reading --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Element:
    tag: str
    children: list["_Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def only(self, tag: str) -> "_Element":
        """Return the one child, which must be of that name, between nothing but space."""
        if len(self.children) != 1 or self.children[0].tag != tag or self.text.strip():
            raise Malformed(f"expected one {tag} in {self.tag}")
        return self.children[0]


def decode_call(body: bytes) -> tuple[str, list[Any]]:
    """Return the method's name and its parameters."""
    call = _parse(body)
    if call.tag != "methodCall" or [child.tag for child in call.children] != [
        "methodName",
        "params",
    ]:
        raise Malformed("expected methodCall with methodName and params")
    name, params = call.children
    return _text(name), [_value(_each(p, "param").only("value")) for p in params.children]


def decode_value(body: bytes) -> Any:
    """Return what a document holds that is one `<value>` and nothing else."""
    return _value(_each(_parse(body), "value"))


def _parse(body: bytes) -> _Element:
    top = _Element("")
    path = [top]

    def begin(tag: str, attributes: dict[str, str]) -> None:
        if len(path) > DEEPEST:
            raise Malformed("too deep")
        element = _Element(tag)
        path[-1].children.append(element)
        path.append(element)

    def end(tag: str) -> None:
        path.pop()

    def data(text: str) -> None:
        path[-1].texts.append(text)

    def entity(*declaration: object) -> None:
        raise Malformed("entities are not expanded")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(body, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise Malformed(str(error)) from error
    finally:
        # The parser and these functions hold each other.
        parser.StartElementHandler = None
        parser.EndElementHandler = None
        parser.CharacterDataHandler = None
        parser.EntityDeclHandler = None
    return top.children[0]


def _each(element: _Element, tag: str) -> _Element:
    if element.tag != tag:
        raise Malformed(f"expected {tag}, found {element.tag}")
    return element


def _text(element: _Element) -> str:
    if element.children:
        raise Malformed(f"expected text in {element.tag}")
    return element.text


def _value(element: _Element) -> Any:
    if not element.children:
        return element.text
    if len(element.children) > 1 or element.text.strip():
        raise Malformed("a value holds one thing")
    (typed,) = element.children
    match typed.tag:
        case "string":
            return _text(typed)
        case "int" | "i4" | "i8":
            number = parse_integer(_text(typed))
            if number is None:
                raise Malformed(f"{typed.text!r} is no integer of 64 bits")
            return number
        case "boolean" if typed.texts:
            return _text(typed) == "1"
        case "double":
            try:
                return float(_text(typed))
            except ValueError as error:
                raise Malformed(str(error)) from error
        case "dateTime.iso8601" if typed.texts:
            return DateTime(_text(typed))
        case "base64" if typed.texts:
            try:
                return base64.b64decode(_text(typed), validate=True)
            except binascii.Error as error:
                raise Malformed(str(error)) from error
        case "nil":
            return None
        case "array" if not typed.children:
            return []
        case "array":
            return [_value(_each(item, "value")) for item in typed.only("data").children]
        case "struct":
            return _struct(typed)
        case other:
            raise Malformed(f"{other} is no type")


def _struct(element: _Element) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for member in element.children:
        if _each(member, "member") and [child.tag for child in member.children] != [
            "name",
            "value",
        ]:
            raise Malformed("a member has a name and a value")
        name, value = member.children
        # Of members with the same name XAPI finds the first.
        found.setdefault(_text(name), _value(value))
    return found


# -- writing --------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)  # names of fields, references, states: the same ones over and over
def escape(text: str) -> str:
    """Escape as XAPI does; what XML cannot hold is left out."""
    if _NOT_PLAIN.search(text) is None:  # as nearly all are
        return text
    return _TO_ESCAPE.sub(lambda found: _ESCAPED[found[0]], ILLEGAL.sub("", text))


def encode_value(value: Any) -> str:
    """Return `<value>…</value>`."""
    match value:
        case DateTime():
            return f"<value><dateTime.iso8601>{value}</dateTime.iso8601></value>"
        case str():
            return f"<value>{escape(value)}</value>"
        case bool():
            return f"<value><boolean>{int(value)}</boolean></value>"
        case Int32():
            return f"<value><i4>{int(value)}</i4></value>"
        case int():
            return f"<value>{value}</value>"
        case float():
            return f"<value><double>{value:.16g}</double></value>"
        case list() | tuple():
            items = "".join(map(encode_value, value))
            return f"<value><array><data>{items}</data></array></value>"
        case dict():
            members = [
                f"<member><name>{escape(str(k))}</name>{encode_value(v)}</member>"
                for k, v in value.items()
            ]
            return f"<value><struct>{''.join(members)}</struct></value>"
        case None:
            return "<value><nil/></value>"
        case _:
            raise TypeError(f"cannot encode a {type(value).__name__}")


def encode_response(value: Any) -> bytes:
    text = (
        '<?xml version="1.0"?><methodResponse><params><param>'
        f"{encode_value(value)}</param></params></methodResponse>"
    )
    return text.encode()


def success(value: Any) -> bytes:
    return encode_response({"Status": "Success", "Value": value})


def failure(description: list[str]) -> bytes:
    return encode_response({"Status": "Failure", "ErrorDescription": description})
