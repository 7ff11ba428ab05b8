"""VDIs in use: by running VMs, and by the control domain while a stream runs.

Checks between VMs exempt control domains, so writing into a running VM's disk is *not* refused here
either; only the storage layer's own table decides:

    second attach        same host                     other host
    RO on RO             fine                          fine
    RO on RW             fine, inconsistent data       SR_BACKEND_FAILURE_46
    RW on RW             fine, corruption              SR_BACKEND_FAILURE_46
    RW on RO             INTERNAL_ERROR                SR_BACKEND_FAILURE_46

Source: xapi: ocaml/xapi/xapi_vbd_helpers.ml, sm_fs_ops.ml, ocaml/xapi-idl/storage/vdi_automaton.ml;
sm: libs/sm/blktap2.py.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from xorepd.lab.failures import ApiError, backend_failure, internal_error
from xorepd.lab.rules import hosts_of

if TYPE_CHECKING:
    from xorepd.lab.pools import Pool

ATTACH_S = 0.5
"""Order of a second in reality; not measured."""


def device_name(userdevice: str) -> str:
    """Return what the guest calls a disk: 0 is xvda."""
    number = int(userdevice)
    letters = "abcdefghijklmnopqrstuvwxyz"
    if number < len(letters):
        return f"xvd{letters[number]}"
    return f"xvd{letters[number // 26 - 1]}{letters[number % 26]}"


def free_userdevice(pool: "Pool", vm: str) -> str:
    taken = {pool.db.get("VBD", vbd, "userdevice") for vbd in pool.db.get("VM", vm, "VBDs")}
    return next(str(n) for n in range(255) if str(n) not in taken)


def check_attach(pool: "Pool", vdi: str, host: str, mode: str) -> None:
    """Raise what the storage layer says to attaching a VDI on a host, see the table above."""
    db = pool.db
    if not db.get("VDI", vdi, "managed"):
        raise ApiError("VDI_NOT_MANAGED", vdi)
    sr = db.get("VDI", vdi, "SR")
    if host not in hosts_of(db, sr):
        raise ApiError("SR_HAS_NO_PBDS", sr)
    present: set[str] = set()
    for vbd in db.select("VBD", VDI=vdi, currently_attached=True):
        vm = db.get("VBD", vbd, "VM")
        there = db.get("VBD", vbd, "mode")
        if db.get("VM", vm, "resident_on") == host:
            present.add(there)
        elif "RW" in (mode, there):
            uuid = db.get("VDI", vdi, "uuid")
            raise backend_failure(46, f"VDI {uuid} not detached cleanly")
    if mode == "RW" and present == {"RO"}:
        raise internal_error(
            "Storage_interface.Storage_error ([S(Illegal_transition);[[S(Attached);S(RO)];"
            "[S(Attached);S(RW)]]])"
        )


def activate(pool: "Pool", vdi: str, mode: str) -> None:
    """Note that somebody may write now: the content loses its fingerprint."""
    if mode == "RW":
        pool.db.drop("VDI", vdi, "other_config", "content_id")


def deactivate(pool: "Pool", vdi: str, mode: str) -> None:
    db = pool.db
    if mode == "RW" and db.exists("VDI", vdi):
        still = any(
            db.get("VBD", vbd, "mode") == "RW"
            for vbd in db.select("VBD", VDI=vdi, currently_attached=True)
        )
        if not still and "content_id" not in db.get("VDI", vdi, "other_config"):
            db.put("VDI", vdi, "other_config", "content_id", db.new_uuid())


@asynccontextmanager
async def attached_to_dom0(pool: "Pool", host: str, vdi: str, mode: str) -> AsyncIterator[None]:
    """Hold a VDI attached to a host's control domain while the block runs."""
    db = pool.db
    dom0 = db.get("host", host, "control_domain")
    check_attach(pool, vdi, host, mode)
    userdevice = free_userdevice(pool, dom0)
    vbd = db.create(
        "VBD",
        VM=dom0,
        VDI=vdi,
        userdevice=userdevice,
        device=device_name(userdevice),
        mode=mode,
        type="Disk",
        unpluggable=True,
        currently_attached=True,
    )
    pool.operations.refresh_vbd(vbd)
    activate(pool, vdi, mode)
    try:
        await pool.clock.nap(ATTACH_S)
        yield
    finally:
        if db.exists("VBD", vbd):
            db.set("VBD", vbd, currently_attached=False)
            db.destroy("VBD", vbd)
        deactivate(pool, vdi, mode)
        pool.operations.refresh("VDI", vdi)
