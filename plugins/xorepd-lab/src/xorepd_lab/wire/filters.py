"""Expressions of `get_all_records_where`: `field "x" = "y"`, `and`, `or`, `not`, `true`, `false`.

Source: xapi: ocaml/database/db_filter_parse.mly, ocaml/xapi/exnHelper.ml.
"""

import re
from collections import deque
from collections.abc import Callable
from typing import Any

from xorepd_lab.model.failures import ApiError

Filter = Callable[[dict[str, Any]], bool]

_WORD = re.compile(r'\s*(?:"([^"]*)"|\'([^\']*)\'|([()=])|(\w+))')


def parse_filter(text: str) -> Filter:
    """Return a predicate over records; INVALID_VALUE for what is no expression."""
    words: list[tuple[str, str]] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        found = _WORD.match(text, position)
        if found is None:
            raise _unreadable(text)
        double, single, sign, word = found.groups()
        literal = double if double is not None else single
        words.append(("text", literal) if literal is not None else ("word", sign or word))
        position = found.end()
    parser = _Parser(words)
    try:
        result = parser.either()
    except (_Unexpected, RecursionError) as error:
        raise _unreadable(text) from error
    if parser.words:
        raise _unreadable(text)
    return result


class _Unexpected(Exception):
    """The next word does not fit."""


def _unreadable(text: str) -> ApiError:
    return ApiError("INVALID_VALUE", text, "Stdlib.Parsing.Parse_error")


class _Parser:
    def __init__(self, words: list[tuple[str, str]]) -> None:
        self.words = deque(words)

    def next_is(self, word: str) -> bool:
        if self.words and self.words[0] == ("word", word):
            self.words.popleft()
            return True
        return False

    def either(self) -> Filter:
        left = self.both()
        if not self.next_is("or"):
            return left
        right = self.either()
        return lambda record: left(record) or right(record)

    def both(self) -> Filter:
        left = self.single()
        if not self.next_is("and"):
            return left
        right = self.both()
        return lambda record: left(record) and right(record)

    def single(self) -> Filter:
        if self.next_is("not"):
            inner = self.single()
            return lambda record: not inner(record)
        if self.next_is("true"):
            return lambda _: True
        if self.next_is("false"):
            return lambda _: False
        if self.next_is("("):
            inner = self.either()
            self._need(")")
            return inner
        left = self._operand()
        self._need("=")
        right = self._operand()
        return lambda record: left(record) == right(record)

    def _operand(self) -> Callable[[dict[str, Any]], str]:
        is_field = self.next_is("field")
        if not self.words or self.words[0][0] != "text":
            raise _Unexpected
        literal = self.words.popleft()[1]
        if not is_field:
            return lambda _: literal
        # Names come as in the API (VM's "name_label") or as in the database ("name__label").
        name = literal.replace("__", "_")
        return lambda record: _text(_field(record, name))

    def _need(self, word: str) -> None:
        if not self.next_is(word):
            raise _Unexpected


def _field(record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise ApiError("INTERNAL_ERROR", "missing field", name, "")
    return record[name]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
