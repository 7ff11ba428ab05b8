"""What of XAPI is simulated, as tables for the documentation, from the code itself.

    python -m xorepd.lab.coverage docs/lab.md

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

from xorepd.lab import methods as methods
from xorepd.lab.datamodel import CLASSES, NEWER_CLASSES
from xorepd.lab.dispatch import METHODS
from xorepd.lab.effects import EFFECTS
from xorepd.lab.faults import Fault
from xorepd.lab.generics import register_generics
from xorepd.lab.http_actions import ACTIONS
from xorepd.lab.incidents import INCIDENTS, Incident
from xorepd.lab.kinds import KINDS
from xorepd.lab.server import DOORS
from xorepd.lab.toolstack_calls import CALLS

_PLACE = re.compile(r"(<!-- begin (?P<name>[\w-]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)
OF_EVERY_CLASS = {
    *("get_record", "get_by_uuid", "get_by_name_label"),
    *("get_all", "get_all_records", "get_all_records_where"),
}
_OF_A_FIELD = re.compile(r"(?:get|set|add_to|remove_from|add|remove)_(\w+)$")


def render(text: str) -> str:
    """Return a page with all of its tables current.

    Raises:
        KeyError: The page asks for a table that there is not.
    """
    return _PLACE.sub(lambda found: f"{found[1]}{TABLES[found['name']]()}{found[3]}", text)


def own_calls() -> dict[str, set[str]]:
    """Return by class the simulated calls that do not follow from there being a class or field."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for method in METHODS.values():
        cls, _, name = method.name.partition(".")
        generic = method.handler.__module__ == register_generics.__module__
        if name in CALLS.get(cls, ()) or not (generic or _is_implicit(cls, name)):
            found[cls].add(name)
    return dict(found)


def _is_implicit(cls: str, name: str) -> bool:
    """Tell whether a class has a call because of what it is or because of a field."""
    if name in OF_EVERY_CLASS:
        return True
    found = _OF_A_FIELD.match(name)
    return found is not None and found[1] in NEWER_CLASSES[cls].fields


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _names(names: Iterable[str]) -> str:
    return " ".join(f"`{name}`" for name in sorted(names, key=str.lower)) or "–"


def _classes() -> str:
    known = own_calls()
    rows = []
    for cls in sorted({*known, *CLASSES}, key=str.lower):
        here = known.get(cls, set())
        absent = {name for name in CALLS.get(cls, ()) if f"{cls}.{name}" not in METHODS}
        if here or absent:
            rows.append((f"`{cls}`", _names(here), _names(absent)))
    return _table(("class", "simulated", "`MESSAGE_METHOD_UNKNOWN`"), rows)


def _listed_classes() -> str:
    known = own_calls()
    bare = [cls for cls in CLASSES if not known.get(cls)]
    gone = [cls for cls in CALLS if cls not in CLASSES and not known.get(cls)]
    return _table(
        ("classes", ""),
        [
            (_names(bare), "fields, getters, setters and events, and no calls of their own"),
            (_names(gone), "nothing: every call answers `MESSAGE_METHOD_UNKNOWN`"),
        ],
    )


def _sums() -> str:
    known = own_calls()
    here = sum(len(known.get(cls, set()) & names) for cls, names in CALLS.items())
    plain = {method.name for method in METHODS.values()}
    return (
        f"The lab answers {len(plain)} methods: the getters and setters of {len(CLASSES)} classes,"
        f" and {here} of the {sum(map(len, CALLS.values()))} calls that XAPI has beyond those.\n"
    )


def _doors() -> str:
    actions = {action.name: action for action in ACTIONS}
    rows = [
        (
            f"`{actions[name].method} {actions[name].path}`",
            f"`{name}`",
            f"`{format_}`" if format_ else "as `format` says, or `raw`",
        )
        for name, (_, format_) in DOORS.items()
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
    "doors": _doors,
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
