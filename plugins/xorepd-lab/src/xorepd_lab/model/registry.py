"""All objects of one pool, by reference. Every change goes through here and becomes an event.

Each change moves the pool's generation on by one; an object remembers the generation it was created
and last changed at, a table the last deletions. That is all `event.from` needs.

    generation  41        42         43          44
                create A  create B   modify A    delete B
    token 41 →  mod A (43); nothing of B, which came and went in between

A table of a thousand objects is asked for a few of them all the time, so each one is also kept by
UUID, by name, by what it refers to, and in the order of its last change.

Source: xapi: ocaml/database/db_cache_types.ml, db_cache_impl.ml.
"""

import asyncio
import random
import uuid as uuids
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from xorepd_lab.model.datamodel import CLASSES_OF, OTHER_NAMES, RELATIONS
from xorepd_lab.model.failures import NULL, ApiError, handle_invalid

DELETIONS_HIGH = 512
DELETIONS_KEPT = 256
"""A table's memory of deletions is cut to the lower value when it passes the higher."""

_FORWARD = {(r.cls, r.field): r for r in RELATIONS}
_FORWARD_OF: dict[str, list[str]] = defaultdict(list)
for _relation in RELATIONS:
    _FORWARD_OF[_relation.cls].append(_relation.field)
_NAMES = {"uuid", "name_label"}
"""With the references of RELATIONS, the fields by which `select` finds objects without a search."""


@dataclass(slots=True)
class Row:
    cls: str
    ref: str
    fields: dict[str, Any]
    created: int
    modified: int


@dataclass(frozen=True, slots=True)
class Deletion:
    generation: int
    created: int
    ref: str


