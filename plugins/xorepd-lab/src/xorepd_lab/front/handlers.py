"""What the disk handlers have in common: who may, which VDI, which host, which task.

Source: xapi: ocaml/xapi/xapi_http.ml, importexport.ml.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote

from xorepd_lab.calls.call import Pool
from xorepd_lab.calls.recorder import OutsideCall
from xorepd_lab.faults.faults import Fault
from xorepd_lab.model.failures import NULL, ApiError
from xorepd_lab.model.http_actions import HttpAction
from xorepd_lab.rules.storage_rules import hosts_of
from xorepd_lab.wire.http import Connection, Request

FORMATS = {"raw": "application/octet-stream", "vhd": "application/vhd"}
IO_ERROR = ApiError("VDI_IO_ERROR", "Device I/O errors")


class Unauthorised(Exception):
    """No or bad credentials: 401."""


class Forbidden(Exception):
    """The session's role does not permit this: 403."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request to an HTTP handler, and its answer."""

    pool: Pool
    host: str
    request: Request
    action: HttpAction
    connection: Connection
    record: OutsideCall
    fault: Fault | None

    @property
    def format(self) -> str:
        return self.request.parameter("format") or "raw"


def credentials(exchange: Exchange) -> AbstractAsyncContextManager[str]:
    """Give the session of a exchange, see `admitted`."""
    return admitted(exchange.pool, exchange.host, exchange.request, exchange.action)


@asynccontextmanager
async def admitted(
    pool: Pool, host: str, request: Request, action: HttpAction
) -> AsyncIterator[str]:
    """Give the session of a request; one of our own for a user and password, while it lasts.

    Raises:
        Unauthorised: There is none, or it is not good.
        Forbidden: It is good for other things.
    """
    sessions = pool.sessions
    session = request.cookies.get("session_id", request.query.get("session_id"))
    if session is not None:
        try:
            sessions.check(session)
        except ApiError as error:
            raise Unauthorised from error
        _authorise(pool, request, action, session)
        yield session
        return
    given = request.basic_credentials
    if given is None:
        raise Unauthorised
    try:
        session = await sessions.login(host, *given, originator="HTTP using Basic auth")
    except ApiError as error:
        raise Unauthorised from error
    try:
        _authorise(pool, request, action, session)
        yield session
    finally:
        sessions.logout(session)


def _authorise(pool: Pool, request: Request, action: HttpAction, session: str) -> None:
    """Raise Forbidden, and fail the client's task, unless the session's role may do this."""
    try:
        pool.sessions.authorise(session, f"http/{action.name}", action.role)
    except ApiError as error:
        task = request.parameter("task_id")
        if task is not None:
            pool.tasks.fail(task, error)
        raise Forbidden from error


def find(pool: Pool, cls: str, name: str) -> str:
    """Return an object by reference or UUID; UUID_INVALID when it is neither."""
    return name if pool.db.exists(cls, name) else pool.db.by_uuid(cls, name)


def other_host(exchange: Exchange, *srs: str) -> str | None:
    """Return where to send the client when this host does not see the SRs, else None.

    Raises:
        ApiError: NO_HOSTS_AVAILABLE, also for an SR that is not there.
    """
    db = exchange.pool.db
    hosts = [host for host in db.refs("host") if all(host in hosts_of(db, sr) for sr in srs)]
    if exchange.host in hosts:
        return None
    if not hosts:
        raise ApiError("NO_HOSTS_AVAILABLE")
    address = exchange.pool.address(exchange.pool.db.rng.choice(hosts))
    # Real hosts listen on 443 and the Location has no port; here it needs one to lead anywhere.
    request = exchange.request
    query = f"?{request.raw_query}" if request.raw_query else ""
    return f"https://{address}:{exchange.pool.https_port}{quote(request.path)}{query}"


@asynccontextmanager
async def task_of(exchange: Exchange, label: str) -> AsyncIterator[str]:
    """Give the task of a request: the client's, or one of our own that goes at the end."""
    tasks = exchange.pool.tasks
    given = exchange.request.parameter("task_id")
    if given is not None and given != NULL:
        exchange.pool.db.row("task", given)
        if exchange.fault is not None:
            exchange.fault.hold_task = lambda: tasks.hold(given)
        yield given
        return
    with tasks.temporary(label) as task:
        yield task
