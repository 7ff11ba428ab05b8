"""What a topology says of addresses and disks, as somebody outside meets it."""

import os
from pathlib import Path

import pytest

from tests.lab.labclient import FAST, logged_in
from xorepd_lab.demo import judge
from xorepd_lab.lab import Lab
from xorepd_lab.topology import MIB, DiskSpec, ImageSpec, PoolSpec, SrSpec, Topology, VmSpec

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


def one_pool(network: str = "", content: ImageSpec | None = None) -> Topology:
    guest = VmSpec(
        "web01", (DiskSpec("system", "store", 8 * MIB, content),), "lan", "02:16:3e:00:00:01"
    )
    store = SrSpec("store", "nfs", ("h1", "h2"))
    pool = PoolSpec("p", ("h1", "h2"), (store,), ("lan",), (guest,), network=network)
    return Topology("one", (pool,), job=("p", "web01", "p", "store"))


async def test_hosts_listen_on_the_network_of_their_pool(tmp_path: Path) -> None:
    topology = one_pool(network="127.201.7")

    async with Lab.start(tmp_path, topology, time_scale=FAST) as lab, logged_in(lab, "p") as api:
        records = (await api("host.get_all_records")).values()
        addresses = sorted(record["address"] for record in records)

    assert addresses == ["127.201.7.1", "127.201.7.2"]
    assert lab.pools["p"].url.startswith("https://127.201.7.1:")


async def test_disk_begins_with_what_its_image_holds(tmp_path: Path) -> None:
    data, image = os.urandom(MIB), tmp_path / "system.img"
    with image.open("wb") as file:
        file.seek(3 * MIB)
        file.write(data)
        file.truncate(8 * MIB)

    async with Lab.start(tmp_path / "lab", one_pool(content=ImageSpec(image)), seed=1) as lab:
        [sr] = lab.pools["p"].srs.values()
        async with logged_in(lab, "p") as api:
            uuid = await api("VDI.get_uuid", await api.disk("system"))
        with judge.Disk(sr.directory, uuid) as disk:
            disk.save(tmp_path / "found.img")

    assert (tmp_path / "found.img").read_bytes() == image.read_bytes()
