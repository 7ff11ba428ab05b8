"""subject: users of the directory service whom the pool lets in.

Source: xapi: ocaml/xapi/xapi_subject.ml.
"""

from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.generics import create_arguments
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.roles import role_name


@rpc("subject.create(args: record subject)")
def create(call: Call, record: dict[str, Any]) -> str:
    """Add a subject, without roles."""
    fields = create_arguments("subject", record)
    identifier = fields["subject_identifier"]
    if any(call.pool.db.select("subject", subject_identifier=identifier)):
        raise ApiError("SUBJECT_ALREADY_EXISTS")
    return call.pool.db.create("subject", **fields)


@rpc("subject.destroy(self: ref subject)")
def destroy(call: Call, subject: str) -> None:
    """Remove a subject; sessions that are open stay as they are."""
    call.pool.db.destroy("subject", subject)


@rpc("subject.add_to_roles(self: ref subject, role: ref role)", asynchronous=False)
def add_to_roles(call: Call, subject: str, role: str) -> None:
    """Give a role; it counts from the next login on."""
    roles = call.pool.db.get("subject", subject, "roles")
    if role_name(role) is None:
        raise ApiError("ROLE_NOT_FOUND")
    if role in roles:
        raise ApiError("ROLE_ALREADY_EXISTS")
    call.pool.db.set("subject", subject, roles=[*roles, role])


@rpc("subject.remove_from_roles(self: ref subject, role: ref role)", asynchronous=False)
def remove_from_roles(call: Call, subject: str, role: str) -> None:
    roles = call.pool.db.get("subject", subject, "roles")
    if role not in roles:
        raise ApiError("ROLE_NOT_FOUND")
    call.pool.db.set("subject", subject, roles=[each for each in roles if each != role])


@rpc("subject.get_permissions_name_label(self: ref subject)", asynchronous=False)
def get_permissions_name_label(call: Call, subject: str) -> list[str]:
    return call.pool.sessions.of_subject(subject)
