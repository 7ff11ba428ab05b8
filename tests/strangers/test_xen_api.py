"""Xen Orchestra's connector `xen-api`: JSON-RPC, events, tasks and resources as it uses them."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import Api
from tests.strangers.programs import NODE, need_node_module, succeed
from xorepd_lab.demo import judge
from xorepd_lab.lab import Lab
from xorepd_lab.pools import Pool

pytest_plugins = ("tests.lab.labfixtures",)
# It sends its logout and ends without waiting for it.
pytestmark = [pytest.mark.lab, pytest.mark.stranger, pytest.mark.leaves("session")]


def environment(pool: Pool) -> dict[str, str]:
    """Let Node verify the certificates of the pool's hosts."""
    return {"NODE_EXTRA_CA_CERTS": str(pool.ca_file)}


async def script(pool: Pool, name: str, *arguments: str | Path) -> Any:
    """Run one of the scripts and return what it reports."""
    node = need_node_module("xen-api")
    told = await succeed(
        *(node, NODE / name, pool.url, pool.username, pool.password, *arguments),
        env=environment(pool),
    )
    return json.loads(told.splitlines()[-1])


async def test_objects_follow_events(lab: Lab) -> None:
    report = await script(lab.pools["prod"], "objects.mjs")

    assert {"VM", "VDI", "VBD", "SR", "PBD", "host", "pool", "network"} <= set(report["types"])
    assert sorted(filter(None, report["disks"])) == ["web01-data", "web01-root"]
    assert report["sizeIsANumber"] is True
    assert report["sees"] == "prod-h1"
    assert report["description"] == "changed through xen-api"
    assert report["otherConfig"] == "still"
    assert report["snapshot"] == {"name": "web01 by xen-api", "of": "web01", "isSnapshot": True}
    assert report["refused"] == "VM_IS_SNAPSHOT"
    assert report["unknown"] == "MESSAGE_METHOD_UNKNOWN"
    assert report["left"] == []


async def test_a_disk_goes_through_resources_unchanged(lab: Lab, api: Api, tmp_path: Path) -> None:
    pool = lab.pools["prod"]
    file = tmp_path / "disk.vhd"

    report = await script(pool, "resources.mjs", "db01-data", "prod-shared", file)

    uuid = await api("VDI.get_uuid", await api.disk("db01-data"))
    sr = pool.srs["prod-local"].directory
    expected = await asyncio.to_thread(judge.sha256, sr, uuid)
    assert report["sha256"] == expected
    assert report["bytes"] == file.stat().st_size
    raw = tmp_path / "disk.raw"
    with judge.Disk(tmp_path, "disk") as disk:
        disk.save(raw)
    assert hashlib.sha256(raw.read_bytes()).hexdigest() == expected
    await api("VDI.destroy", report["target"])


async def test_a_client_follows_the_master(lab: Lab) -> None:
    pool = lab.pools["prod"]
    process = await asyncio.create_subprocess_exec(
        *(need_node_module("xen-api"), NODE / "failover.mjs"),
        *(pool.url, pool.username, pool.password),
        env=environment(pool),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        before = json.loads(await process.stdout.readline())

        await pool.change_master(pool.host("prod-h2"))

        out, _ = await process.communicate(b"moved\n")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    report = json.loads(out)
    assert before["master"] == "prod-h1"
    assert report["now"] == "prod-h2"
    assert report["samePool"] is True
    assert report["vm"] == "Running"
