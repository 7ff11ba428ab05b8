"""role: the roles, and as roles without subroles all permissions. They are no rows of the database.

Source: xapi: ocaml/xapi/xapi_role.ml, ocaml/idl/ocaml_backend/gen_rbac.ml.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.signatures import method_names, rpc
from xorepd_lab.model.failures import ApiError, handle_invalid
from xorepd_lab.model.roles import ROLES, granted, permissions, role_ref, role_uuid
from xorepd_lab.wire.filters import parse_filter

DESCRIPTIONS = {
    "pool-admin": "May do everything",
    "pool-operator": "Manages hosts, storage, networks and other resources of the pool",
    "vm-power-admin": "Manages VMs, and decides where they run and how much they take",
    "vm-admin": "Manages VMs and templates",
    "vm-operator": "Starts, stops and uses VMs",
    "read-only": "Looks",
}


@cache
def _records(release: str) -> Mapping[str, dict[str, Any]]:
    """Return all records by reference, permissions first."""
    names = method_names(release)
    found: dict[str, dict[str, Any]] = {}
    for name in permissions(names):
        found[role_ref(name)] = _record(name, "A basic permission", [], internal=True)
    for role in reversed(ROLES):
        subroles = [role_ref(name) for name in sorted(granted(role, names))]
        found[role_ref(role)] = _record(role, DESCRIPTIONS[role], subroles, internal=False)
    return found


def _record(name: str, description: str, subroles: list[str], internal: bool) -> dict[str, Any]:
    return {
        "uuid": role_uuid(name),
        "name_label": name,
        "name_description": description,
        "subroles": subroles,
        "is_internal": internal,
    }


def _all(call: Call) -> Mapping[str, dict[str, Any]]:
    return _records(call.pool.db.release)


@rpc("role.get_record(self: ref role)", asynchronous=False)
def get_record(call: Call, role: str) -> dict[str, Any]:
    found = _all(call).get(role)
    if found is None:
        raise handle_invalid("role", role)
    return found


@rpc("role.get_all()", asynchronous=False)
def get_all(call: Call) -> list[str]:
    return list(_all(call))


@rpc("role.get_all_records()", asynchronous=False)
def get_all_records(call: Call) -> dict[str, Any]:
    return dict(_all(call))


@rpc("role.get_all_records_where(expr: string)", asynchronous=False)
def get_all_records_where(call: Call, expr: str) -> dict[str, Any]:
    """Return what an expression selects; XAPI itself knows two of its own making as well."""
    if expr in ("subroles<>[]", "subroles=[]"):
        wanted = expr == "subroles<>[]"
        return {ref: each for ref, each in _all(call).items() if bool(each["subroles"]) == wanted}
    matches = parse_filter(expr)
    return {ref: record for ref, record in _all(call).items() if matches(record)}


@rpc("role.get_all_where(expr: string)", asynchronous=False, newer=True)
def get_all_where(call: Call, expr: str) -> list[str]:
    return list(get_all_records_where(call, expr))


@rpc("role.get_by_uuid(uuid: string)", asynchronous=False)
def get_by_uuid(call: Call, uuid: str) -> str:
    ref = f"OpaqueRef:{uuid}"
    if ref not in _all(call):
        raise ApiError("UUID_INVALID", "role", uuid)
    return ref


@rpc("role.get_by_name_label(label: string)", asynchronous=False)
def get_by_name_label(call: Call, label: str) -> list[str]:
    ref = role_ref(label)
    return [ref] if ref in _all(call) else []


def _declare_getter(field: str) -> None:
    def getter(call: Call, role: str) -> Any:
        return get_record(call, role)[field]

    rpc(f"role.get_{field}(self: ref role)", asynchronous=False)(getter)


for _field in ("uuid", "name_label", "name_description", "subroles", "is_internal"):
    _declare_getter(_field)


@rpc("role.get_permissions(self: ref role)", asynchronous=False)
def get_permissions(call: Call, role: str) -> list[str]:
    subroles: list[str] = get_record(call, role)["subroles"]
    return subroles if subroles else [role]


@rpc("role.get_permissions_name_label(self: ref role)", asynchronous=False)
def get_permissions_name_label(call: Call, role: str) -> list[str]:
    return [str(get_record(call, ref)["name_label"]) for ref in get_permissions(call, role)]


@rpc("role.get_by_permission(permission: ref role)", asynchronous=False)
def get_by_permission(call: Call, permission: str) -> list[str]:
    return _with_permission(call, permission)


@rpc("role.get_by_permission_name_label(label: string)", asynchronous=False)
def get_by_permission_name_label(call: Call, label: str) -> list[str]:
    return _with_permission(call, role_ref(label))


def _with_permission(call: Call, permission: str) -> list[str]:
    return [ref for ref, record in _all(call).items() if permission in record["subroles"]]
