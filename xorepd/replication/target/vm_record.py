"""What a replica has beside disks and interfaces: the fields of its VM record, and its virtual TPM.

A guest's disk encryption needs the TPM. Its contents are secrets: they are handed from one pool to
the other and shown nowhere. XAPI gives them to the pool's own root account only; with any other the
replica keeps what it has, and the run says so. A TPM that holds something is never overwritten by
an empty one.

Source: xapi: ocaml/xapi/xapi_vtpm.ml, ocaml/idl/datamodel_vtpm.ml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from xorepd.errors import NotAllowed, XapiFailure
from xorepd.ids import Ref
from xorepd.replication.deciding.vm_record import MEMORY, PLAIN_SETTERS, VCPUS, Raw
from xorepd.xapi.pool import Pool

log = structlog.get_logger(__name__)


async def update_replica(pool: Pool, vm: Ref, wanted: Raw, previous: Raw | None = None) -> None:
    """Set the fields of an existing, halted replica to the source's; equal ones are not touched.

    Args:
        wanted: record of the source snapshot, or of a restore point to return to.
        previous: the record that the replica was set to before. A field that the source has not
            changed since then keeps its value here, even if a person has changed it.
    """
    present: Raw = await pool.call("VM.get_record", vm)

    def is_due(field: str) -> bool:
        if field not in wanted or field not in present or wanted[field] == present[field]:
            return False
        return previous is None or wanted[field] != previous.get(field)

    for field in PLAIN_SETTERS:
        if is_due(field):
            await pool.call(f"VM.set_{field}", vm, wanted[field])
    if any(is_due(field) for field in MEMORY):  # one by one they would break XAPI's order
        await pool.call("VM.set_memory_limits", vm, *(wanted[field] for field in MEMORY))
    if any(is_due(field) for field in VCPUS):
        await _update_vcpus(pool, vm, present, wanted)


async def _update_vcpus(pool: Pool, vm: Ref, present: Raw, wanted: Raw) -> None:
    """Keep at_startup ≤ max at every moment: raise max first, lower it last."""
    fields = list(VCPUS)
    if int(wanted["VCPUs_max"]) < int(present["VCPUs_at_startup"]):
        fields.reverse()
    for field in fields:
        if int(wanted[field]) != int(present[field]):
            await pool.call(f"VM.set_{field}", vm, int(wanted[field]))


async def carry_vtpm(source: Pool, origin: Mapping[str, Any], target: Pool, replica: Ref) -> None:
    """Give a halted VM the TPM that another VM or snapshot has; equal ones are not touched.

    A replica whose origin has none keeps its own: a person may have given it one.

    Args:
        origin: record of the VM or snapshot that it is taken from; older hosts know no TPMs.

    Raises:
        XapiError: it could be neither read nor written, and not for want of a role or a feature.
    """
    given = [Ref(vtpm) for vtpm in origin.get("VTPMs", ())]
    if not given:
        return
    try:
        contents: str = await source.call("VTPM.get_contents", given[0])
        if not contents:  # new, or unique to its VM: then its snapshots come with an empty one
            log.warning("vtpm.empty", pool=source.name, vm=origin["uuid"])
        present = (await target.call("VM.get_record", replica)).get("VTPMs", ())
        vtpm = present[0] if present else await target.call("VTPM.create", replica, False)
        if contents and await target.call("VTPM.get_contents", vtpm) != contents:
            await target.call("VTPM.set_contents", vtpm, contents)
    except NotAllowed as refused:
        log.warning("vtpm.not_copied", reason=str(refused))
    except XapiFailure as failure:
        if failure.code != "MESSAGE_METHOD_UNKNOWN":
            raise
        log.warning("vtpm.not_copied", reason=f"pool {target.name} knows no virtual TPMs")