class Registry:
    """Objects with referential integrity, generations, and waiting for changes."""

    def __init__(self, rng: random.Random, release: str = "8.3") -> None:
        self.rng = rng
        self.release = OTHER_NAMES.get(release, release)
        self.classes = CLASSES_OF[self.release]
        self.generation = 1
        self.tables: dict[str, dict[str, Row]] = {name: {} for name in self.classes}
        self.deletions: dict[str, list[Deletion]] = {name: [] for name in self.classes}
        self.forgotten = dict.fromkeys(self.classes, 0)
        """Generation of the newest deletion that is no longer remembered, by class."""
        self.emptied = 0
        """How often everything went at once; generations from before are of another history."""
        self._indexed = {
            name: tuple(
                field for field in spec.fields if field in _NAMES or (name, field) in _FORWARD
            )
            for name, spec in self.classes.items()
        }
        self._by_value: dict[tuple[str, str], dict[Any, dict[str, None]]] = defaultdict(dict)
        self._by_change: dict[str, dict[str, Row]] = {name: {} for name in self.classes}
        self._waiting: set[asyncio.Future[None]] = set()
        self.watcher: Callable[[str, Row], None] | None = None
        """Is told of every object that was `created`, `changed` or `destroyed`, at once."""

    # -- identifiers ----------------------------------------------------------------------------

    def new_uuid(self) -> str:
        return str(uuids.UUID(int=self.rng.getrandbits(128), version=4))

    def new_ref(self) -> str:
        return f"OpaqueRef:{self.new_uuid()}"

    # -- reading --------------------------------------------------------------------------------

    def exists(self, cls: str, ref: str) -> bool:
        return ref in self.tables[cls]

    def row(self, cls: str, ref: str) -> Row:
        """Return an object; HANDLE_INVALID [class, ref] when it is gone or of another class."""
        found = self.tables[cls].get(ref)
        if found is None:
            raise handle_invalid(cls, ref)
        return found

    def get(self, cls: str, ref: str, field: str) -> Any:
        return self.row(cls, ref).fields[field]

    def record(self, cls: str, ref: str) -> dict[str, Any]:
        """Return a copy of the record; its sets and maps are the registry's own: do not change."""
        return dict(self.row(cls, ref).fields)

    def refs(self, cls: str) -> list[str]:
        return list(self.tables[cls])

    def select(self, cls: str, /, **wanted: Any) -> Iterator[str]:
        """Yield the references of all objects whose fields equal what is given."""
        table = self.tables[cls]
        places = [
            self._by_value[cls, name].get(wanted[name], {})
            for name in self._indexed[cls]
            if name in wanted
        ]
        rows = list(table.values())
        if places:
            rows = [table[ref] for ref in min(places, key=len)]
            rows.sort(key=_creation)
        for row in rows:
            if all(row.fields[name] == value for name, value in wanted.items()):
                yield row.ref

    def by_uuid(self, cls: str, uuid: str) -> str:
        for ref in self.select(cls, uuid=uuid):
            return ref
        raise ApiError("UUID_INVALID", cls, uuid)

    def one(self, cls: str, /, **wanted: Any) -> str:
        """Return the only object that fits; for what the lab itself relies on."""
        found = list(self.select(cls, **wanted))
        if len(found) != 1:
            raise LookupError(f"{len(found)} objects of class {cls} with {wanted}")
        return found[0]

    def changed_since(self, cls: str, generation: int) -> list[Row]:
        """Return the objects that were made or changed after that, in the order of their making."""
        found = []
        for row in reversed(self._by_change[cls].values()):
            if row.modified <= generation:
                break
            found.append(row)
        found.sort(key=_creation)
        return found

    # -- changing -------------------------------------------------------------------------------

    def create(self, cls: str, /, **fields: Any) -> str:
        """Add an object. What is not given has its default; `uuid` and `ref` may be given."""
        ref = str(fields.pop("ref", "") or self.new_ref())
        values = self.classes[cls].blank()
        unknown = fields.keys() - values.keys()
        if unknown:
            raise KeyError(f"{cls} has no {', '.join(sorted(unknown))}")
        values.update(fields)
        if not values["uuid"]:
            values["uuid"] = self.new_uuid()
        self.generation += 1
        self._insert(Row(cls, ref, values, self.generation, self.generation))
        if self.watcher is not None:
            self.watcher("created", self.tables[cls][ref])
        for name in _FORWARD_OF[cls]:
            self._link(cls, name, ref, values[name])
        self._changed()
        return ref

    def restore(self, rows: list[Row]) -> None:
        """Take over saved objects as they are: no events, and inverse sets as they were saved."""
        for row in rows:
            self._insert(row)
        for table in self._by_change.values():
            by_change = sorted(table.items(), key=lambda item: item[1].modified)
            table.clear()
            table.update(by_change)

    def set(self, cls: str, ref: str, /, **fields: Any) -> None:
        """Write fields. Writing what is there already is no change and makes no event."""
        row = self.row(cls, ref)
        for name, value in fields.items():
            old = row.fields[name]
            if old == value:
                continue
            row.fields[name] = value
            if name in self._indexed[cls]:
                self._unindex(cls, name, ref, old)
                self._by_value[cls, name].setdefault(value, {})[ref] = None
            self._bump(row)
            if (cls, name) in _FORWARD:
                self._unlink(cls, name, ref, old)
                self._link(cls, name, ref, value)

    def put(self, cls: str, ref: str, field: str, key: str, value: Any) -> None:
        """Set one key of a map."""
        self.set(cls, ref, **{field: {**self.get(cls, ref, field), key: value}})

    def drop(self, cls: str, ref: str, field: str, key: str) -> None:
        """Remove one key of a map; nothing happens when it is absent."""
        kept = {k: v for k, v in self.get(cls, ref, field).items() if k != key}
        self.set(cls, ref, **{field: kept})

    def touch(self, cls: str, ref: str) -> None:
        """Make a `mod` event without changing anything."""
        self._bump(self.row(cls, ref))

    def destroy(self, cls: str, ref: str) -> None:
        """Remove an object. References to it dangle; sets that listed it forget it."""
        row = self.row(cls, ref)
        for name in _FORWARD_OF[cls]:
            self._unlink(cls, name, ref, row.fields[name])
        self._remove(row)
        self.generation += 1
        gone = self.deletions[cls]
        gone.append(Deletion(self.generation, row.created, ref))
        if len(gone) > DELETIONS_HIGH:
            del gone[:-DELETIONS_KEPT]
            self.forgotten[cls] = gone[0].generation - 1
        if self.watcher is not None:
            self.watcher("destroyed", row)
        self._changed()

    def forget(self, cls: str) -> None:
        """Drop a whole table without a word, as a restarted toolstack does with its tasks."""
        for row in list(self.tables[cls].values()):
            self._remove(row)
        self.generation += 1
        self.forgotten[cls] = self.generation
        self._changed()

    def empty(self) -> None:
        """Drop everything, and the memory of what was there, for a state of another time."""
        for cls, table in self.tables.items():
            table.clear()
            self.deletions[cls].clear()
            self._by_change[cls].clear()
            self.forgotten[cls] = 0
        self._by_value.clear()
        self.emptied += 1

    # -- waiting --------------------------------------------------------------------------------

    async def changed(self) -> None:
        """Wait for the next change."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def wake(self) -> None:
        """Let everybody who waits look again."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    # -- inside ---------------------------------------------------------------------------------

    def _bump(self, row: Row) -> None:
        self.generation += 1
        row.modified = self.generation
        by_change = self._by_change[row.cls]
        del by_change[row.ref]
        by_change[row.ref] = row
        if self.watcher is not None:
            self.watcher("changed", row)
        self._changed()

    def _insert(self, row: Row) -> None:
        self.tables[row.cls][row.ref] = row
        self._by_change[row.cls][row.ref] = row
        for name in self._indexed[row.cls]:
            self._by_value[row.cls, name].setdefault(row.fields[name], {})[row.ref] = None

    def _remove(self, row: Row) -> None:
        del self.tables[row.cls][row.ref]
        del self._by_change[row.cls][row.ref]
        for name in self._indexed[row.cls]:
            self._unindex(row.cls, name, row.ref, row.fields[name])

    def _unindex(self, cls: str, field: str, ref: str, value: Any) -> None:
        by_value = self._by_value[cls, field]
        del by_value[value][ref]
        if not by_value[value]:
            del by_value[value]

    def _changed(self) -> None:
        if self._waiting:
            self.wake()

    def _link(self, cls: str, field: str, ref: str, target_ref: str) -> None:
        relation = _FORWARD[cls, field]
        target = self.tables[relation.target].get(target_ref)
        if target is not None and ref not in target.fields[relation.inverse]:
            target.fields[relation.inverse] = [*target.fields[relation.inverse], ref]
            self._bump(target)

    def _unlink(self, cls: str, field: str, ref: str, target_ref: str) -> None:
        if target_ref == NULL:
            return
        relation = _FORWARD[cls, field]
        target = self.tables[relation.target].get(target_ref)
        if target is not None and ref in target.fields[relation.inverse]:
            kept = [other for other in target.fields[relation.inverse] if other != ref]
            target.fields[relation.inverse] = kept
            self._bump(target)


def _creation(row: Row) -> int:
    return row.created
