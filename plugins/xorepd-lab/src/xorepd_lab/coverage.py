"""What of XAPI is simulated, as tables for the documentation, from the code itself.

    python -m xorepd_lab.coverage docs/lab.md

writes the tables of that page anew. Each stands between two comments, so that the text around
them stays as people wrote it::

    <!-- begin classes -->
    | class | … |
    <!-- end classes -->
"""

import ast
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path

from xorepd_lab import methods as methods
from xorepd_lab.calls.generics import register_generics
from xorepd_lab.calls.signatures import METHODS, Method
from xorepd_lab.classes.unsimulated import is_simulated, unsimulated
from xorepd_lab.disks.kinds import KINDS
from xorepd_lab.faults.effects import EFFECTS
from xorepd_lab.faults.faults import Fault
from xorepd_lab.faults.incidents import INCIDENTS, Incident
from xorepd_lab.front.server import HANDLERS
from xorepd_lab.model.datamodel import NEWER_CLASSES
from xorepd_lab.model.http_actions import ACTIONS

_PLACE = re.compile(r"(<!-- begin (?P<name>[\w-]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def render(text: str) -> str:
    """Return a page with all of its tables current.

    Raises:
        KeyError: The page asks for a table that there is not.
    """
    return _PLACE.sub(lambda found: f"{found[1]}{TABLES[found['name']]()}{found[3]}", text)


def own_calls() -> dict[str, set[str]]:
    """Return by class the calls that do something which their class or field does not tell."""
    return _by_class(
        method
        for method in METHODS.values()
        if is_simulated(method) and method.handler.__module__ != register_generics.__module__
    )


def _by_class(methods: Iterable[Method]) -> dict[str, set[str]]:
    found: defaultdict[str, set[str]] = defaultdict(set)
    for method in methods:
        cls, _, name = method.name.partition(".")
        found[cls].add(name)
    return dict(found)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _names(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in sorted(names, key=str.lower)) or "–"


def _classes() -> str:
    known, absent = own_calls(), _by_class(unsimulated())
    rows = [
        (f"`{cls}`", _names(known.get(cls, ())), _names(absent.get(cls, ())))
        for cls in sorted({*known, *absent}, key=str.lower)
    ]
    return _table(("class", "simulated", "`NOT_IMPLEMENTED`"), rows)


def _listed_classes() -> str:
    known = own_calls()
    bare = [cls for cls in NEWER_CLASSES if not known.get(cls)]
    gone = _by_class(unsimulated()).keys() - NEWER_CLASSES.keys() - known.keys()
    return _table(
        ("classes", ""),
        [
            (_names(bare), "fields, getters, setters and events, and no calls of their own"),
            (_names(gone), "nothing: every call answers `NOT_IMPLEMENTED`"),
        ],
    )


def _sums() -> str:
    here = sum(map(len, own_calls().values()))
    absent = len(list(unsimulated()))
    plain = {method.name for method in METHODS.values()}
    return (
        f"The lab knows {len(plain)} methods: the getters and setters of {len(NEWER_CLASSES)}"
        f" classes, {here} others that it simulates, and {absent} that it does not.\n"
    )


def _handlers() -> str:
    actions = {action.name: action for action in ACTIONS}
    rows = [
        (
            f"`{actions[name].method} {actions[name].path}`",
            f"`{name}`",
            f"`{format_}`" if format_ else "as `format` says, or `raw`",
        )
        for name, (_, format_) in HANDLERS.items()
    ]
    return _table(("handler", "realm of its 401", "name for faults"), rows)


def _kinds() -> str:
    def size(limit: int) -> str:
        return f"{limit >> 30} GiB" if limit else "–"

    def yes(fact: bool) -> str:
        return "yes" if fact else "–"

    rows = [
        (
            f"`{kind.type}`",
            "VHD" if kind.vhd_backed else "–",
            "in full" if kind.thick else "as written",
            size(0 if kind.read_only else kind.max_size),
            yes(kind.snapshots),
            yes(kind.cbt),
            yes(not kind.read_only),
        )
        for kind in KINDS.values()
    ]
    head = ("type", "chains", "space", "largest disk", "snapshots", "CBT", "writable")
    return _table(head, rows)


def _fault_when() -> str:
    texts = _field_texts(Fault)
    rows = [
        (f"`{each.name}`", texts[each.name])
        for each in fields(Fault)
        if each.init and each.name not in EFFECTS and each.name in texts
    ]
    return _table(("member", "meaning"), rows)


def _fault_effects() -> str:
    return _table(
        ("member", "effect"), [(f"`{name}`", each.tells) for name, each in EFFECTS.items()]
    )


def _incidents() -> str:
    return _table(
        ("incident", "what happens"),
        [(f"`{name}`", kind.tells) for name, kind in INCIDENTS.items()],
    )


def _incident_members() -> str:
    texts = _field_texts(Incident)
    return _table(("member", "meaning"), [(f"`{name}`", text) for name, text in texts.items()])


def _field_texts(cls: type) -> dict[str, str]:
    """Return the texts below the fields of a dataclass, each as one line."""
    module = inspect.getmodule(cls)
    assert module is not None
    (body,) = [
        node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    ]
    found = {}
    for line, following in zip(body.body, body.body[1:], strict=False):
        match line, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
            case _:
                pass
    return found


TABLES: dict[str, Callable[[], str]] = {
    "sums": _sums,
    "classes": _classes,
    "listed-classes": _listed_classes,
    "handlers": _handlers,
    "sr-kinds": _kinds,
    "fault-when": _fault_when,
    "fault-effects": _fault_effects,
    "incidents": _incidents,
    "incident-members": _incident_members,
}
"""What a page may ask for, by the name in its comments."""


def main() -> None:
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(render(page.read_text()))


if __name__ == "__main__":
    main()
