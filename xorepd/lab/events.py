"""`event.from`: what changed since a token.

Source: xapi: ocaml/xapi/xapi_event.ml.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

from xorepd.lab.datamodel import OTHER_CLASSES
from xorepd.lab.failures import ApiError
from xorepd.lab.registry import Registry
from xorepd.lab.schema import Int32

BATCH_S = 0.05
"""Answers wait this long for more, so that a burst of changes is one answer."""
SILENT = "session"
"""The class that makes no events."""

_TOKEN = re.compile(r"(\d{1,20}),(-?\d{1,20})$")


@dataclass(frozen=True, slots=True)
class Subscription:
    """Which objects a caller wants to hear of; class names in lower case."""

    everything: bool
    classes: frozenset[str]
    objects: frozenset[tuple[str, str]]

    @property
    def only_tasks(self) -> bool:
        classes = self.classes | {cls for cls, _ in self.objects}
        return not self.everything and classes == {"task"}

    def wants(self, cls: str, ref: str) -> bool:
        return self.everything or cls in self.classes or (cls, ref) in self.objects

    def wants_class(self, cls: str) -> bool:
        return self.everything or cls in self.classes or any(c == cls for c, _ in self.objects)


def parse_subscription(names: list[str]) -> Subscription:
    classes: set[str] = set()
    objects: set[tuple[str, str]] = set()
    for name in names:
        match name.split("/"):
            case [cls]:
                classes.add(cls.lower())
            case [cls, ref]:
                objects.add((cls.lower(), ref))
            case _:
                raise ApiError("EVENT_SUBSCRIPTION_PARSE_FAILURE", name)
    return Subscription("*" in classes, frozenset(classes), frozenset(objects))


def parse_token(token: str) -> int:
    """Return the generation of a token; the empty one is the beginning."""
    if token == "":
        return 0
    found = _TOKEN.match(token)
    if found is None:
        raise ApiError("EVENT_FROM_TOKEN_PARSE_FAILURE", token)
    return int(found[1])


def make_token(generation: int) -> str:
    """Return a token. Its second half counts messages; here they share the first count."""
    return f"{generation:020d},{generation:020d}"


def collect(db: Registry, wanted: Subscription, since: int) -> list[dict[str, Any]]:
    """Return one event for each object that changed: adds, then mods, then dels."""
    groups: dict[str, list[dict[str, Any]]] = {"add": [], "mod": [], "del": []}

    def note(operation: str, cls: str, ref: str, generation: int) -> dict[str, Any]:
        event: dict[str, Any] = {
            "id": generation,
            "timestamp": "0.0",
            "class": cls,
            "operation": operation,
            "ref": ref,
        }
        groups[operation].append(event)
        return event

    for name, table in db.tables.items():
        cls = name.lower()
        if name == SILENT or not wanted.wants_class(cls):
            continue
        for row in table.values():
            if row.modified > since and wanted.wants(cls, row.ref):
                operation = "add" if row.created > since else "mod"
                note(operation, cls, row.ref, row.modified)["snapshot"] = dict(row.fields)
        for gone in db.deletions[name]:
            if gone.generation > since >= gone.created and wanted.wants(cls, gone.ref):
                note("del", cls, gone.ref, gone.generation)
    return [*groups["add"], *groups["mod"], *groups["del"]]


def reference_counts(db: Registry) -> dict[str, Int32]:
    counts = {name.lower(): Int32(0) for name in OTHER_CLASSES}
    counts.update((name.lower(), Int32(len(table))) for name, table in db.tables.items())
    return counts


async def wait_for_events(
    db: Registry,
    wanted: Subscription,
    token: str,
    timeout: float,
    session: str,
    batch_s: float = BATCH_S,
) -> dict[str, Any]:
    """Return the answer of `event.from`; an empty list after `timeout` seconds.

    Raises:
        ApiError: SESSION_INVALID as soon as the session dies.
    """
    since = parse_token(token)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        if not db.exists("session", session):
            raise ApiError("SESSION_INVALID", session)
        found = collect(db, wanted, since)
        if found or loop.time() >= deadline:
            break
        # Nothing of interest happened up to here; move on, or dels fall out of the bounded memory.
        since = max(since, db.generation)
        try:
            async with asyncio.timeout_at(deadline):
                await db.changed()
                if not wanted.only_tasks:
                    await asyncio.sleep(batch_s)
        except TimeoutError:
            continue
    return {
        "events": found,
        "valid_ref_counts": reference_counts(db),
        "token": make_token(db.generation),
    }
