"""JSON-RPC as XAPI speaks it: 1.0 when the request names no version, 2.0 when it says so.

Source: ocaml-rpc: src/lib/jsonrpc.ml.
"""

import json
from dataclasses import dataclass
from typing import Any

from xorepd.lab.xmlrpc import Malformed


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


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def decode_call(body: bytes) -> JsonCall:
    """Read one call; parameters are positional, the id an integer or a string."""
    try:
        data = json.loads(body)
    except ValueError as error:
        raise Malformed(str(error)) from error
    match data:
        case {"method": str(method), "params": list(params), "id": int() | str() as call_id}:
            version = data.get("jsonrpc", "1.0")
            if version not in ("1.0", "2.0"):
                raise Malformed(f"unknown version {version!r}")
            return JsonCall(method, params, call_id, str(version))
        case _:
            raise Malformed("method, params and id are required")
