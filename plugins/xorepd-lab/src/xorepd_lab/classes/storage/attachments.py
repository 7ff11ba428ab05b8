"""VDIs in use: by running VMs, and by the control domain while a stream runs.

Checks between VMs exempt control domains, so writing into a running VM's disk is *not* refused here
either; only the storage layer's own table decides:

    second attach        same host                     other host
    RO on RO             fine                          fine
    RO on RW             fine, inconsistent data       SR_BACKEND_FAILURE_46
    RW on RW             fine, corruption              SR_BACKEND_FAILURE_46
    RW on RO             INTERNAL_ERROR                SR_BACKEND_FAILURE_46

A disk whose file is gone is SR_BACKEND_FAILURE_46 too, with another text.

Source: xapi: ocaml/xapi/xapi_vbd_helpers.ml, sm_fs_ops.ml, ocaml/xapi-idl/storage/vdi_automaton.ml;
sm: libs/sm/blktap2.py, libs/sm/drivers/FileSR.py (load).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from xorepd_lab.calls.call import Pool
from xorepd_lab.model.failures import ApiError, backend_failure, incompatible_type, internal_error
from xorepd_lab.rules.storage_rules import hosts_of

ATTACH_S = 0.5
"""Order of a second in reality; not measured."""
DETACH_S = 1.0
"""The same. So long after the last byte a VDI is still in use."""


def device_name(userdevice: str) -> str:
    """Return what the guest calls a disk: 0 is xvda."""
    number = int(userdevice)
    letters = "abcdefghijklmnopqrstuvwxyz"
    if number < len(letters):
        return f"xvd{letters[number]}"
    return f"xvd{letters[number // 26 - 1]}{letters[number % 26]}"


def free_userdevice(pool: Pool, vm: str) -> str:
    taken = {pool.db.get("VBD", vbd, "userdevice") for vbd in pool.db.get("VM", vm, "VBDs")}
    return next(str(n) for n in range(255) if str(n) not in taken)


def check_attach(pool: Pool, vdi: str, host: str, mode: str) -> None:
    """Raise what the storage layer says to attaching a VDI on a host, see the table above."""
    db = pool.db
    if not db.get("VDI", vdi, "managed"):
        raise ApiError("VDI_NOT_MANAGED", vdi)
    sr = db.get("VDI", vdi, "SR")
    if host not in hosts_of(db, sr):
        raise ApiError("SR_HAS_NO_PBDS", sr)
    if sr in pool.storage.repositories:
        pool.storage.repositories[sr].check_file(vdi)
    present: set[str] = set()
    for vbd in db.select("VBD", VDI=vdi, currently_attached=True):
        vm = db.get("VBD", vbd, "VM")
        there = db.get("VBD", vbd, "mode")
        if db.get("VM", vm, "power_state") == "Suspended":
            continue  # attached on paper only
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


def activate(pool: Pool, vdi: str, mode: str, host: str) -> None:
    """Note that somebody on a host may read a VDI now, or write.

    What is written to loses the fingerprint of its content. Its changed-block log counts as
    inconsistent until the last one is done; found so already, it is of no use any more.

    Source: sm: libs/sm/VDI.py (activate), libs/sm/blktap2.py (_add_tag).
    """
    db, key = pool.db, f"host_{host}"
    if mode == "RW":
        db.drop("VDI", vdi, "other_config", "content_id")
    if key in db.get("VDI", vdi, "sm_config"):
        return
    db.put("VDI", vdi, "sm_config", key, mode)
    repository = pool.storage.repositories.get(db.get("VDI", vdi, "SR"))
    uuid = db.get("VDI", vdi, "uuid")
    if mode == "RO" or repository is None or not repository.store.logs.has(uuid):
        return
    if repository.store.logs.is_consistent(uuid):
        repository.store.logs.set_consistent(uuid, False)
    else:
        text = f"Changed Block Tracking metadata is inconsistent for disk {uuid}."
        repository.lose_log(vdi, "VDI_CBT_METADATA_INCONSISTENT", text)


def deactivate(pool: Pool, vdi: str) -> None:
    """Note which hosts are done with a VDI: those on which nothing has it attached any more.

    Whoever was the last, reader or writer, leaves a consistent log and a fingerprint.

    Source: sm: libs/sm/VDI.py (deactivate); xapi: ocaml/xapi/storage_smapiv1.ml (deactivate).
    """
    db = pool.db
    if not db.exists("VDI", vdi):
        return
    for key in active_hosts(pool, vdi) - {f"host_{host}" for host in _users(pool, vdi)}:
        db.drop("VDI", vdi, "sm_config", key)
        if "content_id" not in db.get("VDI", vdi, "other_config"):
            db.put("VDI", vdi, "other_config", "content_id", db.new_uuid())
        repository = pool.storage.repositories.get(db.get("VDI", vdi, "SR"))
        if repository is not None:
            repository.store.logs.set_consistent(db.get("VDI", vdi, "uuid"), True)


def active_hosts(pool: Pool, vdi: str) -> set[str]:
    """Return the keys of `sm_config` that name the hosts where a VDI is attached."""
    return {key for key in pool.db.get("VDI", vdi, "sm_config") if key.startswith("host_")}


def release_all(pool: Pool) -> None:
    """Deactivate whatever nothing has attached any more, after VBDs went without a word."""
    for vdi in pool.db.refs("VDI"):
        if active_hosts(pool, vdi):
            deactivate(pool, vdi)


def _users(pool: Pool, vdi: str) -> set[str]:
    """Return the hosts whose domains have a VDI; a suspended VM's is attached on paper only."""
    db = pool.db
    vms = {db.get("VBD", vbd, "VM") for vbd in db.select("VBD", VDI=vdi, currently_attached=True)}
    records = [db.record("VM", vm) for vm in vms if db.exists("VM", vm)]
    return {vm["resident_on"] for vm in records if vm["power_state"] != "Suspended"}


@asynccontextmanager
async def attached_to_dom0(
    pool: Pool, host: str, vdi: str, mode: str, by_toolstack: bool = True
) -> AsyncIterator[None]:
    """Hold a VDI attached to a host's control domain while the block runs.

    The VBD is left when who attached it cannot detach it: nobody else ever does until the host has
    booted, but for a client that unplugs and destroys it.

    Args:
        by_toolstack: The toolstack of the host attaches it, and no other one after a restart
            detaches it. Otherwise a program beside it does, which can call any.

    Source: xapi: ocaml/xapi/attach_helpers.ml (with_vbds), ocaml/nbd/src/cleanup.ml.
    """
    db, toolstack = pool.db, pool.life.toolstack(host)
    dom0 = db.get("host", host, "control_domain")
    if db.get("VDI", vdi, "type") == "cbt_metadata":
        raise incompatible_type(vdi, "cbt_metadata")
    check_attach(pool, vdi, host, mode)
    if mode == "RW" and db.get("VDI", vdi, "read_only"):
        raise ApiError("VDI_READONLY", vdi)
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
    activate(pool, vdi, mode, host)
    try:
        await pool.clock.nap(ATTACH_S)
        try:
            yield
        except Exception:
            await pool.clock.nap(DETACH_S)
            raise
        await pool.clock.nap(DETACH_S)
    finally:
        same = not by_toolstack or pool.life.toolstack(host) == toolstack
        if same and pool.life.can_call(host):
            if db.exists("VBD", vbd):
                db.set("VBD", vbd, currently_attached=False)
                db.destroy("VBD", vbd)
            deactivate(pool, vdi)
            pool.operations.refresh("VDI", vdi)
