"""XVA files as curl moves them and as tar, xxhsum and xva-img read and write them."""

import asyncio
import hashlib
import random
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.lab.labclient import Api, logged_in
from tests.strangers.programs import need, succeed
from tests.strangers.test_curl import curl
from xorepd_lab.demo import judge
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = [pytest.mark.lab, pytest.mark.stranger]

MIB = 1 << 20


async def export(lab: Lab, api: Api, vm: str, file: Path, query: str = "") -> None:
    """Have curl save a VM; the task says whether all of it came."""
    pool = lab.pools["prod"]
    task = await api("task.create", "curl", "")
    url = f"{pool.url}/export?session_id={api.ref}&ref={vm}&task_id={task}{query}"
    await succeed(*curl(pool, "-L", "-o", file, url))
    assert (await api.finished(task))["status"] == "success"
    await api("task.destroy", task)


async def bring(api: Api, file: Path) -> str:
    """Have curl import a VM into the pool `dr`; return it."""
    (sr,) = await api("SR.get_by_name_label", "dr-storage")
    task = await api("task.create", "curl", "")
    url = f"{api.pool.url}/import?session_id={api.ref}&sr_id={sr}&task_id={task}"
    await succeed(*curl(api.pool, "-T", file, url))
    record = await api.finished(task)
    assert record["status"] == "success", record["error_info"]
    await api("task.destroy", task)
    values = [value.text for value in ElementTree.fromstring(record["result"]).iter("value")]
    return str(values[-1])


async def disks_of(lab: Lab, api: Api, vm: str) -> dict[str, str]:
    """Return the SHA-256 of a VM's disks by position, as libvhdi reads them."""
    found = {}
    await lab.settled()
    for vbd in [await api("VBD.get_record", ref) for ref in await api("VM.get_VBDs", vm)]:
        if vbd["type"] == "Disk":
            vdi = await api("VDI.get_record", vbd["VDI"])
            sr = await api("SR.get_name_label", vdi["SR"])
            directory = api.pool.srs[sr].directory
            found[vbd["userdevice"]] = await asyncio.to_thread(judge.sha256, directory, vdi["uuid"])
    return found


@pytest.mark.parametrize("compression", ["", "&use_compression=gzip", "&use_compression=zstd"])
async def test_curl_carries_a_vm_to_another_pool(
    lab: Lab, api: Api, tmp_path: Path, compression: str
) -> None:
    vm, file = await api.vm("db01"), tmp_path / "db01.xva"
    await export(lab, api, vm, file, compression)

    async with logged_in(lab, "dr") as there:
        made = await bring(there, file)

        assert await there("VM.get_name_label", made) == "db01"
        assert await there("VM.get_power_state", made) == "Halted"
        assert await there("VM.get_uuid", made) != await api("VM.get_uuid", vm)
        assert await disks_of(lab, there, made) == await disks_of(lab, api, vm)


async def unpacked(lab: Lab, api: Api, directory: Path) -> Path:
    """Export db01, let tar unpack it, and return the directory of its disk."""
    file = directory / "db01.xva"
    await export(lab, api, await api.vm("db01"), file)
    members = (await succeed("tar", "-tf", file)).splitlines()
    assert members[0] == "ova.xml"
    await succeed("tar", "-xf", file, cwd=directory)
    return directory / members[1].split("/")[0]


def chunks_of(disk: Path) -> list[Path]:
    return sorted(file for file in disk.iterdir() if not file.suffix)


async def test_tar_and_xxhsum_read_an_export(lab: Lab, api: Api, tmp_path: Path) -> None:
    xxhsum = need("xxhsum", "Debian: xxhash")

    disk = await unpacked(lab, api, tmp_path)

    chunks = chunks_of(disk)
    told = await succeed(xxhsum, "-H1", *chunks)
    sums = [line.split()[0].upper() for line in told.splitlines()]
    assert sums == [chunk.with_suffix(".xxhash").read_text() for chunk in chunks]
    content = bytearray(16 * MIB)
    for chunk in chunks:
        content[int(chunk.name) * MIB : (int(chunk.name) + 1) * MIB] = chunk.read_bytes()
    vm = await api.vm("db01")
    assert hashlib.sha256(content).hexdigest() == (await disks_of(lab, api, vm))["0"]
    assert ElementTree.parse(tmp_path / "ova.xml").getroot().tag == "value"


async def test_a_disk_that_xva_img_made_is_imported(lab: Lab, api: Api, tmp_path: Path) -> None:
    """It knows the older kind of checksum, SHA-1 in files of another name."""
    xva_img = need("xva-img", "Debian: xva-img")
    raw, file = tmp_path / "disk.raw", tmp_path / "made.xva"
    raw.write_bytes(random.Random(1).randbytes(5 * MIB).ljust(16 * MIB, b"\0"))
    disk = await unpacked(lab, api, tmp_path)
    for old in disk.iterdir():
        old.unlink()

    await succeed(xva_img, "disk-import", f"{disk}/", raw)
    members = sorted(str(each.relative_to(tmp_path)) for each in disk.iterdir())
    tar = ("tar", "--format=ustar", "--no-recursion", "-cf", str(file), "ova.xml")
    await succeed(*tar, *members, cwd=tmp_path)
    async with logged_in(lab, "dr") as there:
        made = await bring(there, file)

        assert await disks_of(lab, there, made) == {
            "0": hashlib.sha256(raw.read_bytes()).hexdigest()
        }


async def test_a_snapshot_of_a_running_vm_leaves_as_a_template(
    lab: Lab, api: Api, tmp_path: Path
) -> None:
    file = tmp_path / "web01.xva"
    snapshot = await api("VM.snapshot", await api.vm("web01"), "for the road")
    await export(lab, api, snapshot, file)

    pool = lab.pools["dr"]
    async with logged_in(lab, "dr") as there:
        (sr,) = await there("SR.get_by_name_label", "dr-storage")
        login = ("--user", f"{pool.username}:{pool.password}")
        await succeed(*curl(pool, *login, "-T", file, f"{pool.url}/import?sr_id={sr}"))

        (made,) = await there("VM.get_by_name_label", "for the road")
        record = await there("VM.get_record", made)
        assert (record["is_a_template"], record["is_a_snapshot"]) == (True, False)
        assert record["blocked_operations"] == {}
        assert await disks_of(lab, there, made) == await disks_of(lab, api, snapshot)
