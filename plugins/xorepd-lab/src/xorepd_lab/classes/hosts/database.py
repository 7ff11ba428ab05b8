"""A pool's database as it lies on its master's disk, and a toolstack that comes back with that.

XAPI writes its database some time after each change. A toolstack that is killed in between has the
older one again: what was made since is not in it, what was destroyed since is, and every field is
as it was. The files of disks are another matter, and so are the VMs that run:

                     made since              destroyed since         changed since
    VM               not known               known again             runs or not as it did
    VDI              a file without record   a record without file   as it was, `content_id` as well
    generation       of the database: as it was, so that tokens of before are of the future

Source: xapi: ocaml/database/db_cache_impl.ml, ocaml/xapi/xapi_xenops.ml (on_xapi_restart).
"""

import json
from dataclasses import dataclass

from xorepd_lab.calls.call import Pool
from xorepd_lab.classes.storage.attachments import release_all
from xorepd_lab.classes.vm.domain import settle
from xorepd_lab.classes.vm.power import halt
from xorepd_lab.model.persistence import dump_registry, load_registry
from xorepd_lab.model.schema import words
from xorepd_lab.rules.placement import update_free_memory

OF_DOMAINS = words("power_state resident_on domid")
OF_DRIVES = words("VDI empty currently_attached device")


@dataclass(frozen=True, slots=True)
class _Domain:
    """What the hypervisor knows of a VM, whatever the database says."""

    fields: dict[str, object]
    drives: dict[str, dict[str, object]]


def save(pool: Pool) -> str:
    """Return the database as it is now."""
    return json.dumps(dump_registry(pool.db))


async def restore(pool: Pool, saved: str) -> None:
    """Give a pool a database of before; sessions and tasks are in none."""
    db, master = pool.db, pool.master
    domains = {vm: _domain(pool, vm) for vm in db.select("VM", is_control_domain=False)}
    db.empty()
    load_registry(db, json.loads(saved), gap=0)
    db.set("pool", next(db.select("pool")), master=master)
    for vm in list(db.select("VM", is_control_domain=False)):
        _resync(pool, vm, domains.get(vm))
    for host in db.refs("host"):
        update_free_memory(db, host)
    await pool.storage.resync()
    release_all(pool)
    for cls in ("SR", "VM", "VDI", "VBD"):
        for ref in db.refs(cls):
            pool.operations.refresh(cls, ref)
    settle(pool.internal_call())
    db.wake()


def _domain(pool: Pool, vm: str) -> _Domain | None:
    """Return what runs of a VM; None when nothing does."""
    db = pool.db
    record = db.record("VM", vm)
    if record["power_state"] not in ("Running", "Paused"):
        return None
    drives = {vbd: db.record("VBD", vbd) for vbd in record["VBDs"]}
    return _Domain(
        {name: record[name] for name in OF_DOMAINS},
        {vbd: {name: drive[name] for name in OF_DRIVES} for vbd, drive in drives.items()},
    )


def _resync(pool: Pool, vm: str, domain: _Domain | None) -> None:
    """Let a VM's record say whether it runs, and what it has attached."""
    db = pool.db
    if domain is None:
        if db.get("VM", vm, "power_state") in ("Running", "Paused"):
            halt(pool.internal_call(), vm)
        return
    db.set("VM", vm, **domain.fields)
    for vbd, drive in domain.drives.items():
        if not db.exists("VBD", vbd):
            continue
        db.set("VBD", vbd, **drive)
        vdi = str(drive["VDI"])
        if drive["currently_attached"] and db.exists("VDI", vdi):
            # It is attached as before. Nobody writes `content_id` anew, so that it may be wrong.
            key = f"host_{domain.fields['resident_on']}"
            db.put("VDI", vdi, "sm_config", key, db.get("VBD", vbd, "mode"))
