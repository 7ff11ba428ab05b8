"""Output for people: names and texts of any origin, safe on any terminal and in any pipe.

    data ─► Words, Rows ─► Screen ─► stdout        tables and sentences
    data ─► say, complain ─────────► stdout, stderr
    data ─► visible ───────────────► lines of the log

A VM may have any name: with square brackets, which rich takes as markup; with control characters,
which a terminal executes; with characters that reverse the text direction, or that are invisible.
This module replaces them before it measures texts, so that columns stay aligned. `say_json` changes
nothing, because programs read its output.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
import unicodedata
from contextlib import suppress
from typing import Any, NoReturn

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.table import Column, Table
from rich.text import Text, TextType

EXIT_FAILED = 1
EXIT_UNREAD = 141
"""128 + SIGPIPE: the exit status that a shell shows if the reader of a pipe has gone."""

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})
"""Unicode categories that a terminal executes, hides or cannot measure: control, format, lone
surrogate, unassigned, line and paragraph separators."""
_BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks without a visible shape."""
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

CLOSEST = "xorepd.closest"
"""Name of the error handler for characters that the output encoding does not have."""


def visible(text: str, *, keep: str = "") -> str:
    r"""Escape the control and invisible characters of a text, as `\x9b`, `\u202e`, `\n`.

    Args:
        keep: Characters that stay, such as the newlines of a traceback.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in keep else _visible(char) for char in text)


def _visible(char: str) -> str:
    if unicodedata.category(char) not in _HIDDEN and char not in _BLANKS:
        return char
    if char in _NAMED:
        return _NAMED[char]
    number = ord(char)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


# -- tables and sentences ------------------------------------------------------------------------


class Words(Text):
    """Text for people, optionally with a style; never markup."""

    def __init__(self, text: str = "", style: str = "") -> None:
        super().__init__(visible(text), style)

    def append(self, text: TextType, style: object = None) -> Words:
        super().append(visible(text) if isinstance(text, str) else text, style)  # type: ignore[arg-type]
        return self


def stacked(*lines: str) -> Text:
    """Return several lines as one cell."""
    return Text("\n").join(Words(line) for line in lines)


class Rows(Table):
    """A table in our style; texts in its cells become `Words`."""

    def __init__(self, *columns: str, together: frozenset[str] = frozenset()) -> None:
        """Create an empty table.

        Args:
            columns: The headings.
            together: Headings of columns whose cells must not wrap, such as numbers.
        """
        super().__init__(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
        for column in columns:
            # Long names wrap instead of being cut; numbers do not wrap.
            self.add_column(Words(column), overflow="fold", no_wrap=column in together)

    def add(self, *cells: str | Text) -> None:
        """Add a row."""
        self.add_row(*(Words(cell) if isinstance(cell, str) else cell for cell in cells))


class Told(ProgressColumn):
    """A column of a progress display that shows one of the task's fields: a text, or its lines."""

    def __init__(self, field: str) -> None:
        super().__init__(Column(no_wrap=True))
        self._field = field

    def render(self, task: Task) -> Text:
        told = task.fields[self._field]
        return Words(told) if isinstance(told, str) else stacked(*told)


class Screen(Console):
    """The output of `xorepctl`: tables and sentences."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)

    def print(self, *shown: Any, **options: Any) -> None:
        """Print sentences and views, each on its own lines."""
        try:
            super().print(*(Words(o) if isinstance(o, str) else o for o in shown), **options)
        except OSError as error:
            _end_unwritten(error)

    def on_broken_pipe(self) -> None:
        _end_unwritten(BrokenPipeError())


# -- plain lines ---------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line."""
    _write(visible(text))


def say_json(text: str) -> None:
    """Print JSON unchanged; if the output is not UTF-8, with escapes for non-ASCII characters."""
    if sys.stdout is not None and codecs.lookup(sys.stdout.encoding).name != "utf-8":
        text = re.sub(r"[^\x00-\x7f]", lambda match: json.dumps(match[0])[1:-1], text)
    _write(text)


def complain(text: str, *, keep: str = "") -> None:
    """Print a line on standard error; for `keep` see `visible`."""
    with suppress(OSError):  # there is no other place to report it
        if sys.stderr is not None:
            print(visible(text, keep=keep), file=sys.stderr, flush=True)


def _write(text: str) -> None:
    try:
        if sys.stdout is not None:
            print(text, flush=True)
    except OSError as error:
        _end_unwritten(error)


def _end_unwritten(error: OSError) -> NoReturn:
    """Exit: the output is full, or its reader has gone."""
    _drop_output()
    if isinstance(error, BrokenPipeError):
        sys.exit(EXIT_UNREAD)
    complain(f"cannot write the answer ({error.strerror or error}); make room there")
    sys.exit(EXIT_FAILED)


def _drop_output() -> None:
    """Discard buffered output, which Python would write at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


# -- programs ------------------------------------------------------------------------------------


def run_program(app: typer.Typer, name: str) -> NoReturn:
    """Run a program and exit with its status.

    Args:
        name: Name of the program, for its messages.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=CLOSEST)  # standard error already escapes them
    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:
        complain(f"{name}: nothing was done")
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if not isinstance(error, _REFUSED):
            raise
        said = io.StringIO()
        error.show(said)  # type: ignore[attr-defined]
        complain(said.getvalue().rstrip(), keep="\n")
        sys.exit(error.exit_code)  # type: ignore[attr-defined]


_REFUSED = typer.BadParameter.__mro__[2]
"""What typer raises for a wrong command line; it has no public name for it."""


def _closest(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that the output does not have by question marks of the same width."""
    assert isinstance(error, UnicodeEncodeError)
    return "?" * cell_len(error.object[error.start : error.end]), error.end


codecs.register_error(CLOSEST, _closest)
