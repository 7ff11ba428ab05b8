"""task: create, watch, cancel. Source: xapi: ocaml/xapi/xapi_task.ml."""

from xorepd.lab.dispatch import Call, rpc
from xorepd.lab.failures import NULL


@rpc("task.create(label: string, description: string)", asynchronous=False)
def create(call: Call, label: str, description: str) -> str:
    return call.pool.tasks.create(label, description)


@rpc("task.destroy(self: ref task)", asynchronous=False)
def destroy(call: Call, task: str) -> None:
    call.pool.tasks.destroy(task, _caller(call))


@rpc("task.cancel(task: ref task)")
def cancel(call: Call, task: str) -> None:
    call.pool.tasks.cancel(task, _caller(call))


@rpc("task.set_status(self: ref task, value: task_status)", asynchronous=False)
def set_status(call: Call, task: str, value: str) -> None:
    """Write the status and nothing else: `finished` stays where it was."""
    call.pool.db.set("task", task, status=value)


@rpc("task.set_progress(self: ref task, value: float)", asynchronous=False)
def set_progress(call: Call, task: str, value: float) -> None:
    call.pool.db.set("task", task, progress=value)


@rpc("task.set_result(self: ref task, value: string)", asynchronous=False)
def set_result(call: Call, task: str, value: str) -> None:
    call.pool.db.set("task", task, result=value)


@rpc("task.set_error_info(self: ref task, value: set string)", asynchronous=False)
def set_error_info(call: Call, task: str, value: list[str]) -> None:
    call.pool.db.set("task", task, error_info=value)


def _caller(call: Call) -> str:
    return call.task if call.task != NULL else call.pool.db.new_ref()
