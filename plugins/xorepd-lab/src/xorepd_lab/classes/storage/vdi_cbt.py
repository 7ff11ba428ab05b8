"""VDI: changed-block tracking. What the logs are and how they hang together is in `cbt`.

Source: xapi: ocaml/xapi/xapi_vdi.ml, storage_smapiv1.ml; sm: libs/sm/VDI.py
(configure_blocktracking, list_changed_blocks, data_destroy).
"""

import asyncio
from base64 import b64encode

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.storage.attachments import active_hosts
from xorepd_lab.disks.storage import Repository
from xorepd_lab.model.failures import NULL, ApiError, backend_failure, internal_error
from xorepd_lab.rules.storage_rules import check_plugged, check_served

DATA_DESTROY_WAITS_S = 4.0
NO_CONTENT = "/No content: this is a cbt_metadata VDI/"
FEATURE = "CBT"


@rpc("VDI.enable_cbt(self: ref VDI)")
async def enable(call: Call, vdi: str) -> None:
    await _configure(call, vdi, "enable_cbt")


@rpc("VDI.disable_cbt(self: ref VDI)")
async def disable(call: Call, vdi: str) -> None:
    await _configure(call, vdi, "disable_cbt")


async def _configure(call: Call, vdi: str, operation: str) -> None:
    pool, db = call.pool, call.pool.db
    claims = (
        Claim("SR", db.get("VDI", vdi, "SR"), f"vdi_{operation}"),
        Claim("VDI", vdi, operation),
    )
    async with pool.operations.hold(call.task, *claims):
        check_served(db, vdi)
        restrictions = db.get("pool", next(db.select("pool")), "restrictions")
        wanted = operation == "enable_cbt"
        if wanted and restrictions.get("restrict_cbt") == "true":
            raise ApiError("LICENCE_RESTRICTION", FEATURE)
        if db.get("VDI", vdi, "cbt_enabled") == wanted:
            return
        repository, uuid = pool.storage.of_vdi(vdi)
        if not repository.space.kind.is_vhd(db.get("VDI", vdi, "sm_config")):
            raise backend_failure(66, "Raw VDI or snapshot not permitted")
        if wanted:
            _check_room(repository)
        async with repository.paused(vdi):
            if wanted:
                in_use = bool(active_hosts(pool, vdi))
                await repository.change(repository.store.track, uuid, in_use)
            else:
                await repository.change(repository.store.untrack, uuid)
        db.set("VDI", vdi, cbt_enabled=wanted)


def _check_room(repository: Repository) -> None:
    try:
        repository.space.check_log()
    except ApiError as error:
        raise backend_failure(457, error.params[1]) from error


@rpc("VDI.list_changed_blocks(vdi_from: ref VDI, vdi_to: ref VDI)")
async def list_changed_blocks(call: Call, vdi_from: str, vdi_to: str) -> str:
    """Return base64 of one bit per 64 KiB of `vdi_to`, the highest bit of a byte first."""
    pool, db = call.pool, call.pool.db
    sr = db.get("VDI", vdi_to, "SR")
    claims = (
        Claim("SR", sr, "vdi_list_changed_blocks"),
        Claim("VDI", vdi_to, "list_changed_blocks"),
    )
    async with pool.operations.hold(call.task, *claims):
        check_plugged(db, sr)
        older = db.record("VDI", vdi_from)
        if older["SR"] != sr:
            raise internal_error(
                "Storage_interface.Storage_error ([S(Internal_error);S(Not_found)])"
            )
        repository, newer = pool.storage.of_vdi(vdi_to)
        repository.check_file(vdi_from)
        bitmap = await repository.change(repository.store.logs.changed, older["uuid"], newer)
    return b64encode(bitmap).decode()


@rpc("VDI.data_destroy(self: ref VDI)")
async def data_destroy(call: Call, vdi: str) -> None:
    """Delete what a snapshot holds, and keep what says how it differs from others."""
    pool, db = call.pool, call.pool.db
    claims = (
        Claim("SR", db.get("VDI", vdi, "SR"), "vdi_data_destroy"),
        Claim("VDI", vdi, "data_destroy"),
    )
    async with pool.operations.hold(call.task, *claims):
        kind = db.get("VDI", vdi, "type")
        if kind == "cbt_metadata":
            return
        # At once, so that nobody makes a VBD of it while we wait for the last one to go.
        db.set("VDI", vdi, type="cbt_metadata")
        try:
            await _destroy_data(call, vdi)
        except BaseException:
            if db.exists("VDI", vdi):
                db.set("VDI", vdi, type=kind)
            raise
    pool.operations.refresh("VDI", vdi)


async def _destroy_data(call: Call, vdi: str) -> None:
    pool, db = call.pool, call.pool.db
    check_served(db, vdi)
    await _wait_for_vbds(call, vdi)
    repository, uuid = pool.storage.of_vdi(vdi)
    await repository.change(repository.store.destroy_data, uuid)
    db.put("VDI", vdi, "other_config", "content_id", NO_CONTENT)
    for vm in list(db.select("VM", suspend_VDI=vdi)):
        db.set("VM", vm, suspend_VDI=NULL)
    await repository.reconcile()
    repository.garbage.kick()


async def _wait_for_vbds(call: Call, vdi: str) -> None:
    """Wait until all VBDs of a VDI are destroyed; VDI_IN_USE when they are not after 4 s."""
    db = call.pool.db
    try:
        async with asyncio.timeout(call.pool.clock.scaled(DATA_DESTROY_WAITS_S)):
            while db.get("VDI", vdi, "VBDs"):
                await db.changed()
    except TimeoutError:
        raise ApiError("VDI_IN_USE", vdi, "data_destroy") from None
