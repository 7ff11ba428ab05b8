"""VDI: disks. Source: xapi: ocaml/xapi/xapi_vdi.ml, storage_smapiv1.ml; sm: libs/sm/drivers."""

from typing import Any

from xorepd.lab.dispatch import Call, rpc
from xorepd.lab.failures import ApiError
from xorepd.lab.generics import create_arguments
from xorepd.lab.operations import Claim
from xorepd.lab.rules import attached_pbds
from xorepd.lab.schema import words

INHERITED = words(
    "name_label name_description type sharable other_config xenstore_data tags on_boot"
    " allow_caching virtual_size"
)
"""What snapshots and clones take over from the VDI."""


@rpc("VDI.create(args: record VDI)")
async def create(call: Call, record: dict[str, Any]) -> str:
    fields = create_arguments("VDI", record)
    if fields["type"] == "cbt_metadata":
        raise ApiError("VDI_INCOMPATIBLE_TYPE", "", fields["type"])
    pool, sr = call.pool, fields["SR"]
    pool.db.row("SR", sr)
    if not attached_pbds(pool.db, sr):
        raise ApiError("SR_HAS_NO_PBDS", sr)
    async with pool.operations.hold(call.task, Claim("SR", sr, "vdi_create")):
        repository = pool.storage.of(sr)
        uuid = pool.db.new_uuid()
        size = await repository.change(repository.store.create, uuid, fields["virtual_size"])
        fields.update(uuid=uuid, location=uuid, virtual_size=size)
        ref = pool.db.create("VDI", **fields)
        await repository.reconcile()
    pool.operations.refresh("VDI", ref)
    return ref


@rpc("VDI.snapshot(vdi: ref VDI, driver_params: map string string = {})")
async def snapshot(call: Call, vdi: str, driver_params: dict[str, str]) -> str:
    now = call.pool.clock.now()
    return await _split(
        call, vdi, "snapshot", is_a_snapshot=True, snapshot_of=vdi, snapshot_time=now
    )


@rpc("VDI.clone(vdi: ref VDI, driver_params: map string string = {})")
async def clone(call: Call, vdi: str, driver_params: dict[str, str]) -> str:
    # Clones have a snapshot_time too; nothing else tells of their origin.
    return await _split(call, vdi, "clone", snapshot_time=call.pool.clock.now())


async def _split(call: Call, vdi: str, operation: str, **fields: Any) -> str:
    pool, db = call.pool, call.pool.db
    source = db.record("VDI", vdi)
    claims = (Claim("VDI", vdi, operation), Claim("SR", source["SR"], f"vdi_{operation}"))
    async with pool.operations.hold(call.task, *claims):
        repository, uuid = pool.storage.of_vdi(vdi)
        new, base_copy = db.new_uuid(), db.new_uuid()
        await repository.change(repository.store.split, uuid, new, base_copy)
        source = db.record("VDI", vdi)
        fields.update({name: source[name] for name in INHERITED})
        fields["cbt_enabled"] = source["cbt_enabled"] if operation == "snapshot" else False
        ref = db.create("VDI", uuid=new, location=new, SR=source["SR"], **fields)
        await repository.reconcile()
        # A file SR reports the source's size for the new leaf until the next scan.
        db.set("VDI", ref, physical_utilisation=source["physical_utilisation"])
    pool.operations.refresh("VDI", ref)
    return ref


@rpc("VDI.resize(vdi: ref VDI, size: int)")
async def resize(call: Call, vdi: str, size: int) -> None:
    pool = call.pool
    sr = pool.db.get("VDI", vdi, "SR")
    claims = (Claim("VDI", vdi, "resize"), Claim("SR", sr, "vdi_resize"))
    async with pool.operations.hold(call.task, *claims):
        repository, uuid = pool.storage.of_vdi(vdi)
        await repository.change(repository.store.resize, uuid, size)
        await repository.reconcile()


@rpc("VDI.destroy(self: ref VDI)")
async def destroy(call: Call, vdi: str) -> None:
    pool, db = call.pool, call.pool.db
    sr = db.get("VDI", vdi, "SR")
    claims = (Claim("VDI", vdi, "destroy"), Claim("SR", sr, "vdi_destroy"))
    async with pool.operations.hold(call.task, *claims):
        repository, uuid = pool.storage.of_vdi(vdi)
        await repository.change(repository.store.destroy, uuid)
        if db.exists("VDI", vdi):
            for vbd in db.get("VDI", vdi, "VBDs"):
                db.destroy("VBD", vbd)
            db.destroy("VDI", vdi)
        await repository.reconcile()
    repository.kick_collector()


@rpc("VDI.forget(vdi: ref VDI)")
async def forget(call: Call, vdi: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VDI", vdi, "forget")):
        call.pool.db.destroy("VDI", vdi)


@rpc("VDI.update(vdi: ref VDI)")
async def update(call: Call, vdi: str) -> None:
    async with call.pool.operations.hold(call.task, Claim("VDI", vdi, "update")):
        repository, _ = call.pool.storage.of_vdi(vdi)
        await repository.reconcile()


@rpc("VDI.set_name_label(self: ref VDI, value: string)")
def set_name_label(call: Call, vdi: str, value: str) -> None:
    call.pool.db.set("VDI", vdi, name_label=value)


@rpc("VDI.set_name_description(self: ref VDI, value: string)")
def set_name_description(call: Call, vdi: str, value: str) -> None:
    call.pool.db.set("VDI", vdi, name_description=value)


@rpc("VDI.set_read_only(self: ref VDI, value: bool)")
def set_read_only(call: Call, vdi: str, value: bool) -> None:
    call.pool.db.set("VDI", vdi, read_only=value)


@rpc("VDI.set_sharable(self: ref VDI, value: bool)")
def set_sharable(call: Call, vdi: str, value: bool) -> None:
    call.pool.db.set("VDI", vdi, sharable=value)


@rpc("VDI.set_allow_caching(self: ref VDI, value: bool)")
def set_allow_caching(call: Call, vdi: str, value: bool) -> None:
    call.pool.db.set("VDI", vdi, allow_caching=value)


@rpc("VDI.set_on_boot(self: ref VDI, value: on_boot)")
async def set_on_boot(call: Call, vdi: str, value: str) -> None:
    sr = call.pool.db.get("VDI", vdi, "SR")
    async with call.pool.operations.hold(call.task, Claim("SR", sr, "vdi_set_on_boot")):
        if call.pool.db.get("VDI", vdi, "cbt_enabled"):
            raise ApiError("VDI_CBT_ENABLED", vdi)
        call.pool.db.set("VDI", vdi, on_boot=value)
