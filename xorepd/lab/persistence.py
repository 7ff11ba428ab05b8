"""A lab on disk: one JSON file beside the directories of the SRs.

The file is replaced as a whole shortly after each change. A lab that was killed resumes with what
it held moments before; files of disks that its records do not know are then found by a scan, and
records without files go. Sessions and tasks are never kept: toolstacks lose them too.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from xorepd.lab.datamodel import CLASSES
from xorepd.lab.registry import Deletion, Registry, Row

FORMAT = 1
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


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the file atomically."""
    scratch = path.with_suffix(".new")
    scratch.touch(mode=0o600)
    scratch.write_text(json.dumps({"format": FORMAT, **state}))
    os.replace(scratch, path)


def read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
    except ValueError as error:
        raise StateError(f"{path} cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise StateError(f"{path} is not a lab's state of format {FORMAT}")
    return state


def dump_registry(db: Registry) -> dict[str, Any]:
    rows = [
        [row.cls, row.ref, row.created, row.modified, row.fields]
        for name, table in db.tables.items()
        if name not in NOT_KEPT
        for row in table.values()
    ]
    deletions = {
        name: [[gone.generation, gone.created, gone.ref] for gone in listed]
        for name, listed in db.deletions.items()
        if listed and name not in NOT_KEPT
    }
    return {"generation": db.generation, "rows": rows, "deletions": deletions}


def load_registry(db: Registry, dumped: dict[str, Any]) -> None:
    """Fill an empty registry. Inverse sets come as they were saved."""
    db.generation = dumped["generation"]
    for cls, ref, created, modified, saved in dumped["rows"]:
        spec = CLASSES[cls]
        fields = spec.blank()
        for name, value in saved.items():
            if name in spec.fields:
                fields[name] = spec.fields[name].type.retype(value)
        for name, value in TRANSIENT.items():
            if name in fields:
                fields[name] = dict(value)
        db.tables[cls][ref] = Row(cls, ref, fields, created, modified)
    for cls, listed in dumped["deletions"].items():
        db.deletions[cls] = [Deletion(*gone) for gone in listed]
