"""task: create, watch, cancel. Source: xapi: ocaml/xapi/xapi_task.ml, taskHelper.ml."""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.generics import add_to_map
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import NULL
from xorepd_lab.model.roles import DESTROY_ANY_TASK


def check_owner(call: Call, task: str) -> None:
    """Raise RBAC_PERMISSION_DENIED for a task of another user, unless the role is high enough."""
    db, sessions = call.pool.db, call.pool.sessions
    db.row("task", task)
    if not sessions.same_user(call.session, call.pool.tasks.owner(task)):
        sessions.authorise(call.session, DESTROY_ANY_TASK, "pool-operator")


@rpc("task.create(label: string, description: string)", asynchronous=False)
def create(call: Call, label: str, description: str) -> str:
    return call.pool.tasks.create(label, description, session=call.session)


@rpc("task.destroy(self: ref task)", asynchronous=False)
def destroy(call: Call, task: str) -> None:
    check_owner(call, task)
    call.pool.tasks.destroy(task)


@rpc("task.cancel(task: ref task)")
def cancel(call: Call, task: str) -> None:
    check_owner(call, task)
    call.pool.tasks.cancel(task, call.task if call.task != NULL else call.pool.db.new_ref())


@rpc("task.set_status(self: ref task, value: task_status)", asynchronous=False)
def set_status(call: Call, task: str, value: str) -> None:
    """Write the status and nothing else: `finished` stays where it was."""
    _set(call, task, "status", value)


@rpc("task.set_progress(self: ref task, value: float)", asynchronous=False)
def set_progress(call: Call, task: str, value: float) -> None:
    _set(call, task, "progress", value)


@rpc("task.set_result(self: ref task, value: string)", asynchronous=False)
def set_result(call: Call, task: str, value: str) -> None:
    _set(call, task, "result", value)


@rpc("task.set_error_info(self: ref task, value: set string)", asynchronous=False)
def set_error_info(call: Call, task: str, value: list[str]) -> None:
    _set(call, task, "error_info", value)


@rpc("task.set_other_config(self: ref task, value: map string string)", asynchronous=False)
def set_other_config(call: Call, task: str, value: dict[str, str]) -> None:
    _set(call, task, "other_config", value)


@rpc("task.add_to_other_config(self: ref task, key: string, value: string)", asynchronous=False)
def add_to_other_config(call: Call, task: str, key: str, value: str) -> None:
    check_owner(call, task)
    add_to_map(call, "task", task, "other_config", key, value)


@rpc("task.remove_from_other_config(self: ref task, key: string)", asynchronous=False)
def remove_from_other_config(call: Call, task: str, key: str) -> None:
    check_owner(call, task)
    call.pool.db.drop("task", task, "other_config", key)


def _set(call: Call, task: str, field: str, value: Any) -> None:
    check_owner(call, task)
    call.pool.db.set("task", task, **{field: value})
