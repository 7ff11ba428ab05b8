"""The fields of a replica's VM record, brought up to those of its source."""

from __future__ import annotations

from xorepd.ids import Ref
from xorepd.replication.deciding.vm_record import MEMORY, PLAIN_SETTERS, VCPUS, Raw
from xorepd.xapi.pool import Pool


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
