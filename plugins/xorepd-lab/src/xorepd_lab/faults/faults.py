"""What goes wrong on demand: rules that the server consults, so that no handler knows of any.

A rule names the requests it is for, lets the first `skip` of them pass and meets the next `times`.
It says what happens: an error, a cut connection, a body that is shorter, longer or other than it
should be, a lost answer, a wait, an incident. Rules are data: `Fault.from_json`, `Fault.to_json`.
What each kind does is written in `effects`.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

import structlog
from pydantic import ConfigDict, TypeAdapter, ValidationError

from xorepd_lab.calls.call import Pool
from xorepd_lab.faults.effects import EFFECTS, Effect, rewritten
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.faults.subjects import names_object, names_sr
from xorepd_lab.wire.http import Connection, Disconnected

Where = Literal["rpc", "inner", "export", "import", "nbd", "greeting", "any"]
OUTSIDE = {"rpc", "export", "import", "nbd"}
"""What `any` stands for: `inner` calls are no requests of a client, nor is a connection one."""
STREAMS = {"export", "import", "nbd"}
_ASKING = ("get_", "from", "inject", "next", "login_", "logout")
"""How the names of methods begin that change nothing that lasts."""
NUMBERS = (
    *("stall_at", "cut_at", "end_at", "flip_at", "append", "chunk", "delay_s"),
    *("error_at", "error_pad", "incident_at"),
)
"""Members that may not be negative."""

log = structlog.get_logger("xorepd_lab")


class BadFault(ValueError):
    """A fault or incident that was given as JSON makes no sense; the text is one sentence."""


@dataclass(eq=False)
class Fault:
    """One rule and its count.

    `inner` are calls that the toolstack makes for another one, such as each disk's VDI.snapshot in
    a VM.snapshot; `greeting` are connections to NBD to which nothing was said yet. Offsets count
    bytes of the body: of a stream, or of the answer to a call.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    where: Where
    match: str = "*"
    """Glob over the method's name (without `Async.`), over the format of a stream, or over
    `connect` and `read` of NBD."""
    pool: str | None = None
    """Name of the pool."""
    host: str | None = None
    """Name of the host that got the request."""
    skip: int = 0
    """Let so many pass first."""
    times: int | None = 1
    """Meet so many; None: no limit."""

    error: tuple[str, ...] = ()
    """Code and parameters. A stream says 200 first and fails as if its attach had."""
    reset: bool = False
    """Cut the connection before anything is done."""
    drop_response: bool = False
    """Do it all and cut the connection instead of answering."""
    delay_s: float = 0.0
    stall: bool = False
    """Wait, by `moment` before or after the work, or at `stall_at` of the body, until
    `release()`."""
    stall_at: int = 0
    cut_at: int | None = None
    """Cut the connection after so many bytes of the body, in either direction."""
    end_at: int | None = None
    """End what we send there, with an orderly close; an export's task fails."""
    flip_at: int | None = None
    """Invert the byte at this offset of what we send."""
    append: int = 0
    """So many more zero bytes after the end of what we send."""
    bytes_per_s: float | None = None

    object: str | None = None
    """Reference, UUID or name of an object that the request must name."""
    sr: str | None = None
    """Reference, UUID or name of an SR that the request must be about."""
    changing: bool = False
    """Pass over what only asks: such calls, and reads over NBD."""
    probability: float = 1.0
    """How likely it is to meet a request that it could meet."""
    seed: int | None = None
    """Decides which ones; drawn, logged and listed when it is not given."""
    chunk: int = 0
    """Count each so many bytes of a stream as one more request."""
    moment: Literal["before", "after"] = "before"
    """When `error`, `incident`, `http_status` and `stall` come: instead of the work or before it,
    or when it is done."""
    error_at: int | None = None
    """With `error`: an export fails after so many bytes of its body."""
    error_pad: int = 0
    """With `error`: so many more bytes of text in its last parameter."""
    http_status: int | None = None
    length_off: int = 0
    rewrite: tuple[str, str] | None = None
    """Pattern and replacement, as of Python's `re.sub`."""
    endless: bool = False
    task_never_ends: bool = False
    incident: Incident | None = None
    incident_at: int | None = None
    """Let the incident happen when so many bytes of the body went through."""

    seen: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)
    stalled: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)
    """Set when somebody waits in this fault."""
    released: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        self.rule = self
        """The rule itself; what meets one request is a copy of it."""
        self.armed = False
        """This copy only counts the chunks of a stream, until the rule fires."""
        self.outcome = ""
        """What the recorder is to say, where it cannot tell by itself."""
        self.hold_task: Callable[[], None] | None = None
        """Keeps the request's task from ever ending."""
        self.cause: Callable[[], Awaitable[None]] | None = None
        """Lets the incident happen, at the place of the request that was met."""
        if self.probability < 1.0 and self.seed is None:
            self.seed = random.SystemRandom().getrandbits(32)
            log.info("fault.seed", where=self.where, match=self.match, seed=self.seed)
        self._rng = random.Random(self.seed)
        self.effects = tuple(EFFECTS[name] for name in EFFECTS if self._is_set(name))

    def _is_set(self, name: str) -> bool:
        value: Any = getattr(self, name)
        return bool(value != _DEFAULTS[name])

    # -- as data --------------------------------------------------------------------------------

    @classmethod
    def from_json(cls, value: Any) -> "Fault":
        """Return the fault that JSON describes: members as the fields, all but `where` optional.

        Raises:
            BadFault: It describes none.
        """
        fault: Fault = _parse(_FAULTS, value, "fault")
        if not fault.effects:
            raise BadFault(f"the fault does nothing; give one of {', '.join(EFFECTS)}")
        if fault.skip < 0 or (fault.times is not None and fault.times < 1):
            raise BadFault("skip must be 0 or more and times 1 or more, or null for ever")
        if not 0.0 < fault.probability <= 1.0:
            raise BadFault("probability must be above 0 and at most 1")
        for name in NUMBERS:
            if (getattr(fault, name) or 0) < 0:
                raise BadFault(f"{name} must be 0 or more")
        if fault.http_status is not None and not 200 <= fault.http_status <= 599:
            raise BadFault("http_status must be that of an answer, 200 to 599")
        for name in ("error_at", "error_pad", "incident_at"):
            needed = name.partition("_")[0]
            if fault._is_set(name) and not fault._is_set(needed):
                raise BadFault(f"{name} needs {needed}")
        if fault.rewrite is not None:
            try:
                rewritten(fault.rewrite, b"")
            except (re.error, IndexError) as error:
                raise BadFault(f"rewrite is no pattern and replacement: {error}") from error
        return fault

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are not as they are by default."""
        told: dict[str, Any] = {"where": self.where}
        for declared in fields(self):
            value = getattr(self, declared.name)
            if declared.init and declared.default is not MISSING and value != declared.default:
                told[declared.name] = value
        for name in ("error", "rewrite"):
            if name in told:
                told[name] = list(told[name])
        if self.incident is not None:
            told["incident"] = self.incident.to_json()
        return told

    # -- when -----------------------------------------------------------------------------------

    def fits(self, where: str, name: str, pool: str, host: str) -> bool:
        return (
            (self.where == where or (self.where == "any" and where in OUTSIDE))
            and fnmatchcase(name, self.match)
            and self.pool in (None, pool)
            and self.host in (None, host)
            and not (self.changing and _only_asks(where, name))
        )

    def count(self) -> bool:
        """Count one request that fits; say whether the rule meets it."""
        self.seen += 1
        if self.seen <= self.skip or (self.times is not None and self.fired >= self.times):
            return False
        if self.probability < 1.0 and self._rng.random() >= self.probability:
            return False
        self.fired += 1
        return True

    # -- what: the moments that handlers announce -------------------------------------------------

    def release(self) -> None:
        self.released.set()

    async def wait(self) -> None:
        self.stalled.set()
        await self.released.wait()

    async def happen(self) -> None:
        """Let the incident happen; the request may not survive it."""
        if self.cause is not None:
            await self.cause()

    async def arrive(self, connection: Connection) -> None:
        """Announce a request that was read. Raises Disconnected when that is its end."""
        for each in self._acting():
            await each.arrive(self, connection)

    async def before_work(self) -> None:
        """Announce that the work would begin. Raises ApiError for a failure instead of it."""
        for each in self._acting():
            await each.before_work(self)

    async def after_work(self) -> None:
        """Announce that the work is done. Raises ApiError for a failure in spite of it."""
        for each in self._acting():
            await each.after_work(self)

    def stop_after(self, offset: int) -> int | None:
        """Return the next offset of a body, above this one, at which to call `reach`."""
        if self.armed:
            return (offset // self.chunk + 1) * self.chunk
        stops = [stop for each in self.effects for stop in each.stops(self) if stop > offset]
        return min(stops, default=None)

    async def reach(self, offset: int, connection: Connection) -> None:
        """Announce that so many bytes of a body went through; at 0 and wherever it wants to stop.

        Raises:
            Disconnected: The connection was cut.
            EndedEarly: The body ends here.
            ApiError: The work fails here.
        """
        if self.armed:
            if offset and offset % self.chunk == 0 and self.rule.count():
                self.armed = False
                await self.arrive(connection)
                await self.before_work()
                if self.rule.drop_response:
                    connection.cut()
                    raise Disconnected
            return
        for each in self.effects:
            await each.reach(self, offset, connection)

    def spoil(self, offset: int, data: bytes) -> bytes:
        """Return what goes out instead of bytes of a body."""
        for each in self._acting():
            data = each.spoil(self, offset, data)
        return data

    def answer(self, response: bytes) -> bytes:
        """Return the whole answer to a call that goes out instead, before it is spoilt."""
        for each in self._acting():
            response = each.answer(self, response)
        return response

    def head(self, data: bytes) -> bytes:
        """Return what goes out instead of the header of an answer."""
        for each in self._acting():
            data = each.head(self, data)
        return data

    def _acting(self) -> tuple[Effect, ...]:
        return () if self.armed else self.effects


def _only_asks(where: str, name: str) -> bool:
    method = name.rpartition(".")[2]
    return method.startswith(_ASKING) if where in ("rpc", "inner") else name == "read"


_DEFAULTS = {declared.name: declared.default for declared in fields(Fault)}
_FAULTS = TypeAdapter(Fault)
_INCIDENTS = TypeAdapter(Incident)


def parse_incident(value: Any) -> Incident:
    """Return the incident that JSON describes; BadFault when it describes none."""
    incident: Incident = _parse(_INCIDENTS, value, "incident")
    return incident


def _parse(adapter: TypeAdapter[Any], value: Any, what: str) -> Any:
    if not isinstance(value, dict):
        raise BadFault(f"{what}: it must be a JSON object")
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise BadFault(f"{what}: {place}: {reason}" if place else f"{what}: {reason}") from error


class Lab(Protocol):
    """What the rules ask of the lab that they are for."""

    @property
    def pools(self) -> Mapping[str, Pool]: ...

    async def happen(self, incident: Incident) -> None: ...


class Faults:
    """The rules in force, oldest first; the first that fires wins."""

    def __init__(self, lab: Lab | None = None) -> None:
        self._lab = lab
        self._rules: list[Fault] = []

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._rules))

    def add(self, fault: Fault) -> Fault:
        self._rules.append(fault)
        return fault

    def fail_nth(self, number: int, **what: Any) -> Fault:
        """Add a rule for the `number`th request from now on, of whatever kind, counted from 1.

        For sweeps: set it for 1, 2, 3 … until the work ends without `fired`. `seen` tells how many
        requests there were. `chunk` makes the pieces of streams count as well.
        """
        return self.add(Fault("any", skip=number - 1, **what))

    def clear(self) -> None:
        """Remove all rules; who waits in one goes on."""
        for fault in self._rules:
            fault.release()
        self._rules.clear()

    def pick(
        self, where: str, name: str, pool: str, host: str, arguments: tuple[Any, ...] = ()
    ) -> Fault | None:
        """Count a request and return the fault that meets it: a copy, for this request alone."""
        armed: Fault | None = None
        for rule in list(self._rules):
            if not rule.fits(where, name, pool, host) or not self._is_about(rule, pool, arguments):
                continue
            if rule.count():
                return self._meet(rule, pool, host)
            if rule.chunk and where in STREAMS and armed is None:
                armed = self._meet(rule, pool, host)
                armed.armed, armed.drop_response, armed.append = True, False, 0
        return armed

    def _meet(self, rule: Fault, pool: str, host: str) -> Fault:
        met = copy(rule)
        lab, incident = self._lab, rule.incident
        if lab is not None and incident is not None:
            met.cause = lambda: lab.happen(incident.at(pool, host))
        return met

    def _is_about(self, rule: Fault, pool: str, arguments: tuple[Any, ...]) -> bool:
        if rule.object is None and rule.sr is None:
            return True
        if self._lab is None or pool not in self._lab.pools:
            return False
        db = self._lab.pools[pool].db
        return (rule.object is None or names_object(db, arguments, rule.object)) and (
            rule.sr is None or names_sr(db, arguments, rule.sr)
        )
