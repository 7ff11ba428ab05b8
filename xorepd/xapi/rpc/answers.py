"""Read the answer to a call within bounds of time, size and depth.

    socket ─► Bounds: bytes, deadline ─► http.client ─► expat ─► values: depth ─► {Status, …}

A pool, or a proxy, may send a page of HTML, endless bytes, one byte now and then, or endlessly
nested structures. All of these fail the call with a sentence. A complete answer must be XAPI's
envelope; `shapes` checks its value.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
import xmlrpc.client
from collections.abc import Callable
from typing import Any
from xml.parsers import expat

from xorepd.errors import shortened
from xorepd.units import KiB, MiB

LARGEST = 8 * MiB
"""Largest answer to a call about one object; the record of a VM has 12 KiB."""
LARGEST_BITMAP = 64 * MiB
"""Largest answer of `VDI.list_changed_blocks`; that of the largest replicated disk has 43 MiB."""
LARGEST_FEED = 256 * MiB
"""Largest answer with all records. A VM or restore point with a disk and a network takes 18 KiB."""
SLOWEST = 64 * KiB
"""Bytes per second: an answer that keeps coming at this rate may exceed its deadline."""
DEEPEST = 64
"""Deepest nesting of elements; XAPI's events have 22."""

PIECE = 64 * KiB
_SHOWN = 40
"""Most characters of a name in a message."""


class NotUnderstood(ValueError):
    """The answer is not one to a XAPI call; the text says what it is instead."""


class Bounds:
    """How many bytes of an answer may still come, and until when.

    Args:
        timeout: Seconds for the whole exchange, including the connection.
        most: Bytes.
    """

    def __init__(self, timeout: float, most: int) -> None:
        self._until, self._timeout, self._most = time.monotonic() + timeout, timeout, most
        self._received = 0

    def left(self) -> float:
        """Return how many seconds the next step may wait.

        Raises:
            TimeoutError: none are left.
        """
        left = self._until + self._received / SLOWEST - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"it took longer than {self._timeout:.0f} s")
        return left

    def count(self, size: int) -> None:
        """Count received bytes.

        Raises:
            NotUnderstood: too many bytes have come.
        """
        self._received += size
        if self._received > self._most:
            raise NotUnderstood(f"what came is longer than {self._most // MiB} MiB")


class _Bounded(io.RawIOBase):
    """Receives from a socket within the bounds."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, bounds: Bounds) -> None:
        self._sock, self._raw, self._bounds = sock, raw, bounds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._bounds.left())
        size = self._raw.readinto(buffer)
        self._bounds.count(size or 0)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


class BoundedResponse(http.client.HTTPResponse):
    """A response that is read within the bounds, including its headers."""

    def __init__(self, bounds: Bounds, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Bounded(sock, self.fp.detach(), bounds))


class _Values:
    """Builds values from the elements of an answer; refuses elements that XAPI does not use."""

    def __init__(self) -> None:
        self._depth = 0
        self._text: list[str] = []
        self._is_bare = False
        """Whether the current value has no type element: its text is a string then."""
        self._items: list[Any] = []
        """Items of the innermost struct (names and values in turn) or array."""
        self._outer: list[list[Any]] = []
        self._is_fault = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 1 and tag != "methodResponse":
            raise _other(tag)
        if self._depth > DEEPEST:
            raise NotUnderstood(f"what came is nested more than {DEEPEST} deep")
        self._text = []
        self._is_bare = tag == "value"
        if tag in _STRUCTURES:
            self._outer.append(self._items)
            self._items = []

    def data(self, text: str) -> None:
        self._text.append(text)

    def end(self, tag: str) -> None:
        self._depth -= 1
        if tag == "value":
            if self._is_bare:
                self._items.append("".join(self._text))
        elif tag in _SIMPLE:
            self._items.append(_SIMPLE[tag]("".join(self._text)))
        elif tag in _STRUCTURES:
            made = _STRUCTURES[tag](self._items)
            self._items = self._outer.pop()
            self._items.append(made)
        elif tag == "fault":
            self._is_fault = True
        elif tag not in _AROUND:
            raise _other(tag)
        self._is_bare = False

    def finish(self) -> Any:
        """Return the value of the answer."""
        [value] = self._items
        if self._is_fault:
            raise NotUnderstood(f"it did not take the call: {shortened(str(value), 200)}")
        return value


def _boolean(text: str) -> bool:
    return {"0": False, "1": True}[text]


def _struct(items: list[Any]) -> dict[str, Any]:
    made = dict(zip(items[::2], items[1::2], strict=True))
    if not all(isinstance(name, str) for name in made):
        raise TypeError("a name is no text")
    return made


_SIMPLE: dict[str, Callable[[str], Any]] = {
    "string": str,
    "name": str,
    "int": int,
    "i4": int,
    "i8": int,
    "boolean": _boolean,
    "double": float,
    "dateTime.iso8601": xmlrpc.client.DateTime,
    "nil": lambda text: None,
}
_STRUCTURES: dict[str, Callable[[list[Any]], Any]] = {"struct": _struct, "array": list}
_AROUND = frozenset({"methodResponse", "params", "param", "data", "member"})


def read_answer(response: http.client.HTTPResponse) -> dict[str, Any]:
    """Return the envelope of an answer: a Status, and a Value or an ErrorDescription.

    Raises:
        NotUnderstood: the answer is anything else.
        OSError, http.client.HTTPException: the connection broke, or is too slow.
    """
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise NotUnderstood("what came is compressed, which was not asked for")
    parser, values = expat.ParserCreate(), _Values()
    parser.buffer_text, parser.buffer_size = True, PIECE
    parser.StartElementHandler, parser.EndElementHandler = values.start, values.end
    parser.CharacterDataHandler = values.data
    parser.StartDoctypeDeclHandler = _refuse_doctype  # no entities: they may expand endlessly
    while data := response.read(PIECE):
        _read(parser.Parse, data, False)
    _read(parser.Parse, b"", True)
    return _envelope(_read(values.finish))


def _read(step: Callable[..., Any], *given: object) -> Any:
    """Do one step of parsing; the text of a value may cause any error."""
    try:
        return step(*given)
    except NotUnderstood:
        raise
    except expat.ExpatError as error:
        raise NotUnderstood(f"what came is not XML-RPC: {error}") from error
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise NotUnderstood(f"what came is not XML-RPC: {type(error).__name__}") from error


def _refuse_doctype(name: str, *_: object) -> None:
    raise _other(name)


def _other(name: str) -> NotUnderstood:
    if name.lower() == "html":
        return NotUnderstood("what came is a web page, not XML-RPC")
    return NotUnderstood(f"what came is {name[:_SHOWN]!r}, not XML-RPC")


def _envelope(answer: object) -> dict[str, Any]:
    match answer:
        case {"Status": "Success", "Value": value}:
            return {"Status": "Success", "Value": value}
        case {"Status": str(status), "ErrorDescription": [str(code), *params]}:
            if all(isinstance(each, str) for each in params):
                return {"Status": status, "ErrorDescription": [code, *params]}
        case _:
            pass
    raise NotUnderstood("what came has neither value nor error")
