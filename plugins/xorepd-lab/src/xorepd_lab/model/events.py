"""`event.from`: what changed since a token.

    token = "<generation of the database>,<generation of messages>"

Answers wait a moment for more, so that a burst of changes is one answer; those about tasks alone
begin without that wait.

Source: xapi: ocaml/xapi/xapi_event.ml, xapi_message.ml, ocaml/xapi-types/event_types.ml.
"""

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

from xorepd_lab.model.datamodel import NOT_IN_DATABASE
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.schema import Int32, parse_integer

BATCH_S = 0.05
SILENT = {"session", "user"}
"""The classes that make no events."""
LONGEST_WAIT_S = 86400.0
"""What a timeout means that is negative, no number, or too big to be counted in nanoseconds."""
_MOST_SECONDS = 2.0**53 / 1e9


@dataclass(frozen=True, slots=True)
class Subscription:
    """Which objects a caller wants to hear of; class names in lower case."""

    everything: bool
    classes: frozenset[str]
    objects: frozenset[tuple[str, str]]

    @property
    def only_tasks(self) -> bool:
        classes = self.classes | {cls for cls, _ in self.objects}
        return not self.everything and classes <= {"task"}

    def wants(self, cls: str, ref: str) -> bool:
        return self.everything or cls in self.classes or (cls, ref) in self.objects

    def wants_class(self, cls: str) -> bool:
        return self.everything or cls in self.classes or any(c == cls for c, _ in self.objects)


def parse_subscription(names: list[str]) -> Subscription:
    """Read what a caller subscribes to: `*`, `vm`, `vm/OpaqueRef:…`. Nothing is refused.

    EVENT_SUBSCRIPTION_PARSE_FAILURE exists, but no text leads to it: all after the first slash is
    taken for a reference.
    """
    classes: set[str] = set()
    objects: set[tuple[str, str]] = set()
    for name in names:
        cls, slash, ref = name.partition("/")
        if slash:
            objects.add((cls.lower(), ref))
        elif name != "*":
            classes.add(cls.lower())
    return Subscription("*" in names, frozenset(classes), frozenset(objects))


@dataclass(frozen=True, slots=True)
class Token:
    """How far a caller has heard. Messages are counted by themselves."""

    database: int = 0
    messages: int = 0

    def __str__(self) -> str:
        return f"{self.database:020d},{self.messages:020d}"


def parse_token(text: str) -> Token:
    """Read a token; the empty one is the beginning. Raises EVENT_FROM_TOKEN_PARSE_FAILURE."""
    if text == "":
        return Token()
    numbers = [parse_integer(part) for part in text.split(",")]
    match numbers:
        case [int(database), int(messages)]:
            return Token(database, messages)
        case _:
            raise ApiError("EVENT_FROM_TOKEN_PARSE_FAILURE", text)


def parse_timeout(seconds: float) -> float:
    if math.isnan(seconds) or not 0 <= seconds < _MOST_SECONDS:
        return LONGEST_WAIT_S
    return seconds


@dataclass(slots=True)
class _Found:
    """Events by what happened, and how far they reach."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    adds: list[dict[str, Any]] = field(default_factory=list)
    mods: list[dict[str, Any]] = field(default_factory=list)
    dels: list[dict[str, Any]] = field(default_factory=list)
    last: int = 0

    @property
    def all(self) -> list[dict[str, Any]]:
        return [*self.messages, *self.adds, *self.mods, *self.dels]


def _event(
    operation: str, cls: str, ref: str, number: int, snapshot: dict[str, Any] | None = None
) -> dict[str, Any]:
    event: dict[str, Any] = {
        "id": str(number),
        "timestamp": "0.0",
        "class": cls,
        "operation": operation,
        "ref": ref,
    }
    if snapshot is not None:
        event["snapshot"] = snapshot
    return event


def collect(db: Registry, wanted: Subscription, since: Token) -> tuple[list[dict[str, Any]], Token]:
    """Return one event for each object that changed, and the token that comes after them.

    Order: messages, adds, mods, dels. The token goes no further than the last change that was
    looked at, so that it does not move while others change.
    """
    found = _Found(last=since.database)
    for name in db.tables:
        cls = name.lower()
        if name in SILENT or name in NOT_IN_DATABASE or not wanted.wants_class(cls):
            continue
        for row in db.changed_since(name, since.database):
            if not wanted.wants(cls, row.ref):
                continue
            found.last = max(found.last, row.modified)
            snapshot = dict(row.fields)
            if row.created > since.database:
                found.adds.append(_event("add", cls, row.ref, row.created, snapshot))
            else:
                found.mods.append(_event("mod", cls, row.ref, row.modified, snapshot))
        for gone in db.deletions[name]:
            if gone.generation > since.database and wanted.wants(cls, gone.ref):
                found.last = max(found.last, gone.generation)
                if gone.created <= since.database:
                    found.dels.append(_event("del", cls, gone.ref, gone.generation))
    messages = 0
    if wanted.wants_class("message"):
        messages = _collect_messages(db, wanted, since.messages, found)
    return found.all, Token(found.last, messages)


def _collect_messages(db: Registry, wanted: Subscription, since: int, found: _Found) -> int:
    """Add events of messages, which are no rows of the database; return how far they reach."""
    last = since
    for row in db.changed_since("message", since):
        last = max(last, row.modified)
        if wanted.wants("message", row.ref):
            found.messages.append(_event("add", "message", row.ref, 0, dict(row.fields)))
    for gone in db.deletions["message"]:
        if gone.generation > since:
            last = max(last, gone.generation)
            if wanted.wants("message", gone.ref):
                found.messages.append(_event("del", "message", gone.ref, 0))
    return last


def reference_counts(db: Registry) -> dict[str, Int32]:
    """Return how many objects there are, by class in lower case."""
    return {
        name.lower(): Int32(len(table))
        for name, table in db.tables.items()
        if name not in NOT_IN_DATABASE
    }


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
    deadline = loop.time() + parse_timeout(timeout)
    if not wanted.only_tasks:
        await asyncio.sleep(batch_s)
    while True:
        if not db.exists("session", session):
            raise ApiError("SESSION_INVALID", session)
        found, after = collect(db, wanted, since)
        if found or loop.time() >= deadline:
            break
        try:
            async with asyncio.timeout_at(deadline):
                await db.changed()
                await asyncio.sleep(batch_s)
        except TimeoutError:
            continue
    return {
        "events": found,
        "valid_ref_counts": reference_counts(db),
        "token": str(after),
    }
