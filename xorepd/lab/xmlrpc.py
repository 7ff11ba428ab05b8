"""XML-RPC as XAPI writes it: 64-bit integers and strings are untyped `<value>` text.

Reading is left to the standard library, whose untyped values are strings. Writing is not: its
marshaller types everything and refuses integers above 31 bits.

Source: ocaml-rpc: src/lib/xmlrpc.ml.
"""

import re
import xmlrpc.client
from typing import Any
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import escape

from xorepd.lab.schema import DateTime, Int32

_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML 1.0 cannot hold; XAPI drops them from what it stores."""


class Malformed(Exception):
    """The request is no RPC; HTTP answers 500 to it."""


def decode_call(body: bytes) -> tuple[str, list[Any]]:
    """Return the method's name and its parameters."""
    try:
        params, method = xmlrpc.client.loads(body)
    except (ExpatError, xmlrpc.client.Error, ValueError, TypeError, IndexError) as error:
        raise Malformed(str(error)) from error
    if not method:
        raise Malformed("no method name")
    return method, list(params)


def encode_value(value: Any) -> str:
    """Return `<value>…</value>`."""
    match value:
        case bool():
            return f"<value><boolean>{int(value)}</boolean></value>"
        case Int32():
            return f"<value><i4>{int(value)}</i4></value>"
        case int():
            return f"<value>{value}</value>"
        case float():
            return f"<value><double>{value:.16g}</double></value>"
        case DateTime():
            return f"<value><dateTime.iso8601>{value}</dateTime.iso8601></value>"
        case str():
            return f"<value>{escape(_ILLEGAL.sub('', value))}</value>"
        case list() | tuple():
            items = "".join(map(encode_value, value))
            return f"<value><array><data>{items}</data></array></value>"
        case dict():
            members = "".join(
                f"<member><name>{escape(str(k))}</name>{encode_value(v)}</member>"
                for k, v in value.items()
            )
            return f"<value><struct>{members}</struct></value>"
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
