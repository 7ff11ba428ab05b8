"""One login to one pool, shared by a few threads; the one module that speaks the XenAPI SDK.

The SDK blocks, so each call runs in a thread of a small pool. A `XenAPI.Session` is one HTTP
connection and not thread-safe: every thread keeps its own, all with the same session reference.

Handled here once, for every caller:

- `HOST_IS_SLAVE`: log in at the master that the member names, with scheme and port of the
  configured address, because XAPI names only an address.
- `SESSION_INVALID`: log in again. XAPI checks the session before it does anything, so repeating
  the call is safe, as it is after `HOST_IS_SLAVE`.
- no answer: repeat only getters, and idempotent changes of our own tasks. Of any other call it is
  unknown whether XAPI has executed it.

The automatic login of the SDK is not used: it would keep the password in every thread and would not
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
"""Called from any thread right before a change is sent; raises an error to forbid it."""

ORIGINATOR = "xorepd"
"""XAPI limits sessions per originator; with one of our own we never evict other clients."""

CALL_TIMEOUT_S = 120.0
"""Longest wait for the answer of one synchronous call. What takes longer runs as a task."""

SETTLE_S = 10.0
"""How long a cancelled call may take to end. XAPI may still execute it, and the cleanup must see
its effect."""

_LOGOUT_S = 5.0
_ABORT_EVERY_S = 0.1

_LOGIN_HOPS = 4
"""Most addresses for one login: a member, the master that it names, and other known members."""


_MOST_TIMES = 256
"""Most durations to keep, in case no caller takes them."""

_KEEP_S = 5.0
"""How long an idle connection is reused: XAPI waits 10 s for the next request."""


_REPEATABLE = frozenset({"task.cancel", "task.destroy"})
"""Idempotent changes."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")

_OWNER_HEADER = "x-http-other-config-xorepd"
"""XAPI stores its value in `other_config` of the task, as `records.TASK_OWNER`."""


class _Transport(xmlrpc.client.Transport):
    """XML-RPC over one connection: bounded, verified, and abortable from another thread."""

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
        """Owner of the task of the next call."""
        self.guard: Guard | None = None
        """Called right before the next call is sent."""

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
                connection.connect()  # it may take long, so the guard comes after it
            self.guard()
        super().send_content(connection, request_body)

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:
        """Send a request once.

        The standard library repeats a request if a kept connection turns out to be closed, and so
        may create a VM twice. This method does not use a connection that may be closed.
        """
        kept = self._connection[1]
        stale = isinstance(kept, tls.BreakableConnection) and kept.is_stale
        if stale or time.monotonic() - self._used_at > _KEEP_S:
            self.close()
        try:
            return self._exchange(host, handler, request_body)
        except BaseException:
            self.close()  # a late answer must not be taken for that of another call
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
        """Abort a call that waits for its connection or answer in another thread."""
        connection = self._connection[1]
        if isinstance(connection, tls.BreakableConnection):
            connection.break_off()


class Session:
    """Calls to one pool's XAPI, from asyncio.

    It logs in at the first call. Call `end`, then `close`.
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
        """Return the URL of another host of the pool: its address with the same scheme and port.

        Raises:
            ValueError: it is not the address of a host.
        """
        if not is_address(address):
            raise ValueError(f"{address[:80]!r} is not an address")
        parts = urlsplit(self.url)
        host = f"[{address}]" if ":" in address else address
        port = f":{parts.port}" if parts.port is not None else ""
        return urlunsplit((parts.scheme, host + port, "", "", ""))

    def remember_members(self, addresses: Iterable[str]) -> None:
        """Set the hosts to ask for the master if the current one does not answer."""
        self._members = [address for address in addresses if is_address(address)]

    def take_times(self) -> list[float]:
        """Return and clear the durations of quick calls, in seconds."""
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
        self._check_open()  # the executor is closed
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
            renew: Log in again and repeat the call if that is safe. False if the caller must know
                that the session was lost.
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
        """Make one request, and translate all errors of the SDK and the socket."""
        address = urlsplit(url).netloc
        try:
            return request()
        except XenAPI.Failure as failure:
            raise translate(
                self.pool, failure.details, username=self._settings.username, names=self._names
            ) from None
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == 401:  # raised by the SDK for SESSION_INVALID without a password
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
            # ValueError: the answer is not understood, or the request cannot be encoded.
            self._drop_connection()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise XapiUnreachable(self.pool, address, reason or type(error).__name__) from error

    # -- login -------------------------------------------------------------------------------

    def _login(self, timeout: float) -> int:
        """Make sure that there is a session; return the number of its login."""
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
        # Only this class logs in: the SDK must not keep the password.
        proxy.last_login_method, proxy.last_login_params = "", None
        if not isinstance(ref, str):
            reason = "the pool returned no session"
            raise XapiUnreachable(self.pool, urlsplit(url).netloc, reason)
        return ref

    def _forget_session(self, generation: int, error: XapiError) -> None:
        """Drop the session of one login, unless another thread has renewed it."""
        with self._login_lock:
            if generation != self._generation:
                return
            self.session_ref = ""
            if isinstance(error, NotMaster) and is_address(error.master):
                self.url = self.url_of(error.master)

    # -- threads and connections -------------------------------------------------------------

    def _proxy(self, url: str, timeout: float, *, most: int = answers.LARGEST) -> Any:
        """Return the connection of this thread to an address, for a call within bounds."""
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
            session.last_login_method = ""  # the SDK's logout fails with None
            kept[url] = session, transport
        session, transport = kept[url]
        transport.timeout, transport.most = timeout, most
        return session

    def _drop_connection(self) -> None:
        """Close the connections of this thread after a failure, as their state is unknown."""
        for _, transport in getattr(self._threads, "proxies", {}).values():
            transport.close()

    async def end(self) -> None:
        """Abort all calls, and log out."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        session_ref, self._closed = self.session_ref, True
        self._abort()  # first, so that no call waits for a silent server
        if session_ref:
            with suppress(XapiError, TimeoutError):
                async with asyncio.timeout(_LOGOUT_S):
                    await loop.run_in_executor(self._executor, self._logout, session_ref)
        ended = loop.run_in_executor(None, self._executor.shutdown)
        while not ended.done():
            self._abort()  # again: a thread may just have connected
            await asyncio.wait([ended], timeout=_ABORT_EVERY_S)

    def _abort(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    def close(self) -> None:
        """Close the connections; call it after `end`, when no thread uses them any more."""
        for transport in self._transports:
            transport.close()

    def _logout(self, session_ref: str) -> None:
        proxy = self._proxy(self.url, _LOGOUT_S)
        proxy._session = session_ref
        with suppress(SessionLost):
            self._guarded(self.url, lambda: proxy.xenapi_request("session.logout", ()))


def is_address(text: str) -> bool:
    """Return whether a text is a host name or an IPv4 or IPv6 address."""
    if _NAME.fullmatch(text):
        return True
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _is_harmless(method: str) -> bool:
    """Return whether a call changes nothing, so that it may be repeated or abandoned."""
    return method == "event.inject" or method.rpartition(".")[2].startswith("get_")


def _is_quick(method: str) -> bool:
    """Return whether a call is quick, unless XAPI is overloaded."""
    return _is_harmless(method) and not method.endswith("get_all_records")


def _forget_answer(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()  # no caller waits for it any more


def _to_wire(value: object) -> object:
    """Encode a parameter for XAPI: integers as text, because XML-RPC has only 32 bits."""
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
            raise TypeError(f"{type(value).__name__} cannot be sent in a XAPI call")
