"""xo-cr-seed, Xen Orchestra's tool that marks a copy carried by hand as the seed of a replica."""

import pytest

from tests.lab.labclient import VM_RECORD, Api, logged_in, vbd_record, vdi_record
from tests.strangers.programs import NODE, need_node_module, run
from xorepd_lab.lab import Lab
from xorepd_lab.pools import Pool

pytest_plugins = ("tests.lab.labfixtures",)
# It never logs out.
pytestmark = [pytest.mark.lab, pytest.mark.stranger, pytest.mark.leaves("session")]

TOOL = NODE / "node_modules" / "@xen-orchestra" / "cr-seed-cli" / "index.mjs"


def login(pool: Pool) -> str:
    return pool.url.replace("://", f"://{pool.username}:{pool.password}@")


async def carried_copy(lab: Lab, api: Api) -> str:
    """Return a VM of the other pool with a disk at position 0, as if somebody had brought it."""
    (sr,) = await api("SR.get_by_name_label", "dr-storage")
    vm = await api("VM.create", {**VM_RECORD, "name_label": "carried"})
    vdi = await api("VDI.create", vdi_record(sr, 16 << 20))
    await api("VBD.create", vbd_record(vm, vdi, userdevice="0"))
    return str(vm)


async def test_xen_orchestra_marks_a_seed(lab: Lab, api: Api) -> None:
    node = need_node_module("@xen-orchestra/cr-seed-cli")
    source = await api.vm("db01")
    snapshot = await api("VM.snapshot", source, "carried away")
    async with logged_in(lab, "dr") as there:
        vm = await carried_copy(lab, there)

        done = await run(
            *(node, TOOL, login(lab.pools["prod"]), await api("VM.get_uuid", snapshot)),
            *(login(lab.pools["dr"]), await there("VM.get_uuid", vm), "job", "schedule"),
        )

        assert (done.status, done.err) == (0, "")
        seeded = await there("VM.get_record", vm)
        (vbd,) = seeded["VBDs"]
        disk = await there("VDI.get_record", await there("VBD.get_VDI", vbd))
        sr = await there("SR.get_record", disk["SR"])
    base = await api("VM.get_record", snapshot)
    assert base["other_config"]["xo:backup:exported"] == "true"
    assert seeded["name_label"] == f"db01 ({base['snapshot_time']})"
    marks = {
        "xo:backup:datetime": str(base["snapshot_time"]),
        "xo:backup:job": "job",
        "xo:backup:schedule": "schedule",
        "xo:backup:vm": await api("VM.get_uuid", source),
    }
    assert marks.items() <= base["other_config"].items()
    assert marks.items() <= seeded["other_config"].items()
    assert seeded["other_config"]["xo:copy_of"] == base["uuid"]
    assert seeded["other_config"]["xo:backup:sr"] == sr["uuid"]
    assert set(seeded["blocked_operations"]) == {"start", "start_on"}
    (source_vbd,) = [
        each
        for each in [await api("VBD.get_record", ref) for ref in base["VBDs"]]
        if each["type"] == "Disk"
    ]
    assert disk["other_config"]["xo:copy_of"] == await api("VDI.get_uuid", source_vbd["VDI"])
