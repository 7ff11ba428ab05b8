"""VM.provision: a copy of a template becomes a VM with the disks that the template asks for.

Source: xapi: ocaml/xapi/xapi_vm.ml (provision), xapi_templates.ml.
"""

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.classes.vm.copies import OWNER
from xorepd_lab.classes.vm.records import make_vm
from xorepd_lab.model.failures import ApiError
from xorepd_lab.wire.provision import DISKS_KEY, SCRIPT_KEY, WantedDisk, read_disks


@rpc("VM.provision(vm: ref VM)")
async def provision(call: Call, vm: str) -> None:
    """Make the disks and forget the wish for them; no script runs, a host of the lab has none."""
    db = call.pool.db
    async with call.pool.operations.hold(call.task, Claim("VM", vm, "provision")):
        wanted = db.get("VM", vm, "other_config").get(DISKS_KEY)
        disks = read_disks(wanted) if wanted is not None else []
        make_vm(call, vm)
        made: list[tuple[str, str]] = []
        try:
            for disk in disks:
                made += [await _make_disk(call, vm, disk)]
        except ApiError:
            for vbd, vdi in made:
                await perform(call, "VBD.destroy", vbd)
                await perform(call, "VDI.destroy", vdi)
            raise
        for key in (DISKS_KEY, SCRIPT_KEY):
            db.drop("VM", vm, "other_config", key)


async def _make_disk(call: Call, vm: str, disk: WantedDisk) -> tuple[str, str]:
    """Make one disk; return its VBD and VDI."""
    db = call.pool.db
    sr = next(db.select("SR", uuid=disk.sr), None)
    if sr is None:
        raise ApiError("UUID_INVALID", "sr", disk.sr)
    vdi = {
        "SR": sr,
        "name_label": "",
        "name_description": "Created by template provisioner",
        "virtual_size": disk.size,
        "type": disk.type,
        "sharable": False,
        "read_only": False,
        "other_config": {},
        "sm_config": {"vmhint": db.get("VM", vm, "uuid")},
    }
    vdi_ref = str(await perform(call, "VDI.create", vdi))
    vbd = {
        "VM": vm,
        "VDI": vdi_ref,
        "userdevice": disk.device,
        "bootable": disk.bootable,
        "mode": "RW",
        "type": "Disk",
        "unpluggable": disk.type != "system",
        "empty": False,
        "other_config": {OWNER: ""},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
    }
    vbd_ref = str(await perform(call, "VBD.create", vbd))
    await perform(call, "VDI.set_name_label", vdi_ref, db.get("VBD", vbd_ref, "userdevice"))
    return vbd_ref, vdi_ref
