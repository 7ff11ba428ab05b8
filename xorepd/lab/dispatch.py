"""From a method's name and parameters to its handler, and back to a result or an error.

A handler is declared by the signature that XAPI's data model gives it::

    @rpc("VM.snapshot(vm: ref VM, new_name: string, ignore_vdis: set ref VDI = [])")
    async def snapshot(call: Call, vm: str, new_name: str, ignore_vdis: list[str]) -> str: ...

The session, first parameter of nearly every call, is checked here and not passed on.

Source: xapi: ocaml/idl/ocaml_backend/gen_server.ml, ocaml/xapi/server_helpers.ml.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xorepd.lab.datamodel import ENUMS
from xorepd.lab.failures import NULL, ApiError, internal_error
from xorepd.lab.schema import Type, coerce, parse_type
from xorepd.lab.tasks import NOTHING, result_text

if TYPE_CHECKING:
    from xorepd.lab.faults import Fault
    from xorepd.lab.pools import Pool

Handler = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    type: Type
    mandatory: bool
    default: Any = None


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    parameters: tuple[Parameter, ...]
    handler: Handler
    asynchronous: bool = True
    """Whether `Async.<name>` exists."""
    session: bool = True
    tracked: bool = True
    """Whether a synchronous call shows as a task while it runs."""

    @property
    def mandatory(self) -> int:
        return sum(p.mandatory for p in self.parameters)


@dataclass(frozen=True, slots=True)
class Call:
    """Where a call came in and on whose behalf it runs."""

    pool: "Pool"
    host: str
    session: str = NULL
    task: str = NULL


METHODS: dict[str, Method] = {}
"""Every method by both its spellings, `VM.start` and `VM_start`."""

_SIGNATURE = re.compile(r"(?P<name>\w+\.\w+)\((?P<params>.*)\)$", re.DOTALL)
_PARAMETER = re.compile(r"\s*(?P<name>\w+): (?P<type>[\w ]+?)(?: = (?P<default>.+))?\s*$")


def register(method: Method, replace: bool = True) -> None:
    if not replace and method.name in METHODS:
        return
    METHODS[method.name] = method
    METHODS[method.name.replace(".", "_", 1)] = method


def rpc(
    signature: str, *, asynchronous: bool = True, session: bool = True
) -> Callable[[Handler], Handler]:
    """Declare the handler of one method. Defaults are written as JSON."""
    found = _SIGNATURE.match(signature)
    if found is None:
        raise ValueError(f"cannot read the signature {signature!r}")
    parameters = tuple(_parameter(text) for text in found["params"].split(",") if text.strip())

    def declare(handler: Handler) -> Handler:
        register(
            Method(found["name"], parameters, handler, asynchronous, session, tracked=asynchronous)
        )
        return handler

    return declare


def _parameter(text: str) -> Parameter:
    found = _PARAMETER.match(text)
    if found is None:
        raise ValueError(f"cannot read the parameter {text!r}")
    declared = parse_type(found["type"], ENUMS)
    if found["default"] is None:
        return Parameter(found["name"], declared, mandatory=True)
    return Parameter(found["name"], declared, mandatory=False, default=json.loads(found["default"]))


def find_method(name: str) -> tuple[Method, bool]:
    """Return a method and whether its `Async.` form was asked for."""
    asynchronous = name.startswith("Async.")
    method = METHODS.get(name.removeprefix("Async."))
    if method is None:
        raise ApiError("MESSAGE_METHOD_UNKNOWN", name)
    if asynchronous and not method.asynchronous:
        raise ApiError("Fault", f"No async mode for this operation (rpc: {method.name})")
    return method, asynchronous


def decode(method: Method, params: list[Any]) -> tuple[str, list[Any]]:
    """Return the session and the handler's arguments."""
    given = len(params) - method.session
    if not method.mandatory <= given <= len(method.parameters):
        # The count that is expected leaves out what has a default, as the real text does.
        raise ApiError(
            "MESSAGE_PARAMETER_COUNT_MISMATCH", method.name, str(method.mandatory), str(given)
        )
    session = NULL
    if method.session:
        session = coerce(Type("ref", "session"), params[0], "session_id")
        params = params[1:]
    arguments = [
        coerce(p.type, value, p.name) for p, value in zip(method.parameters, params, strict=False)
    ]
    arguments += [p.default for p in method.parameters[len(arguments) :]]
    return session, arguments


async def dispatch(
    pool: "Pool",
    host: str,
    name: str,
    params: list[Any],
    fault: "Fault | None" = None,
    task_keys: Mapping[str, str] = NOTHING,
) -> Any:
    """Execute one call that came to `host` and return its result.

    Args:
        task_keys: What the request's headers put into its task's `other_config`.

    Raises:
        ApiError: what the client is to see.
    """
    if name.startswith("system."):
        return _system(name, params)
    method, asynchronous = find_method(name)
    session, arguments = decode(method, params)
    if host != pool.master:
        raise ApiError("HOST_IS_SLAVE", pool.db.get("host", pool.master, "address"))
    if method.session:
        pool.sessions.check(session)
    if asynchronous:
        task = pool.tasks.create(name, other_config=task_keys)
        call = Call(pool, host, session, task)
        pool.spawn(_run_async(call, method, arguments, fault), f"task {name}")
        return task
    if method.tracked:
        with pool.tasks.temporary(method.name) as task:
            return await _execute(Call(pool, host, session, task), method, arguments, fault)
    return await _execute(Call(pool, host, session), method, arguments, fault)


async def perform(call: Call, name: str, *arguments: Any) -> Any:
    """Make a call from inside the toolstack, as a subtask of another one."""
    method = METHODS[name]
    host_name = call.pool.db.get("host", call.host, "name_label")
    fault = call.pool.lab.faults.pick("inner", name, call.pool.name, host_name)
    with call.pool.tasks.temporary(f"Async.{name}", subtask_of=call.task) as task:
        given = list(arguments) + [p.default for p in method.parameters[len(arguments) :]]
        return await _execute(Call(call.pool, call.host, call.session, task), method, given, fault)


async def _execute(call: Call, method: Method, arguments: list[Any], fault: "Fault | None") -> Any:
    if fault is not None:
        await fault.before_work()
    try:
        result = method.handler(call, *arguments)
        if inspect.isawaitable(result):
            result = await result
    except ApiError:
        raise
    except (KeyError, ValueError, TypeError, LookupError, OSError, RuntimeError) as error:
        call.pool.log.exception("call.crashed", method=method.name)
        raise internal_error(repr(error)) from error
    return "" if result is None else result


async def _run_async(
    call: Call, method: Method, arguments: list[Any], fault: "Fault | None"
) -> None:
    tasks = call.pool.tasks
    try:
        result = await _execute(call, method, arguments, fault)
    except ApiError as error:
        tasks.fail(call.task, error)
    else:
        tasks.complete(call.task, result_text(result))


def _system(name: str, params: list[Any]) -> Any:
    if name == "system.listMethods":
        plain = sorted({m.name for m in METHODS.values()})
        waiting = sorted({f"Async.{m.name}" for m in METHODS.values() if m.asynchronous})
        return plain + waiting
    if name.startswith("system.isAlive"):
        return params[0] if params else name.partition(":")[2]
    raise ApiError("MESSAGE_METHOD_UNKNOWN", name)
