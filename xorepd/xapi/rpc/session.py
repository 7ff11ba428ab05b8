"""One login to one pool, shared by a few threads; the one module that speaks the XenAPI SDK.

The SDK blocks, so each call runs in a thread of a small pool. A `XenAPI.Session` is one HTTP
connection and not thread-safe: every thread keeps its own, all with the same session reference.

Handled here once, for every caller:

- `HOST_IS_SLAVE`: log in at the master that the member named, keeping scheme and port of the
  configured address, because XAPI names a bare address.
- `SESSION_INVALID`: log in again. XAPI checks the session before it does anything, so repeating
  the call is safe, as it is after `HOST_IS_SLAVE`.
- no answer: only getters are repeated, and what may be done twice to a task of ours; after
  anything else nobody knows whether it was executed.

The SDK's own silent login is not used: it would put the password into every thread and would not
follow a new master.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import re
import ssl
import threading
import time
import xmlrpc.client
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import structlog
import XenAPI

from xorepd.config.models import PoolSettings
from xorepd.errors import (
    CertificateRefused,
    ConfigError,
    NotMaster,
    PasswordUnusable,
    SessionLost,
    XapiError,
    XapiUnreachable,
)
from xorepd.tidying import settled
from xorepd.xapi.rpc import answers, tls
from xorepd.xapi.rpc.explained import Names, nameless
from xorepd.xapi.rpc.failures import redact, translate
from xorepd.xapi.rpc.shapes import check_shape, most_of

log = structlog.get_logger(__name__)

Guard = Callable[[], None]
"""Asked from any thread right before a change is sent; raises to forbid it."""

ORIGINATOR = "xorepd"
"""Sessions are limited per originator: with one of our own we never push out somebody else's."""

CALL_TIMEOUT_S = 120.0
"""Longest wait for the answer of one synchronous call. What takes longer runs as a task."""

SETTLE_S = 10.0
"""How long a cancelled call is given to end: what is on its way may still be executed, and who
tidies up next must see what came of it."""

_LOGOUT_S = 5.0
_ABORT_EVERY_S = 0.1

_LOGIN_HOPS = 4
"""Addresses tried for one login: a member, the master it names, and members known from before."""


_MOST_TIMES = 256
"""Kept at most: nobody asks for those of a session that is used for nothing else."""

_KEEP_S = 5.0
"""How long an idle connection is trusted: XAPI waits 10 s for the next request's header."""


_REPEATABLE = frozenset({"task.cancel", "task.destroy"})
"""Changes that do no harm when they are made twice: the second finds nothing to do."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")

_OWNER_HEADER = "x-http-other-config-xorepd"
"""XAPI writes its value into `other_config` of the call's task, as `records.TASK_OWNER`."""


class _Transport(xmlrpc.client.Transport):
    """XML-RPC over one connection, bounded, verified, and breakable from another thread."""

    accept_gzip_encoding = False

    def __init__(
        self, *, secure: bool, context: ssl.SSLContext, fingerprints: Sequence[str]
    ) -> None:
        super().__init__()
        self._secure, self._context, self._fingerprints = secure, context, fingerprints
        self._used_at = 0.0
        self.timeout, self.most = CALL_TIMEOUT_S, answers.LARGEST
        """Seconds and bytes for the next call."""
        self.user_agent = ORIGINATOR
        self.owner = ""
        """Put into the task of the next call."""
        self.guard: Guard | None = None
        """Asked when the next call is about to be sent."""

    def make_connection(self, host: Any) -> tls.BreakableConnection:
        kept_host, kept = self._connection
        if isinstance(kept, tls.BreakableConnection) and host == kept_host:
            return kept
        connection: tls.BreakableConnection
        if self._secure:
            connection = tls.VerifiedConnection(
                host, context=self._context, fingerprints=self._fingerprints
            )
        else:
            connection = tls.BreakableConnection(host)
        self._connection = host, connection
        return connection

    def send_headers(
        self, connection: http.client.HTTPConnection, headers: list[tuple[str, str]]
    ) -> None:
        owner = [(_OWNER_HEADER, self.owner)] if self.owner else []
        super().send_headers(connection, headers + owner)

    def send_content(self, connection: http.client.HTTPConnection, request_body: Any) -> None:
        if self.guard is not None:
            if connection.sock is None:
                connection.connect()  # it takes its time, so the guard is asked after it
            self.guard()
        super().send_content(connection, request_body)

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:
        """Send a request once.

        The standard library's way repeats it when a kept connection turns out to be closed, and
        so may create a VM twice. Here a connection that the server may have closed is not used.
        """
        kept = self._connection[1]
        stale = isinstance(kept, tls.BreakableConnection) and kept.is_stale
        if stale or time.monotonic() - self._used_at > _KEEP_S:
            self.close()
        try:
            return self._exchange(host, handler, request_body)
        except BaseException:
            self.close()  # what may still come belongs to no other call
            raise
        finally:
            self._used_at = time.monotonic()

    def _exchange(self, host: Any, handler: str, body: Any) -> tuple[dict[str, Any]]:
        connection: tls.BreakableConnection = self.make_connection(host)
        connection.bounds = answers.Bounds(self.timeout, self.most)
        self.send_request(host, handler, body, False)
        with connection.getresponse() as response:
            if response.status != http.client.OK:
                raise xmlrpc.client.ProtocolError(handler, response.status, "", {})
            return (answers.read_answer(response),)

    def abort(self) -> None:
        """End a call that waits for its answer, or for its connection, in another thread."""
        connection = self._connection[1]
        if isinstance(connection, tls.BreakableConnection):
            connection.break_off()


