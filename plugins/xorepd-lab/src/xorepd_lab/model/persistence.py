"""A lab on disk: one JSON file and a journal beside it, next to the directories of the SRs.

    lab.json      everything, as of some generation of each pool's registry
    lab.journal   a line per save since: the objects that changed and those that went

Shortly after each change a line is appended; a thousand VMs cost no more than what changed of
them. When the journal has grown as large as the file, both are replaced: first the file, then the
journal, whose lines are known by their generations if a kill came between. A line that was cut is
not there. So a lab that was killed resumes with what it held moments before; files of disks that
its records do not know are then found by a scan, and records without files go. Sessions and tasks
are never kept: toolstacks lose them too.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from xorepd_lab.model.registry import DELETIONS_HIGH, Deletion, Registry, Row

FORMAT = 1
JOURNAL_BYTES = 1 << 20
"""A journal may always grow to this size before it is folded into the file."""
RESUME_GAP = 1 << 20
"""Added to the generation of a pool that resumes. Clients may hold tokens of moments that a killed
lab did not save: they must not be in the future, or changes would pass unseen."""
NOT_KEPT = {"session", "task"}
TRANSIENT: dict[str, dict[str, str]] = {"current_operations": {}}
"""Fields that a restart clears."""


class StateError(Exception):
    """The directory holds something that is no state of this lab."""


def lock(directory: Path) -> IO[str]:
    """Take a lab's directory for this process, until the file that this returns is closed.

    Raises:
        StateError: Another process has it.
    """
    file = (directory / "lab.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StateError(f"another lab runs on {directory}") from error
    return file


class StateFile:
    """The file and the journal of one lab, for writing.

    Args:
        path: Of the file; the journal has its name and the suffix `.journal`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._journal: IO[bytes] | None = None
        self._limit = JOURNAL_BYTES
        self._head = ""
        self._saved: dict[str, int] = {}
        self._emptied: dict[str, int] = {}

    def save(self, head: dict[str, Any], registries: Mapping[str, Registry]) -> None:
        """Bring what is on disk up to now.

        Args:
            head: All but the registries: `pools` holds the other members of each pool.
            registries: By the name of the pool.
        """
        emptied = {name: db.emptied for name, db in registries.items()}
        if json.dumps(head) != self._head or self._must_fold() or emptied != self._emptied:
            self._write_whole(head, registries)
            return
        lines = []
        for name, db in registries.items():
            since = self._saved[name]
            if db.generation == since:
                continue
            if any(db.forgotten[cls] > since for cls in db.tables.keys() - NOT_KEPT):
                self._write_whole(head, registries)
                return
            rows, deletions = dump_rows(db, since), dump_deletions(db, since)
            if rows or deletions:
                line = {"pool": name, "from": since, "to": db.generation}
                lines.append({**line, "rows": rows, "deletions": deletions})
                self._saved[name] = db.generation
        if lines and self._journal is not None:
            self._journal.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            self._journal.flush()

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _must_fold(self) -> bool:
        return self._journal is None or self._journal.tell() > self._limit

    def _write_whole(self, head: dict[str, Any], registries: Mapping[str, Registry]) -> None:
        self.close()
        pools = {
            name: {**members, "registry": dump_registry(registries[name])}
            for name, members in head["pools"].items()
        }
        whole = json.dumps({"format": FORMAT, **head, "pools": pools})
        scratch = self.path.with_suffix(".new")
        scratch.touch(mode=0o600)
        scratch.write_text(whole)
        os.replace(scratch, self.path)
        journal = journal_of(self.path)
        journal.unlink(missing_ok=True)
        journal.touch(mode=0o600)
        self._journal = journal.open("ab")
        self._limit = max(JOURNAL_BYTES, len(whole))
        self._head = json.dumps(head)
        self._saved = {name: db.generation for name, db in registries.items()}
        self._emptied = {name: db.emptied for name, db in registries.items()}


def journal_of(path: Path) -> Path:
    return path.with_suffix(".journal")


def read_state(path: Path) -> dict[str, Any]:
    """Return what the file and its journal hold: the head, each pool with its `registry`."""
    try:
        state = json.loads(path.read_text())
    except ValueError as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise StateError(f"{path} is not a lab's state of format {FORMAT}")
    for name, pool in state["pools"].items():
        pool["registry"] = _replay(pool["registry"], _read_journal(path, name))
    return state


def _read_journal(path: Path, pool: str) -> list[dict[str, Any]]:
    """Return a pool's lines, up to one that was cut."""
    lines: list[dict[str, Any]] = []
    journal = journal_of(path)
    for text in journal.read_bytes().split(b"\n") if journal.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["pool"] == pool:
            lines.append(line)
    return lines


def _replay(registry: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    rows = {(row[0], row[1]): row for row in registry["rows"]}
    for line in lines:
        if line["to"] <= registry["generation"]:
            continue  # older than the file
        for row in line["rows"]:
            rows[row[0], row[1]] = row
        for cls, gone in line["deletions"].items():
            registry["deletions"].setdefault(cls, []).extend(gone)
            for _, _, ref in gone:
                rows.pop((cls, ref), None)
        registry["generation"] = line["to"]
    return {**registry, "rows": list(rows.values())}


def dump_registry(db: Registry) -> dict[str, Any]:
    return {"generation": db.generation, "rows": dump_rows(db), "deletions": dump_deletions(db)}


def dump_rows(db: Registry, since: int = 0) -> list[list[Any]]:
    """Return the objects that were made or changed after a generation."""
    return [
        [row.cls, row.ref, row.created, row.modified, row.fields]
        for name in db.tables
        if name not in NOT_KEPT
        for row in db.changed_since(name, since)
    ]


def dump_deletions(db: Registry, since: int = 0) -> dict[str, list[list[Any]]]:
    found = {
        name: [
            [gone.generation, gone.created, gone.ref] for gone in listed if gone.generation > since
        ]
        for name, listed in db.deletions.items()
        if name not in NOT_KEPT
    }
    return {name: listed for name, listed in found.items() if listed}


def load_registry(db: Registry, dumped: dict[str, Any], gap: int = RESUME_GAP) -> None:
    """Fill an empty registry. Inverse sets come as they were saved."""
    db.generation = dumped["generation"] + gap
    rows = []
    for cls, ref, created, modified, saved in dumped["rows"]:
        spec = db.classes[cls]
        fields = spec.blank()
        for name, value in saved.items():
            if name in spec.fields:
                fields[name] = spec.fields[name].type.retype(value)
        for name, value in TRANSIENT.items():
            if name in fields:
                fields[name] = dict(value)
        rows.append(Row(cls, ref, fields, created, modified))
    db.restore(rows)
    for cls, listed in dumped["deletions"].items():
        db.deletions[cls] = [Deletion(*gone) for gone in listed[-DELETIONS_HIGH:]]
