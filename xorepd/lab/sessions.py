"""Who is logged in to a pool, and for how long.

Source: xapi: ocaml/xapi/xapi_session.ml, session_check.ml, db_gc_util.ml.
"""

from datetime import timedelta
from typing import Any

from xorepd.lab.clock import Clock, parse_time
from xorepd.lab.failures import NULL, ApiError
from xorepd.lab.registry import Registry

LOGIN_DELAY_S = 5.0
"""What a wrong password costs."""
LAST_ACTIVE_STEP = timedelta(seconds=600)
INACTIVE_KEPT = timedelta(seconds=86400)
MAX_ANONYMOUS = 400
MAX_PER_ORIGINATOR = 500


class Sessions:
    """The sessions of one pool. They are lost when the lab stops, as at a toolstack restart."""

    def __init__(self, db: Registry, clock: Clock, users: dict[str, str]) -> None:
        self._db = db
        self._clock = clock
        self._users = users

    async def login(self, host: str, uname: str, password: str, originator: str) -> str:
        """Return a new session, or fail after a deliberate delay."""
        if self._users.get(uname) != password:
            await self._clock.nap(LOGIN_DELAY_S)
            raise ApiError("SESSION_AUTHENTICATION_FAILED", uname, "Authentication failure")
        ref = self._open(host, uname, originator)
        self._limit(originator, keep=ref)
        return ref

    def open_internal(self, host: str) -> str:
        """Return a session of the toolstack itself."""
        return self._open(host, "root", "", pool=True)

    def check(self, ref: str) -> None:
        """Raise SESSION_INVALID for a dead session; note that a live one is in use."""
        if not self._db.exists("session", ref):
            raise ApiError("SESSION_INVALID", ref)
        now = self._clock.time()
        if now - parse_time(self._db.get("session", ref, "last_active")) > LAST_ACTIVE_STEP:
            self._db.set("session", ref, last_active=self._clock.now())

    def logout(self, ref: str) -> None:
        if self._db.exists("session", ref):
            self._db.destroy("session", ref)

    def sweep(self) -> None:
        """Remove what nobody used for a day."""
        now = self._clock.time()
        for ref in self._db.refs("session"):
            if now - parse_time(self._db.get("session", ref, "last_active")) > INACTIVE_KEPT:
                self._db.destroy("session", ref)

    def _open(self, host: str, uname: str, originator: str, **fields: Any) -> str:
        now = self._clock.now()
        return self._db.create(
            "session",
            this_host=host,
            auth_user_name=uname,
            originator=originator,
            is_local_superuser=True,
            last_active=now,
            validation_time=now,
            parent=NULL,
            **fields,
        )

    def _limit(self, originator: str, keep: str) -> None:
        limit = MAX_PER_ORIGINATOR if originator else MAX_ANONYMOUS
        group = list(self._db.select("session", originator=originator, pool=False))
        victims = sorted(
            (ref for ref in group if ref != keep),
            key=lambda ref: str(self._db.get("session", ref, "last_active")),
        )
        for ref in victims[: max(0, len(group) - limit)]:
            self._db.destroy("session", ref)
