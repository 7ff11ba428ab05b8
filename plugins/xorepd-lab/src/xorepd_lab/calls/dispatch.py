"""From a method's name and parameters to its handler, and back to a result or an error.

    decode the arguments ─► session ─► task ─► role ─► faults ─► handler

All from the task on happens in the task: an `Async.` call that its caller may not make gives a task
too, which fails.

Source: xapi: ocaml/idl/ocaml_backend/gen_server.ml, ocaml/xapi/server_helpers.ml.
"""

import inspect
from typing import Any

from xorepd_lab.calls.call import Call, Fault, Pool
from xorepd_lab.calls.signatures import METHODS, Method, method_names, split_name
from xorepd_lab.calls.tasks import NOTHING, TaskWish, result_text
from xorepd_lab.model.failures import NULL, ApiError, internal_error
from xorepd_lab.model.roles import CALL_EXTENSION, lowest_role, permission
from xorepd_lab.model.schema import Type, coerce


def find_method(pool: "Pool", host: str, name: str, params: list[Any]) -> Method:
    """Return a method by its name without `Async.`.

    Raises:
        ApiError: What an unknown one ends with: it might be an extension of the host, so that a
            parameter is taken for the session and its right to call one is looked at first.
    """
    method = METHODS.get(name)
    if method is not None and not (method.newer and pool.db.release == "8.3"):
        return method
    if params:
        session = coerce(_SESSION, params[0])
        check_session(pool, host, name, session)
        pool.sessions.authorise(session, CALL_EXTENSION, "pool-admin")
    raise ApiError("MESSAGE_METHOD_UNKNOWN", name)


_SESSION = Type("ref", "session")


def decode(method: Method, name: str, params: list[Any]) -> tuple[str, list[Any]]:
    """Return the session and the handler's arguments.

    Methods with defaults ignore what is too much, the others refuse it.
    """
    given = len(params) - method.session
    optional = len(method.parameters) > method.mandatory
    if given < method.mandatory or (given > method.mandatory and not optional):
        # The count that is expected leaves out what has a default, as the real text does.
        raise ApiError("MESSAGE_PARAMETER_COUNT_MISMATCH", name, str(method.mandatory), str(given))
    session = NULL
    if method.session:
        session = coerce(_SESSION, params[0])
        params = params[1:]
    arguments = [coerce(p.type, value) for p, value in zip(method.parameters, params, strict=False)]
    arguments += [p.default for p in method.parameters[len(arguments) :]]
    return session, arguments


def check_session(pool: "Pool", host: str, name: str, session: str) -> None:
    """Raise what a member says to a call with this session.

    A member asks its master about the session before it says HOST_IS_SLAVE, so that a dead one is
    SESSION_INVALID everywhere. The toolstack's own sessions are good on members too.
    """
    sessions = pool.sessions
    try:
        pool.life.admit(host, name)
    except ApiError as refusal:
        if refusal.code != "HOST_IS_SLAVE":
            raise
        sessions.check(session)
        if not pool.db.get("session", session, "pool"):
            raise
    if not sessions.is_local(session, host):
        sessions.check(session)


async def dispatch(
    pool: "Pool",
    host: str,
    name: str,
    params: list[Any],
    fault: Fault | None = None,
    wish: TaskWish = NOTHING,
) -> Any:
    """Execute one call that came to `host` and return its result.

    Args:
        wish: What the request's headers say of the call's task.

    Raises:
        ApiError: what the client is to see.
    """
    called, asynchronous = split_name(name)
    if called.startswith("system."):
        return _system(pool, called, params)
    method = find_method(pool, host, called, params)
    session, arguments = decode(method, called, params)
    if method.session:
        check_session(pool, host, method.name, session)
    else:
        pool.life.admit(host, method.name)
    if asynchronous and not method.asynchronous:
        raise ApiError("Fault", f"No async mode for this operation (rpc: {called})")
    tasks = pool.tasks
    if asynchronous:
        task = tasks.adopt(wish) or tasks.create(
            name, subtask_of=wish.subtask_of, other_config=wish.other_config, session=session
        )
        call = Call(pool, host, session, task)
        if fault is not None:
            fault.hold_task = lambda: tasks.hold(task)
        work = _run_async(call, method, arguments, fault, own=not wish.task)
        pool.spawn_call(work, f"task {name}")
        return task
    adopted = tasks.adopt(wish)
    if adopted or not method.tracked:
        call = Call(pool, host, session, adopted or NULL)
        return await _execute(call, method, arguments, fault)
    with tasks.temporary(called, wish.subtask_of, wish.other_config, session) as task:
        return await _execute(Call(pool, host, session, task), method, arguments, fault)


async def perform(call: Call, name: str, *arguments: Any) -> Any:
    """Make a call from inside the toolstack, as a subtask of another one."""
    method = METHODS[name]
    host_name = call.pool.db.get("host", call.host, "name_label")
    fault = call.pool.faults.pick("inner", name, call.pool.name, host_name, arguments)
    label = f"Async.{name}"
    with call.pool.tasks.temporary(label, call.task, session=call.session) as task:
        given = list(arguments) + [p.default for p in method.parameters[len(arguments) :]]
        inner = Call(call.pool, call.host, call.session, task)
        return await _run(inner, method, given, fault)


async def _execute(call: Call, method: Method, arguments: list[Any], fault: Fault | None) -> Any:
    if method.session:
        _authorise(call, method, arguments)
    return await _run(call, method, arguments, fault)


def _authorise(call: Call, method: Method, arguments: list[Any]) -> None:
    keys = (
        given
        for parameter, given in zip(method.parameters, arguments, strict=True)
        if parameter.name == "key"
    )
    needed = permission(method.name, next(keys, None))
    call.pool.sessions.authorise(call.session, needed, lowest_role(method.name))


async def _run(call: Call, method: Method, arguments: list[Any], fault: Fault | None) -> Any:
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
    if fault is not None:
        await fault.after_work()
    return "" if result is None else result


async def _run_async(
    call: Call, method: Method, arguments: list[Any], fault: Fault | None, own: bool
) -> None:
    """Run a call in its task; one that the client brought along is the client's to complete."""
    tasks = call.pool.tasks
    try:
        result = await _execute(call, method, arguments, fault)
    except ApiError as error:
        if own:
            tasks.fail(call.task, error)
    else:
        if own:
            tasks.complete(call.task, result_text(result))


def _system(pool: "Pool", name: str, params: list[Any]) -> Any:
    if name == "system.listMethods":
        return list(method_names(pool.db.release))
    if name.startswith("system.isAlive:"):
        if not params:
            raise internal_error('Failure("hd")')
        return params[0]
    raise ApiError("MESSAGE_METHOD_UNKNOWN", name)
