"""VDI: disks. Source: xapi: ocaml/xapi/xapi_vdi.ml, storage_smapiv1.ml; sm: libs/sm/drivers."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.generics import create_arguments
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.storage.attachments import active_hosts
from xorepd_lab.classes.storage.vdi_copy import copy_data
from xorepd_lab.classes.storage.vdi_fields import check_known
from xorepd_lab.disks.storage import Repository
from xorepd_lab.model.failures import (
    NULL,
    ApiError,
    backend_failure,
    incompatible_type,
    internal_error,
)
from xorepd_lab.model.schema import words
from xorepd_lab.rules.storage_rules import check_plugged, check_served

INHERITED = words(
    "name_label name_description type sharable other_config xenstore_data tags on_boot"
    " allow_caching virtual_size"
)
"""What snapshots and clones take over from the VDI."""
KEPT_BY_DRIVERS = ("base_mirror", "key_hash", "type")
"""Keys of `sm_config` that a new VDI keeps; drivers drop all others a client gives, but not LVM's.

Source: sm: libs/sm/VDI.py (SM_CONFIG_PASS_THROUGH_FIELDS), libs/sm/drivers/FileSR.py (create),
LVHDSR.py (create)."""

_IMAGE = re.compile(r"[a-z0-9.-]+\.(iso|img)", re.IGNORECASE)


@rpc("VDI.create(args: record VDI)")
async def create(call: Call, record: dict[str, Any]) -> str:
    fields = create_arguments("VDI", record)
    pool, sr = call.pool, fields["SR"]
    async with pool.operations.hold(call.task, Claim("SR", sr, "vdi_create")):
        check_plugged(pool.db, sr)
        if fields["type"] == "cbt_metadata":
            raise incompatible_type("", fields["type"])
        repository = pool.storage.of(sr)
        given = fields["sm_config"]
        uuid = location = pool.db.new_uuid()
        if repository.space.kind.images:
            location = _image_name(uuid, given)
            fields["sm_config"] = {**given, "created": pool.clock.now()}
            if any(pool.db.select("VDI", SR=sr, location=location)):
                raise backend_failure(43)
        elif not repository.space.is_lvm:
            fields["sm_config"] = {key: given[key] for key in KEPT_BY_DRIVERS if key in given}
        repository.space.check_new(fields)
        size = await repository.change(repository.store.create, uuid, fields["virtual_size"])
        fields.update(uuid=uuid, location=location, virtual_size=size)
        ref = pool.db.create("VDI", **fields)
        await repository.follow(uuid)
    pool.operations.refresh("VDI", ref)
    return ref


def _image_name(uuid: str, sm_config: Mapping[str, str]) -> str:
    """Return the name of a new image's file. Source: sm: libs/sm/drivers/ISOSR.py (vdi)."""
    name = sm_config.get("path", f"{uuid}.img")
    if not _IMAGE.fullmatch(name):
        raise backend_failure(78, f'Invalid path "{name}"')
    return name


@rpc("VDI.snapshot(vdi: ref VDI, driver_params: map string string = {})")
async def snapshot(call: Call, vdi: str, driver_params: dict[str, str]) -> str:
    now = call.pool.clock.now()
    return await split(
        call, vdi, "snapshot", is_a_snapshot=True, snapshot_of=vdi, snapshot_time=now
    )


@rpc("VDI.clone(vdi: ref VDI, driver_params: map string string = {})")
async def clone(call: Call, vdi: str, driver_params: dict[str, str]) -> str:
    # Clones have a snapshot_time too; nothing else tells of their origin.
    try:
        return await split(call, vdi, "clone", snapshot_time=call.pool.clock.now())
    except ApiError as error:
        if error.code != "UNIMPLEMENTED_IN_SM_BACKEND":
            raise
    # The driver cannot: xapi makes a new VDI and copies.
    return await _copy_instead(call, vdi)


async def _copy_instead(call: Call, vdi: str) -> str:
    source = call.pool.db.record("VDI", vdi)
    kept = words(
        "SR name_label name_description virtual_size type sharable read_only other_config"
        " xenstore_data"
    )
    new: str = await perform(call, "VDI.create", {name: source[name] for name in kept})
    try:
        await copy_data(call, vdi, new, None)
    except ApiError:
        await perform(call, "VDI.destroy", new)
        raise
    return new


async def split(
    call: Call, vdi: str, operation: str, inherited: Iterable[str] = INHERITED, **fields: Any
) -> str:
    """Make a snapshot or a clone, as the storage layer does, and return it.

    Args:
        inherited: What it has of the VDI's fields.
    """
    pool, db = call.pool, call.pool.db
    async with _held(call, vdi, operation) as (repository, uuid):
        new, base_copy = db.new_uuid(), db.new_uuid()
        repository.space.check_split(vdi, operation)
        logs = repository.store.logs
        tracked = operation == "snapshot" and logs.has(uuid)
        async with repository.paused(vdi):
            await repository.change(
                repository.store.split,
                uuid,
                new,
                base_copy,
                give_log=tracked,
                in_use=bool(active_hosts(pool, vdi)),
            )
        source = db.record("VDI", vdi)
        fields.update({name: source[name] for name in inherited})
        fields["sm_config"] = repository.space.carried(source["sm_config"])
        fields["cbt_enabled"] = logs.has(new)
        ref = db.create("VDI", uuid=new, location=new, SR=source["SR"], **fields)
        await repository.reconcile()
        if tracked and not logs.has(uuid):
            text = f"Creating CBT metadata log for disk {uuid} failed."
            repository.lose_log(vdi, "VDI_CBT_SNAPSHOT_FAILED", text)
        if not repository.space.is_lvm:
            # A file SR reports the source's size for the new leaf until the next scan.
            db.set("VDI", ref, physical_utilisation=source["physical_utilisation"])
    pool.operations.refresh("VDI", ref)
    return ref


