"""JSON-RPC as XAPI speaks it: 1.0 when the request names no version, 2.0 when it says so.

Source: ocaml-rpc: src/lib/jsonrpc.ml; xapi: ocaml/xapi/api_server.ml.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.schema import parse_integer
from xorepd_lab.wire.xmlrpc import Malformed


@dataclass(frozen=True, slots=True)
class JsonCall:
    method: str
    params: list[Any]
    id: int | str
    version: str

    def success(self, value: Any) -> bytes:
        if self.version == "2.0":
            return _dump({"jsonrpc": "2.0", "result": value, "id": self.id})
        return _dump({"result": value, "error": None, "id": self.id})

    def failure(self, description: list[str]) -> bytes:
        if self.version == "2.0":
            error = {"code": 1, "message": description[0], "data": description[1:]}
            return _dump({"jsonrpc": "2.0", "error": error, "id": self.id})
        return _dump({"result": None, "error": description, "id": self.id})


def early_failure(description: list[str]) -> bytes:
    """Return the answer to a call that fails before it is dispatched: of neither version."""
    return _dump({"jsonrpc": "2.0", "error": description, "id": 0})


def _dump(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace")


def decode_call(body: bytes) -> JsonCall:
    """Read one call; parameters are positional, the id is an integer or a string.

    Raises:
        Malformed: It is no call.
        ApiError: INVALID_VALUE for a parameter that is no UTF-8.
    """
    try:
        data = json.loads(
            body.decode(errors="surrogateescape"),
            object_pairs_hook=_first_of_each,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error
    if not isinstance(data, dict):
        raise Malformed("a call is an object")
    version = data.get("jsonrpc", "1.0")
    if "jsonrpc" in data and version != "2.0":
        raise Malformed("Invalid field 'jsonrpc' in request body")
    params = data.get("params")
    if version == "2.0" and not isinstance(params, list):
        params = [] if params is None else [params] if isinstance(params, dict) else None
    match data.get("method"), params, data.get("id"):
        case _, _, bool():
            raise Malformed("Invalid field 'id' in request body")
        case str(method), list(arguments), int() | str() as call_id:
            _check_text(arguments)
            return JsonCall(method, arguments, call_id, version)
        case _:
            raise Malformed("method, params and id are required")


def _check_text(params: list[Any]) -> None:
    """Refuse bytes that were no UTF-8, which decoding has turned into lone surrogates."""
    for param in params:
        text = json.dumps(param, ensure_ascii=False)
        if _SURROGATE.search(text):
            shown = text.encode(errors="replace").decode()
            raise ApiError("INVALID_VALUE", "Invalid UTF-8 string in parameter", shown)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        found.setdefault(name, value)
    return found


def _integer(text: str) -> int:
    number = parse_integer(text)
    if number is None:
        raise ValueError(f"{text[:40]} is no integer of 64 bits")
    return number
