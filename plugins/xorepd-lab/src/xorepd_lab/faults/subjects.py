"""Which objects a request is about, told by the references and UUIDs among its arguments."""

import re
from collections.abc import Iterator
from typing import Any

from xorepd_lab.model.datamodel import CLASSES
from xorepd_lab.model.registry import Registry

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


def names_object(db: Registry, arguments: Any, wanted: str) -> bool:
    """Say whether an argument is this object, given by reference, UUID or name."""
    return any(wanted in _called(db, cls, ref) for cls, ref in named_objects(db, arguments))


def names_sr(db: Registry, arguments: Any, wanted: str) -> bool:
    """Say whether an argument is this SR, or a disk, a drive or a PBD of it."""
    for cls, ref in named_objects(db, arguments):
        sr = sr_of(db, cls, ref)
        if sr is not None and wanted in _called(db, "SR", sr):
            return True
    return False


def named_objects(db: Registry, arguments: Any) -> Iterator[tuple[str, str]]:
    """Yield class and reference of every object that the arguments name."""
    for text in _texts(arguments):
        for cls in CLASSES:
            if db.exists(cls, text):
                yield cls, text
            elif _UUID.match(text):
                for ref in db.select(cls, uuid=text):
                    yield cls, ref


def sr_of(db: Registry, cls: str, ref: str) -> str | None:
    """Return the SR that an object belongs to, None when it is of another kind."""
    match cls:
        case "SR":
            return ref
        case "VDI" | "PBD":
            return str(db.get(cls, ref, "SR"))
        case "VBD" if db.exists("VDI", db.get("VBD", ref, "VDI")):
            return str(db.get("VDI", db.get("VBD", ref, "VDI"), "SR"))
    return None


def _called(db: Registry, cls: str, ref: str) -> set[str]:
    if not db.exists(cls, ref):
        return {ref}
    record = db.record(cls, ref)
    return {ref, record["uuid"], record.get("name_label", ref)}


def _texts(value: Any) -> Iterator[str]:
    """Yield every string in nested lists and structs."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
