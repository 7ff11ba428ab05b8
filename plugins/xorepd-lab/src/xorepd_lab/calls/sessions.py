"""Who is logged in to a pool, for how long, and what they may do.

Root is known to the pool itself. Everybody else comes from a directory service: a `subject` with
roles, whose sessions carry the permissions of these roles.

Source: xapi: ocaml/xapi/xapi_session.ml, session_check.ml, rbac.ml, db_gc_util.ml,
xapi_local_session.ml.
"""

from collections import defaultdict
from datetime import timedelta
from typing import Any

from xorepd_lab.calls.signatures import method_names
from xorepd_lab.calls.tasks import Tasks
from xorepd_lab.model.clock import Clock, parse_time
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.registry import Registry
from xorepd_lab.model.roles import denied, granted, lowest_role, permission, role_name

ROOT = "root"
LOGIN_DELAY_S = 5.0
"""What a failed login costs."""
LAST_ACTIVE_STEP = timedelta(seconds=600)
INACTIVE_KEPT = timedelta(seconds=86400)
MAX_ANONYMOUS = 400
"""Sessions of root without an originator; also those of the toolstack itself."""
MAX_PER_GROUP = 500
"""Sessions of root with one originator, or of one other user."""


class Sessions:
    """The sessions of one pool. They are lost when the lab stops, as at a toolstack restart."""

    def __init__(self, db: Registry, clock: Clock, tasks: Tasks, passwords: dict[str, str]) -> None:
        self._db = db
        self._clock = clock
        self._tasks = tasks
        self.passwords = passwords
        """By user: root, and whom the directory service knows."""
        self._local: dict[str, str] = {}
        """Sessions that live in one member's memory, by the member's reference."""
        self._permissions: dict[str, frozenset[str]] = {}

    # -- in and out -----------------------------------------------------------------------------

    async def login(self, host: str, uname: str, password: str, originator: str) -> str:
        """Return a new session, or fail after a deliberate delay.

        Raises:
            ApiError: SESSION_AUTHENTICATION_FAILED for a wrong password,
                SESSION_AUTHORIZATION_FAILED for a user who is no subject of the pool,
                RBAC_PERMISSION_DENIED for a subject without a role.
        """
        try:
            self._authenticate(uname, password)
            if uname == ROOT:
                return self._open(host, uname, originator, is_local_superuser=True)
            return self._open_subject(host, uname, originator)
        except ApiError:
            await self._clock.nap(LOGIN_DELAY_S)
            raise

    def _authenticate(self, uname: str, password: str, only_root: bool = False) -> None:
        if self.passwords.get(uname) != password or (only_root and uname != ROOT):
            text = "Authentication failure"
            raise ApiError("SESSION_AUTHENTICATION_FAILED", uname, text)

    def _open_subject(self, host: str, uname: str, originator: str) -> str:
        db = self._db
        found = [
            ref
            for ref in db.refs("subject")
            if db.get("subject", ref, "other_config").get("subject-name") == uname
        ]
        if not found:
            text = f"Subject {uname} has no access rights in this pool"
            raise ApiError("SESSION_AUTHORIZATION_FAILED", uname, text)
        subject = found[0]
        identifier = db.get("subject", subject, "subject_identifier")
        permissions = self.of_subject(subject)
        if not permissions:
            text = f"Subject {uname} (identifier {identifier}) has no roles in this pool"
            raise ApiError("RBAC_PERMISSION_DENIED", "session.login_with_password", text)
        return self._open(
            host,
            uname,
            originator,
            auth_user_sid=identifier,
            subject=subject,
            rbac_permissions=permissions,
        )

    def of_subject(self, subject: str) -> list[str]:
        """Return the names of a subject's roles, and of all that they permit."""
        names = method_names(self._db.release)
        found: set[str] = set()
        for role in map(role_name, self._db.get("subject", subject, "roles")):
            if role is not None:
                found |= {role, *granted(role, names)}
        return sorted(found)

    def open_internal(self, host: str) -> str:
        """Return a session of the toolstack itself."""
        return self._open(host, ROOT, "xapi", is_local_superuser=True, pool=True)

    def open_like(self, ref: str, host: str) -> str:
        """Return another session of the user of one."""
        session = self._db.row("session", ref).fields
        kept = ("auth_user_sid", "subject", "rbac_permissions", "is_local_superuser", "pool")
        fields = {name: session[name] for name in kept}
        return self._open(host, session["auth_user_name"], "xapi", **fields)

    async def open_local(self, host: str, uname: str, password: str) -> str:
        """Return a session that one member knows, with its master or without."""
        try:
            self._authenticate(uname, password, only_root=True)
        except ApiError:
            await self._clock.nap(LOGIN_DELAY_S)
            raise
        ref = self._db.new_ref()
        self._local[ref] = host
        return ref

    def is_local(self, ref: str, host: str) -> bool:
        return self._local.get(ref) == host

    def close_local(self, ref: str) -> None:
        self._local.pop(ref, None)

    def logout(self, ref: str) -> None:
        self._permissions.pop(ref, None)
        if self._db.exists("session", ref):
            self._db.destroy("session", ref)

    def logout_subject(self, identifier: str, keep: str) -> None:
        """End the sessions of a subject, but not the one that asks for it."""
        for ref in list(self._db.select("session", auth_user_sid=identifier)):
            if ref != keep and not self._db.get("session", ref, "is_local_superuser"):
                self.logout(ref)

    # -- what they are good for -------------------------------------------------------------------

    def check(self, ref: str) -> None:
        """Raise SESSION_INVALID for a dead session; note that a live one is in use."""
        if not self._db.exists("session", ref):
            raise ApiError("SESSION_INVALID", ref)
        now = self._clock.time()
        if now - parse_time(self._db.get("session", ref, "last_active")) > LAST_ACTIVE_STEP:
            self._db.set("session", ref, last_active=self._clock.now())

    def authorise(self, ref: str, needed: str, lowest: str) -> None:
        """Raise RBAC_PERMISSION_DENIED unless a session has a permission; `lowest` is for the text.

        Root, the toolstack itself and members' own sessions have them all.
        """
        if ref not in self._local and not self._has(ref, needed):
            raise denied(needed, lowest)

    def allows(self, ref: str, method: str) -> bool:
        """Say whether a live session may call a method: `VDI.get_nbd_info`."""
        return ref in self._local or self._has(ref, permission(method))

    def demand(self, ref: str, method: str) -> None:
        """Raise RBAC_PERMISSION_DENIED unless a session may call a method."""
        self.authorise(ref, permission(method), lowest_role(method))

    def same_user(self, ref: str, other: str) -> bool:
        """Say whether two sessions are the same user's; a dead one is nobody's."""
        db = self._db
        return (
            db.exists("session", ref)
            and db.exists("session", other)
            and db.get("session", ref, "auth_user_sid") == db.get("session", other, "auth_user_sid")
        )

    def _has(self, ref: str, needed: str) -> bool:
        session = self._db.row("session", ref).fields
        if session["is_local_superuser"]:
            return True
        if ref not in self._permissions:
            self._permissions[ref] = frozenset(session["rbac_permissions"])
        return needed in self._permissions[ref]

    # -- garbage --------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Do one pass of XAPI's garbage collection: what is old, and what is too much."""
        groups: dict[tuple[str, str], list[str]] = defaultdict(list)
        for ref in self._db.refs("session"):
            groups[self._group(ref)].append(ref)
        for (_, name), refs in groups.items():
            self._thin_out(refs, MAX_PER_GROUP if name else MAX_ANONYMOUS)
        for gone in [ref for ref in self._permissions if not self._db.exists("session", ref)]:
            del self._permissions[gone]

    def _group(self, ref: str) -> tuple[str, str]:
        """Return kind and name of those among whom a session may be too much."""
        session = self._db.row("session", ref).fields
        if session["pool"]:
            return "toolstack", ""
        if session["auth_user_name"] not in ("", ROOT):
            return "user", session["auth_user_name"]
        return "originator", session["originator"]

    def _thin_out(self, refs: list[str], limit: int) -> None:
        idle = [ref for ref in refs if not any(map(self._is_busy, self._tasks.of_session(ref)))]
        idle.sort(key=lambda ref: str(self._db.get("session", ref, "last_active")), reverse=True)
        now = self._clock.time()
        for place, ref in enumerate(idle):
            age = now - parse_time(self._db.get("session", ref, "last_active"))
            if place >= limit or age >= INACTIVE_KEPT:
                self.logout(ref)

    def _is_busy(self, task: str) -> bool:
        return self._tasks.is_pending(task)

    def _open(self, host: str, uname: str, originator: str, **fields: Any) -> str:
        now = self._clock.now()
        return self._db.create(
            "session",
            this_host=host,
            auth_user_name=uname,
            originator=originator,
            last_active=now,
            validation_time=now,
            parent=NULL,
            **fields,
        )
