"""VTPM: the virtual TPM of a VM, whose contents only the local root may see.

XAPI keeps the contents in a `secret` that a field without getter points to. The lab derives the
reference of that secret from the VTPM's UUID, so that nothing points anywhere in the open.

Source: xapi: ocaml/xapi/xapi_vtpm.ml, message_forwarding.ml.
"""

import base64
import binascii
import uuid as uuids

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import ApiError, internal_error
from xorepd_lab.model.registry import Registry
from xorepd_lab.rules.vm_rules import check_power_state


@rpc("VTPM.create(vM: ref VM, is_unique: bool = false)")
async def create(call: Call, vm: str, is_unique: bool) -> str:
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "create_vtpm")):
        restrictions = db.get("pool", next(db.select("pool")), "restrictions")
        if restrictions.get("restrict_vtpm") != "false":
            raise ApiError("FEATURE_RESTRICTED", "restrict_vtpm")
        return introduce(db, vm, is_unique)


@rpc("VTPM.destroy(self: ref VTPM)")
def destroy(call: Call, vtpm: str) -> None:
    db = call.pool.db
    vm = db.get("VTPM", vtpm, "VM")
    # Unlike what the allowed operations say.
    check_power_state(vm, db.get("VM", vm, "power_state"), "Halted Suspended")
    remove(db, vtpm)
    call.pool.operations.refresh("VM", vm)


@rpc("VTPM.get_contents(self: ref VTPM)")
def get_contents(call: Call, vtpm: str) -> str:
    return contents_of(call.pool.db, vtpm)


@rpc("VTPM.set_contents(self: ref VTPM, contents: string)")
def set_contents(call: Call, vtpm: str, contents: str) -> None:
    """Replace the contents, given in base64."""
    call.pool.db.row("VTPM", vtpm)
    try:
        base64.b64decode(contents, validate=True)
    except (binascii.Error, ValueError) as error:
        raise internal_error(str(error)) from error
    _write(call.pool.db, vtpm, contents)


def introduce(db: Registry, vm: str, is_unique: bool, contents: str = "") -> str:
    """Make the VTPM of a VM, with contents in base64."""
    vtpm = db.create("VTPM", VM=vm, is_unique=is_unique)
    _write(db, vtpm, contents)
    state = db.get("VM", vm, "power_state")
    db.set("VTPM", vtpm, allowed_operations=["destroy"] if state == "Halted" else [])
    return vtpm


def copy(db: Registry, vtpm: str, vm: str) -> str:
    """Give another VM the same VTPM; a unique one comes empty."""
    is_unique = db.get("VTPM", vtpm, "is_unique")
    return introduce(db, vm, is_unique, "" if is_unique else contents_of(db, vtpm))


def remove(db: Registry, vtpm: str) -> None:
    """Drop a VTPM and its contents."""
    secret = _secret_of(db, vtpm)
    if db.exists("secret", secret):
        db.destroy("secret", secret)
    db.destroy("VTPM", vtpm)


def contents_of(db: Registry, vtpm: str) -> str:
    secret = _secret_of(db, vtpm)
    return str(db.get("secret", secret, "value")) if db.exists("secret", secret) else ""


def _secret_of(db: Registry, vtpm: str) -> str:
    uuid = uuids.UUID(db.get("VTPM", vtpm, "uuid"))
    return f"OpaqueRef:{uuids.uuid5(uuid, 'contents')}"


def _write(db: Registry, vtpm: str, contents: str) -> None:
    secret = _secret_of(db, vtpm)
    if db.exists("secret", secret):
        db.destroy("secret", secret)
    db.create("secret", ref=secret, value=contents)
