"""message: what administrators should know. Source: xapi: ocaml/xapi/xapi_message.ml."""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.schema import DateTime

TABLES = {"Host": "host", "Pool": "pool"}
"""Classes that messages call by another name."""


@rpc(
    "message.create(name: string, priority: int, cls: message_class, obj_uuid: string,"
    " body: string)",
    asynchronous=False,
)
def create(call: Call, name: str, priority: int, cls: str, obj_uuid: str, body: str) -> str:
    _check_object(call, cls, obj_uuid)
    return call.pool.db.create(
        "message",
        name=name,
        priority=priority,
        cls=cls,
        obj_uuid=obj_uuid,
        body=body,
        timestamp=call.pool.clock.now(),
    )


@rpc("message.destroy(self: ref message)", asynchronous=False)
def destroy(call: Call, message: str) -> None:
    call.pool.db.destroy("message", message)


@rpc("message.destroy_many(messages: set ref message)")
def destroy_many(call: Call, messages: list[str]) -> None:
    for message in messages:
        call.pool.db.destroy("message", message)


@rpc(
    "message.get(cls: message_class, obj_uuid: string, since: datetime)",
    asynchronous=False,
)
def get(call: Call, cls: str, obj_uuid: str, since: DateTime) -> dict[str, Any]:
    _check_object(call, cls, obj_uuid)
    return {
        ref: record
        for ref, record in get_since(call, since).items()
        if (record["cls"], record["obj_uuid"]) == (cls, obj_uuid)
    }


@rpc("message.get_since(since: datetime)", asynchronous=False)
def get_since(call: Call, since: DateTime) -> dict[str, Any]:
    db = call.pool.db
    records = {ref: db.record("message", ref) for ref in db.refs("message")}
    return {ref: record for ref, record in records.items() if record["timestamp"] > since}


def _check_object(call: Call, cls: str, uuid: str) -> None:
    """Raise UUID_INVALID [class, uuid] for an object that is not there."""
    if not any(call.pool.db.select(TABLES.get(cls, cls), uuid=uuid)):
        raise ApiError("UUID_INVALID", cls, uuid)