class Session:
    """Calls to one pool's XAPI, from asyncio.

    It logs in at the first call; `end` and then `close` it.
    """

    def __init__(
        self,
        settings: PoolSettings,
        read_password: Callable[[], str],
        names: Names = nameless,
    ) -> None:
        self.pool = settings.name
        self._names = names
        self._settings = settings
        self._read_password = read_password
        self.fingerprints = settings.fingerprint
        self.ssl_context = tls.client_context(settings.ca_file, self.fingerprints)
        self.url = settings.url.rstrip("/")
        """Scheme, address and port of the pool master, as we reach it."""
        self._members: list[str] = []
        self.session_ref = ""
        """The session reference: a credential, never to be logged."""
        self._generation = 0
        self._login_lock = threading.Lock()
        self._threads = threading.local()
        self._transports: set[_Transport] = set()
        self._executor = ThreadPoolExecutor(settings.connections + 1, f"xapi-{settings.name}")
        self._closed = False
        self._quick: deque[float] = deque(maxlen=_MOST_TIMES)

    # -- hosts and times ---------------------------------------------------------------------

    def url_of(self, address: str) -> str:
        """Return how to reach another host of the pool: same scheme and port, its address.

        Raises:
            ValueError: a host cannot have that address.
        """
        if not is_address(address):
            raise ValueError(f"{address[:80]!r} is no address")
        parts = urlsplit(self.url)
        host = f"[{address}]" if ":" in address else address
        port = f":{parts.port}" if parts.port is not None else ""
        return urlunsplit((parts.scheme, host + port, "", "", ""))

    def remember_members(self, addresses: Iterable[str]) -> None:
        """Replace the list of hosts to ask for the master when the present one is silent."""
        self._members = [address for address in addresses if is_address(address)]

    def take_times(self) -> list[float]:
        """Return how many seconds the calls took that should be quick, since the last asking."""
        return [self._quick.popleft() for _ in range(len(self._quick))]

    # -- calls -------------------------------------------------------------------------------

    async def call(
        self,
        method: str,
        *params: object,
        timeout: float = CALL_TIMEOUT_S,
        owner: str = "",
        guard: Guard | None = None,
    ) -> Any:
        """Return the value that a XAPI call gives.

        Args:
            method: such as `VM.get_record` or `Async.VM.snapshot`.
            params: without the session; integers of any size are fine.
            timeout: seconds for the whole call; an answer that keeps coming may take longer.
            owner: of a task that the call starts: see `records.Task.owner`.
            guard: asked before each sending of a call that changes something.

        Raises:
            XorepdError: what the guard raised.
            XapiError: translated, with the pool's name in it.
            asyncio.CancelledError: after a call that changes something has ended, or `SETTLE_S`.
        """
        loop = asyncio.get_running_loop()
        self._check_open()  # the executor takes nothing more
        work = partial(self.call_blocking, method, params, timeout, owner=owner, guard=guard)
        answer = loop.run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(_forget_answer)
            if not _is_harmless(method):
                await settled(answer, SETTLE_S)
            raise

    def call_blocking(
        self,
        method: str,
        params: Sequence[object],
        timeout: float = CALL_TIMEOUT_S,
        *,
        renew: bool = True,
        owner: str = "",
        guard: Guard | None = None,
    ) -> Any:
        """As `call`, for a thread that may block.

        Args:
            renew: log in again and repeat the call when that is safe; else the caller wants to
                know that the session, and what hung on it, was lost.
        """
        wire = tuple(_to_wire(p) for p in params)
        harmless = _is_harmless(method)
        repeatable = harmless or method in _REPEATABLE
        attempts = 3 if renew else 1
        while True:
            attempts -= 1
            generation = self._login(timeout)
            try:
                return self._once(method, wire, timeout, owner, None if harmless else guard)
            except (SessionLost, NotMaster, XapiUnreachable) as error:
                self._forget_session(generation, error)
                safe = repeatable or not isinstance(error, XapiUnreachable)
                if self._closed or not safe or attempts <= 0:
                    raise
                log.info("session.renewed", pool=self.pool, reason=type(error).__name__)

    def _once(
        self,
        method: str,
        wire: tuple[object, ...],
        timeout: float,
        owner: str,
        guard: Guard | None,
    ) -> Any:
        proxy = self._proxy(self.url, timeout, most=most_of(method))
        proxy._session = self.session_ref
        proxy.transport.owner, proxy.transport.guard = owner, guard
        began = time.monotonic()

        def request() -> Any:
            answer = proxy.xenapi_request(method, wire)
            check_shape(method, answer)
            return answer

        answer = self._guarded(self.url, request)
        if _is_quick(method):
            self._quick.append(time.monotonic() - began)
        return answer

    def _check_open(self) -> None:
        if self._closed:
            raise XapiUnreachable(self.pool, self.url, "the connection was closed")

    def _guarded(self, url: str, request: Callable[[], Any]) -> Any:
        """Run one request; everything that the SDK and the socket may raise becomes ours."""
        address = urlsplit(url).netloc
        try:
            return request()
        except XenAPI.Failure as failure:
            raise translate(
                self.pool, failure.details, username=self._settings.username, names=self._names
            ) from None
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == 401:  # the SDK's word for SESSION_INVALID without a password
                raise SessionLost(self.pool) from None
            raise XapiUnreachable(self.pool, address, redact(str(fault.faultString))) from None
        except xmlrpc.client.ProtocolError as error:
            reason = f"HTTP status {error.errcode}"
            self._drop_connection()
            raise XapiUnreachable(self.pool, address, reason) from None
        except ssl.SSLCertVerificationError as error:
            raise CertificateRefused(self.pool, address, error.verify_message) from None
        except tls.FingerprintMismatch as error:
            raise CertificateRefused(self.pool, address, str(error.args[0])) from None
        except (OSError, http.client.HTTPException, xmlrpc.client.Error, ValueError) as error:
            # ValueError: what came back is not understood, or what was to be sent is no XML-RPC.
            self._drop_connection()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise XapiUnreachable(self.pool, address, reason or type(error).__name__) from error

    # -- login -------------------------------------------------------------------------------

    def _login(self, timeout: float) -> int:
        """Make sure that there is a session; return which login it is from."""
        with self._login_lock:
            self._check_open()
            if self.session_ref:
                return self._generation
            candidates = [self.url, self._settings.url.rstrip("/")]
            candidates += [self.url_of(address) for address in self._members]
            tried: set[str] = set()
            problem: XapiError | None = None
            while candidates and len(tried) < _LOGIN_HOPS + len(self._members):
                self._check_open()
                url = candidates.pop(0)
                if url in tried:
                    continue
                tried.add(url)
                try:
                    self.session_ref = self._login_at(url, min(timeout, 30.0))
                except NotMaster as error:
                    if is_address(error.master):
                        candidates.insert(0, self.url_of(error.master))
                    problem = error
                except XapiUnreachable as error:
                    problem = problem or error
                else:
                    self.url = url
                    self._generation += 1
                    log.info("session.opened", pool=self.pool, master=urlsplit(url).netloc)
                    return self._generation
            assert problem is not None
            raise problem

    def _login_at(self, url: str, timeout: float) -> str:
        proxy = self._proxy(url, timeout)
        try:
            password = self._read_password()
        except ConfigError as error:
            raise PasswordUnusable(self.pool, error) from error
        self._guarded(
            url,
            lambda: proxy.xenapi.login_with_password(
                self._settings.username, password, "2.0", ORIGINATOR
            ),
        )
        ref = proxy._session
        # Only this object decides about logins: the SDK must not keep the password.
        proxy.last_login_method, proxy.last_login_params = "", None
        if not isinstance(ref, str):
            reason = "what came as a session is none"
            raise XapiUnreachable(self.pool, urlsplit(url).netloc, reason)
        return ref

    def _forget_session(self, generation: int, error: XapiError) -> None:
        """Drop the session of one login, unless another thread renewed it meanwhile."""
        with self._login_lock:
            if generation != self._generation:
                return
            self.session_ref = ""
            if isinstance(error, NotMaster) and is_address(error.master):
                self.url = self.url_of(error.master)

    # -- threads and connections -------------------------------------------------------------

    def _proxy(self, url: str, timeout: float, *, most: int = answers.LARGEST) -> Any:
        """Return this thread's own connection to an address, for a call within these bounds."""
        kept = getattr(self._threads, "proxies", None)
        if kept is None:
            kept = self._threads.proxies = {}
        if url not in kept:
            transport = _Transport(
                secure=url.startswith("https:"),
                context=self.ssl_context,
                fingerprints=self.fingerprints,
            )
            self._transports.add(transport)
            session = XenAPI.Session(url + "/", transport=transport)
            session.last_login_method = ""  # None would break the SDK's logout
            kept[url] = session, transport
        session, transport = kept[url]
        transport.timeout, transport.most = timeout, most
        return session

    def _drop_connection(self) -> None:
        """Close this thread's connections after a failure: their state is unknown."""
        for _, transport in getattr(self._threads, "proxies", {}).values():
            transport.close()

    async def end(self) -> None:
        """End every call under way, and log out."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        session_ref, self._closed = self.session_ref, True
        self._abort()  # first of all: nobody waits for a silent server
        if session_ref:
            with suppress(XapiError, TimeoutError):
                async with asyncio.timeout(_LOGOUT_S):
                    await loop.run_in_executor(self._executor, self._logout, session_ref)
        ended = loop.run_in_executor(None, self._executor.shutdown)
        while not ended.done():
            self._abort()  # again: a thread may have been about to connect
            await asyncio.wait([ended], timeout=_ABORT_EVERY_S)

    def _abort(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    def close(self) -> None:
        """Close the connections; after `end`, and when no thread uses them any more."""
        for transport in self._transports:
            transport.close()

    def _logout(self, session_ref: str) -> None:
        proxy = self._proxy(self.url, _LOGOUT_S)
        proxy._session = session_ref
        with suppress(SessionLost):
            self._guarded(self.url, lambda: proxy.xenapi_request("session.logout", ()))


def is_address(text: str) -> bool:
    """Return whether a pool may call a host so: by a name, or an IPv4 or IPv6 address."""
    if _NAME.fullmatch(text):
        return True
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _is_harmless(method: str) -> bool:
    """Return whether a call changes nothing, so that it may be repeated or forgotten."""
    return method == "event.inject" or method.rpartition(".")[2].startswith("get_")


def _is_quick(method: str) -> bool:
    """Return whether a call takes XAPI but a moment, unless it is overloaded."""
    return _is_harmless(method) and not method.endswith("get_all_records")


def _forget_answer(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()  # nobody waits for it any more


def _to_wire(value: object) -> object:
    """Return a parameter as XAPI takes it: integers as text, because XML-RPC's have 32 bits."""
    match value:
        case bool() | float() | str():
            return value
        case int():
            return str(value)
        case dict():
            return {key: _to_wire(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_to_wire(item) for item in value]
        case _:
            raise TypeError(f"{type(value).__name__} has no place in a XAPI call")
