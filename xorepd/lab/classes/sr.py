"""SR and PBD: storage and how hosts reach it.

Source: xapi: ocaml/xapi/xapi_sr.ml, xapi_pbd.ml, ocaml/idl/datamodel.ml.
"""

from typing import Any

from xorepd.lab.dispatch import Call, rpc
from xorepd.lab.failures import ApiError
from xorepd.lab.generics import create_arguments
from xorepd.lab.operations import Claim
from xorepd.lab.rules import attached_pbds


@rpc("SR.scan(sr: ref SR)")
async def scan(call: Call, sr: str) -> None:
    await _follow_files(call, sr, "scan")
    call.pool.storage.of(sr).kick_collector()


@rpc("SR.update(sr: ref SR)")
async def update(call: Call, sr: str) -> None:
    await _follow_files(call, sr, "update")


async def _follow_files(call: Call, sr: str, operation: str) -> None:
    call.pool.db.row("SR", sr)
    if not attached_pbds(call.pool.db, sr):
        raise ApiError("SR_HAS_NO_PBDS", sr)
    repository = call.pool.storage.of(sr)
    async with call.pool.operations.hold(call.task, Claim("SR", sr, operation)):
        await repository.reconcile(scan=operation == "scan")


@rpc("PBD.create(args: record PBD)")
def create_pbd(call: Call, record: dict[str, Any]) -> str:
    fields = create_arguments("PBD", record)
    call.pool.db.row("SR", fields["SR"])
    call.pool.db.row("host", fields["host"])
    return call.pool.db.create("PBD", **fields)


@rpc("PBD.destroy(self: ref PBD)")
def destroy_pbd(call: Call, pbd: str) -> None:
    if call.pool.db.get("PBD", pbd, "currently_attached"):
        raise ApiError("OPERATION_NOT_ALLOWED", "PBD is currently attached")
    call.pool.db.destroy("PBD", pbd)


@rpc("PBD.plug(self: ref PBD)")
def plug(call: Call, pbd: str) -> None:
    call.pool.db.set("PBD", pbd, currently_attached=True)
    refresh_sr(call, call.pool.db.get("PBD", pbd, "SR"))


@rpc("PBD.unplug(self: ref PBD)")
def unplug(call: Call, pbd: str) -> None:
    db = call.pool.db
    record = db.record("PBD", pbd)
    for vdi in db.select("VDI", SR=record["SR"]):
        for vbd in db.select("VBD", VDI=vdi, currently_attached=True):
            if db.get("VM", db.get("VBD", vbd, "VM"), "resident_on") == record["host"]:
                raise ApiError("VDI_IN_USE", vdi)
    db.set("PBD", pbd, currently_attached=False)
    refresh_sr(call, record["SR"])


def refresh_sr(call: Call, sr: str) -> None:
    """Compute the allowed operations of an SR and its VDIs anew."""
    call.pool.operations.refresh("SR", sr)
    for vdi in call.pool.db.get("SR", sr, "VDIs"):
        call.pool.operations.refresh("VDI", vdi)