@rpc("VDI.resize(vdi: ref VDI, size: int)")
async def resize(call: Call, vdi: str, size: int) -> None:
    async with _held(call, vdi, "resize") as (repository, uuid):
        repository.space.check_growth(vdi, size)
        tracked = repository.store.logs.has(uuid)
        await repository.change(repository.store.resize, uuid, size)
        if tracked and not repository.store.logs.has(uuid):
            text = f"Resizing of CBT metadata for disk {uuid} failed."
            repository.lose_log(vdi, "VDI_CBT_RESIZE_FAILED", text)
        await repository.reconcile()


@rpc("VDI.revert(snapshot: ref VDI)", newer=True)
async def revert(call: Call, snapshot: str) -> None:
    """Refuse: no driver of the lab, nor of sm, has what it takes."""
    sr = call.pool.db.get("VDI", snapshot, "SR")
    claims = (Claim("SR", sr, "vdi_revert"), Claim("VDI", snapshot, "revert_to"))
    async with call.pool.operations.hold(call.task, *claims):
        raise ApiError("UNIMPLEMENTED_IN_SM_BACKEND", sr)


@rpc("VDI.destroy(self: ref VDI)")
async def destroy(call: Call, vdi: str) -> None:
    db = call.pool.db
    async with _held(call, vdi, "destroy") as (repository, uuid):
        if repository.store.exists(uuid):
            await repository.change(repository.store.destroy, uuid)
        else:
            await _destroy_metadata(repository, uuid)
        if db.exists("VDI", vdi):
            for vbd in db.get("VDI", vdi, "VBDs"):
                db.destroy("VBD", vbd)
            db.destroy("VDI", vdi)
        for vm in list(db.select("VM", suspend_VDI=vdi)):
            db.set("VM", vm, suspend_VDI=NULL)
        await repository.reconcile()
    repository.garbage.kick()


async def _destroy_metadata(repository: Repository, uuid: str) -> None:
    """Delete a log whose disk is gone already.

    Drivers of file SRs take it for the VDI's own file and unlink it before they look for a log to
    merge: what is before it and behind it becomes unrelated.

    Source: sm: libs/sm/drivers/FileSR.py (delete), LVHDSR.py (delete).
    """
    logs = repository.store.logs
    await repository.change(logs.merge if repository.space.is_lvm else logs.remove, uuid)


@rpc("VDI.forget(vdi: ref VDI)")
async def forget(call: Call, vdi: str) -> None:
    """Drop the record; what stands on the SR comes back with the next scan."""
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VDI", vdi, "forget")):
        for vbd in db.get("VDI", vdi, "VBDs"):
            db.destroy("VBD", vbd)
        db.destroy("VDI", vdi)


@rpc("VDI.update(vdi: ref VDI)")
async def update(call: Call, vdi: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VDI", vdi, "update")):
        check_plugged(call.pool.db, call.pool.db.get("VDI", vdi, "SR"))
        check_known(call, vdi)
        repository, _ = call.pool.storage.of_vdi(vdi)
        await repository.refresh(vdi)


_INTRODUCE = (
    "VDI.introduce(uuid: string, name_label: string, name_description: string, SR: ref SR,"
    " type: vdi_type, sharable: bool, read_only: bool, other_config: map string string,"
    " location: string, xenstore_data: map string string = {}, sm_config: map string string = {},"
    " managed: bool = true, virtual_size: int = 0, physical_utilisation: int = 0,"
    ' metadata_of_pool: ref pool = "", is_a_snapshot: bool = false,'
    ' snapshot_time: datetime = "19700101T00:00:00Z", snapshot_of: ref VDI = "")'
)


@rpc(_INTRODUCE)
async def introduce(call: Call, *arguments: Any) -> str:
    """Refuse: no driver of an SR whose files the lab keeps can introduce VDIs, a scan does."""
    sr, location = arguments[3], arguments[8]
    async with call.pool.operations.hold(call.task, Claim("SR", sr, "vdi_introduce")):
        check_plugged(call.pool.db, sr)
        for vdi in call.pool.db.select("VDI", SR=sr, location=location):
            if call.pool.db.get("VDI", vdi, "uuid") != arguments[0]:
                raise ApiError("LOCATION_NOT_UNIQUE", sr, location)
        raise internal_error(
            f"Storage_interface.Storage_error ([S(Vdi_does_not_exist);S({location})])"
        )


@rpc("VDI.force_unlock(vdi: ref VDI)")
async def force_unlock(call: Call, vdi: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VDI", vdi, "force_unlock")):
        raise ApiError("MESSAGE_DEPRECATED")


@asynccontextmanager
async def _held(
    call: Call, vdi: str, operation: str, on_sr: str | None = None
) -> AsyncIterator[tuple[Repository, str]]:
    """Hold a VDI and its SR, and give where it is stored and its UUID.

    Args:
        on_sr: What the SR calls the operation, if not by the same name.
    """
    pool = call.pool
    sr = pool.db.get("VDI", vdi, "SR")
    claims = (Claim("SR", sr, on_sr or f"vdi_{operation}"), Claim("VDI", vdi, operation))
    async with pool.operations.hold(call.task, *claims):
        check_served(pool.db, vdi)
        yield pool.storage.of_vdi(vdi)
