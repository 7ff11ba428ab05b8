"""The files of an SR, and exported streams, as libvhdi and qemu-img read them.

libvhdi gets parents handed over and is right where writes are multiples of 4 KiB, as guests' are;
qemu-img is right about disks without a parent only, since it gives zeroes for a parent's data.
"""

import asyncio
import re
from pathlib import Path

import pytest

from tests.lab.labclient import Api
from tests.lab.vhd_judges import digest_by_qemu
from tests.strangers.programs import need, succeed
from xorepd_lab.demo import judge
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.stranger]


async def live_through_a_day(lab: Lab, api: Api) -> None:
    """Snapshot, write, destroy and clone until an SR has chains of every kind."""
    vm = await api.vm("web01")
    snapshots = []
    for seed in range(3):
        snapshots.append(await api("VM.snapshot", vm, f"day {seed}"))
        await lab.guest_write("web01", 1, random=12, seed=seed)
        await lab.guest_write("web01", 0, files={f"/day{seed}": b"gone by"})
    await api("VM.clone", snapshots[1], "clone")
    for vbd in await api("VM.get_VBDs", snapshots[0]):
        record = await api("VBD.get_record", vbd)
        if record["type"] == "Disk":
            await api("VDI.destroy", record["VDI"])
    await lab.settled()


async def download(api: Api, lab: Lab, vdi: str, file: Path, query: str) -> None:
    url = f"{lab.pools['prod'].plain_url}/export_raw_vdi?session_id={api.ref}&vdi={vdi}&{query}"
    await succeed(need("curl", "Debian: curl"), "-sSfL", "-k", "-o", file, url)


async def test_libvhdi_reads_every_file_of_an_sr_as_the_api_does(
    lab: Lab, api: Api, tmp_path: Path
) -> None:
    await live_through_a_day(lab, api)
    directory = lab.pools["prod"].srs["prod-shared"].directory
    records = await api("VDI.get_all_records")
    here = {
        r["uuid"]: ref for ref, r in records.items() if (directory / f"{r['uuid']}.vhd").exists()
    }

    assert {file.stem for file in directory.glob("*.vhd")} == set(here)
    chains = set()
    for uuid, ref in here.items():
        with judge.Disk(directory, uuid) as disk:
            chains.add(disk.depth)
            assert str(disk.size) == records[ref]["virtual_size"]
            found = disk.sha256()
        if records[ref]["managed"]:
            raw = tmp_path / "disk.raw"
            await download(api, lab, ref, raw, "format=raw")
            digest = await succeed("sha256sum", raw)
            assert digest.split()[0] == found
    assert max(chains) >= 3


async def test_vhdiinfo_calls_bases_dynamic_and_leaves_differential(lab: Lab, api: Api) -> None:
    await live_through_a_day(lab, api)
    directory = lab.pools["prod"].srs["prod-shared"].directory

    told = {}
    for file in directory.glob("*.vhd"):
        out = await succeed(need("vhdiinfo", "Debian: libvhdi-utils"), file)
        told[file.stem] = re.findall(r"(?:Disk type|Parent filename)\s*:\s*(.*)", out)

    for record in (await api("VDI.get_all_records")).values():
        if record["uuid"] in told:
            parent = record["sm_config"].get("vhd-parent")
            expected = ["Differential", f"{parent}.vhd"] if parent else ["Dynamic"]
            assert told[record["uuid"]] == expected


async def test_qemu_img_and_libvhdi_read_an_export_the_same(
    lab: Lab, api: Api, tmp_path: Path
) -> None:
    await live_through_a_day(lab, api)
    need("qemu-img", "Debian: qemu-utils")
    vdi, file = await api.disk("web01-root"), tmp_path / "root.vhd"

    await download(api, lab, vdi, file, "format=vhd")

    directory = lab.pools["prod"].srs["prod-shared"].directory
    expected = judge.sha256(directory, await api("VDI.get_uuid", vdi))
    assert await asyncio.to_thread(digest_by_qemu, file, tmp_path) == expected
    assert judge.sha256(tmp_path, "root") == expected


async def test_a_delta_saved_to_a_file_completes_the_file_of_its_base(
    lab: Lab, api: Api, tmp_path: Path
) -> None:
    vm, vdi = await api.vm("web01"), await api.disk("web01-data")
    await api("VM.snapshot", vm, "base")
    (base,) = await api("VDI.get_snapshots", vdi)
    await lab.guest_write("web01", 1, random=6, seed=1)
    await api("VM.snapshot", vm, "head")
    (head,) = set(await api("VDI.get_snapshots", vdi)) - {base}

    await download(api, lab, head, tmp_path / "head.vhd", f"format=vhd&base={base}")

    # A full export has an identity of its own; a delta names the file of its base in the SR.
    directory = lab.pools["prod"].srs["prod-shared"].directory
    await lab.settled()
    for file in directory.glob("*.vhd"):
        (tmp_path / file.name).symlink_to(file)
    with judge.Disk(tmp_path, "head") as disk:
        assert disk.depth == 3
        assert disk.sha256() == judge.sha256(directory, await api("VDI.get_uuid", head))
