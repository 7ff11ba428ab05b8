"""`event.register` and `event.next`, which clients used before there was `event.from`.

Every change is an event of its own, in order, from the moment somebody registered. They wait in one
queue for all sessions; what does not fit is dropped, and who had not read it hears EVENTS_LOST.

Source: xapi: ocaml/xapi/xapi_event.ml (module Next).
"""

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from xorepd_lab.model.events import SILENT, Subscription, parse_subscription
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.registry import Registry, Row

MOST_BYTES = 10_000_000
"""Of the queue, counted as JSON."""
OPERATIONS = {"created": "add", "changed": "mod", "destroyed": "del"}


@dataclass
class _Listener:
    read: int
    """Number of the first event that the session has not got."""
    names: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> Subscription:
        return parse_subscription(self.names)


class OldEvents:
    """The queue of one pool and who reads it."""

    def __init__(self, db: Registry) -> None:
        self._db = db
        self._queue: deque[tuple[int, int, dict[str, Any]]] = deque()
        self._bytes = 0
        self._listeners: dict[str, _Listener] = {}
        self.next_number = 0
        self._dropped = -1
        db.watcher = self._note

    def register(self, session: str, names: list[str]) -> None:
        listener = self._listeners.setdefault(session, _Listener(self.next_number))
        listener.names = [*names, *listener.names]

    def unregister(self, session: str, names: list[str]) -> None:
        listener = self._listeners.setdefault(session, _Listener(self.next_number))
        listener.names = [name for name in listener.names if name not in names]

    async def next(self, session: str, batch_s: float) -> list[dict[str, Any]]:
        """Wait for events that a session registered for, and return them.

        Raises:
            ApiError: SESSION_NOT_REGISTERED, EVENTS_LOST, SESSION_INVALID when it dies meanwhile.
        """
        listener = self._listeners.get(session)
        if listener is None:
            raise ApiError("SESSION_NOT_REGISTERED", session)
        while True:
            await asyncio.sleep(batch_s)
            if not self._db.exists("session", session):
                self._listeners.pop(session, None)
                raise ApiError("SESSION_INVALID", session)
            first, listener.read = listener.read, self.next_number
            if self._dropped >= first:
                raise ApiError("EVENTS_LOST")
            wanted = listener.wanted
            found = [
                event
                for number, _, event in self._queue
                if number >= first and wanted.wants(event["class"], event["ref"])
            ]
            if found:
                return found
            await self._db.changed()

    def _note(self, what: str, row: Row) -> None:
        if not self._listeners or row.cls in SILENT:
            return
        cls = row.cls.lower()
        if not any(each.wanted.wants(cls, row.ref) for each in self._listeners.values()):
            return
        event = {
            "id": str(self.next_number),
            "timestamp": "0.0",
            "class": cls,
            "operation": OPERATIONS[what],
            "ref": row.ref,
            "snapshot": dict(row.fields),
        }
        size = len(json.dumps(event))
        self._queue.append((self.next_number, size, event))
        self._bytes += size
        self.next_number += 1
        while self._bytes > MOST_BYTES:
            number, gone, _ = self._queue.popleft()
            self._bytes -= gone
            self._dropped = number
        for session in [s for s in self._listeners if not self._db.exists("session", s)]:
            del self._listeners[session]
