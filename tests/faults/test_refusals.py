"""What cannot work is refused with one sentence that names the object and the remedy."""

from __future__ import annotations

import asyncio
import socket
import ssl
import tracemalloc
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.lab import hands
from tests.lab.world import World, new_run
from xorepd.replication.run.jobs import run_job
from xorepd.state.records import Outcome
from xorepd_lab.faults.faults import Fault


async def refused(two_pools: World, said: str, **changes: Any) -> str:
    """Run the job, which must fail and leave nothing; return its error."""
    async with two_pools.daemon() as context:
        record = await two_pools.run(context, **changes)
    assert record.outcome is Outcome.FAILED
    error = record.error or ""
    assert said in error, error
    assert await two_pools.left_over() == []
    return error


async def test_a_vm_that_is_gone_is_named(two_pools: World) -> None:
    await refused(two_pools, "pool prod: VM web99 was not found", vms=("web99",))


async def test_an_sr_whose_new_disks_hold_old_data_is_refused(two_pools: World) -> None:
    dr = two_pools.lab.pools["dr"]
    dr.db.set("SR", dr.srs["dr-storage"].ref, type="lvm", sm_config={"allocation": "thick"})

    await refused(two_pools, "SR dr-storage of type lvm hands out disks with what others wrote")


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (1 << 50, "has 1048576.0 GiB, and the largest that can be replicated has 16384 GiB"),
        ((16 << 40) + 512, "and the largest that can be replicated has 16384 GiB"),
        (0, "has 0 bytes by its record, which no disk has"),
        (-512, "has -512 bytes by its record, which no disk has"),
        (1_000_000, "has 1000000 bytes by its record, which no disk has"),
    ],
)
async def test_a_disk_of_a_size_that_is_too_large_or_none_is_named_before_memory_is_taken(
    two_pools: World, size: int, said: str
) -> None:
    prod, dr = two_pools.lab.pools["prod"], two_pools.lab.pools["dr"]
    dr.db.set("SR", dr.srs["dr-storage"].ref, type="zfs-vol")
    data = prod.db.one("VDI", name_label="web01-data")
    true_size = prod.db.get("VDI", data, "virtual_size")
    prod.db.set("VDI", data, virtual_size=size)
    tracemalloc.start()
    try:
        error = await refused(two_pools, said)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        prod.db.set("VDI", data, virtual_size=true_size)

    assert "pool prod: disk web01-data" in error
    assert most < 100 << 20
    assert await two_pools.bases() == []


async def test_an_unknown_sr_is_named_with_those_that_exist(two_pools: World) -> None:
    target = {"pool": "dr", "sr": "dr-storrage"}

    error = await refused(two_pools, "SR dr-storrage was not found", target=target)

    assert "dr-storage" in error


async def test_an_sr_without_room_is_named_with_the_sizes(two_pools: World) -> None:
    error = await refused(two_pools, "where SR dr-storage has", target_reserve="900TiB")

    assert "make room" in error


async def test_a_source_sr_without_room_for_a_snapshot_is_refused(two_pools: World) -> None:
    await refused(two_pools, "a snapshot of VM web01", source_reserve="900TiB")

    assert await two_pools.bases() == []


async def test_a_network_that_cannot_be_mapped_is_refused_before_anything_exists(
    two_pools: World,
) -> None:
    await refused(two_pools, "network nowhere", networks={"lan": "nowhere"})

    assert await two_pools.bases() == []


async def test_a_network_mapped_to_nothing_leaves_the_interface_out(two_pools: World) -> None:
    await two_pools.replicate(networks={"lan": ""})

    def count(xenapi: Any) -> int:
        replicas = [
            vm for vm in xenapi.VM.get_all_records().values() if vm["name_label"].startswith("[XO")
        ]
        return sum(len(vm["VIFs"]) for vm in replicas)

    assert await two_pools.ask("dr", count) == 0


async def test_a_replica_that_runs_is_left_alone(replicated: World) -> None:
    def force_start(xenapi: Any) -> None:
        for ref, vm in xenapi.VM.get_all_records().items():
            if "Continuous Replication" in vm["tags"] and not vm["is_a_snapshot"]:
                for operation in vm["blocked_operations"]:
                    xenapi.VM.remove_from_blocked_operations(ref, operation)
                xenapi.VM.start(ref, False, False)

    await replicated.ask("dr", force_start)

    await refused(replicated, "is running, not halted")


async def test_a_wrong_password_is_said_without_the_password(two_pools: World) -> None:
    async with two_pools.daemon({"prod": two_pools.settings("prod", password="S3cret-wrong")}) as c:
        record = await two_pools.run(c)

    assert record.outcome is Outcome.FAILED
    assert "pool prod: login of 'root' was refused" in (record.error or "")
    assert "S3cret" not in (record.error or "")


async def test_an_untrusted_certificate_is_refused(two_pools: World, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))

    async with two_pools.daemon({"dr": two_pools.settings("dr", ca_file=str(stranger))}) as context:
        record = await two_pools.run(context)

    assert record.outcome is Outcome.FAILED
    assert "pool dr: the certificate of" in (record.error or "")
    assert "set ca_file or fingerprint" in (record.error or "")


async def test_a_pinned_fingerprint_is_enough_and_a_wrong_one_is_refused(
    two_pools: World,
) -> None:
    address = two_pools_address(two_pools)
    pem = await asyncio.to_thread(ssl.get_server_certificate, address)
    pinned = sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    good = two_pools.settings("dr", ca_file=None, fingerprint=f"sha256:{pinned}")
    bad = two_pools.settings("dr", ca_file=None, fingerprint="sha256:" + "0" * 64)

    async with two_pools.daemon({"dr": bad}) as context:
        failed = await two_pools.run(context)
    async with two_pools.daemon({"dr": good}) as context:
        record = await two_pools.run(context)

    assert "its fingerprint is sha256:" in (failed.error or "")
    assert record.outcome is Outcome.FULL, record.error


def two_pools_address(two_pools: World) -> tuple[str, int]:
    host, _, port = two_pools.lab.pools["dr"].url.removeprefix("https://").partition(":")
    return host, int(port)


async def test_an_unreachable_pool_is_named_with_its_address(two_pools: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"https://127.0.0.1:{taken.getsockname()[1]}"
        async with two_pools.daemon({"dr": two_pools.settings("dr", url=url)}) as context:
            record = await two_pools.run(context)

    assert record.outcome is Outcome.FAILED
    assert "pool dr: no answer from 127.0.0.1" in (record.error or "")


async def test_one_vm_that_fails_does_not_stop_the_others(two_pools: World) -> None:
    job = two_pools.job(vms=("web99", "db01"))

    async with two_pools.daemon() as context:
        gone, done = await run_job(job, new_run(), context)

    assert gone.outcome is Outcome.FAILED
    assert done.outcome is Outcome.FULL


async def test_a_full_target_fails_the_run_and_keeps_the_last_point(replicated: World) -> None:
    await replicated.lab.guest_write("web01", 1, sequential=(20 << 20, 4 << 20), seed=1)
    replicated.lab.faults.add(Fault("import", error=("SR_BACKEND_FAILURE_44", "", "no space", "")))

    await refused(replicated, "SR_BACKEND_FAILURE_44")

    assert len(await replicated.points()) == 1


async def test_a_disk_in_use_is_waited_for_and_then_destroyed(replicated: World) -> None:
    await replicated.lab.guest_write("web01", 1, random=1, seed=1)
    busy = replicated.lab.faults.add(
        Fault("rpc", "VDI.destroy", "dr", times=2, error=("VDI_IN_USE", "OpaqueRef:x", "destroy"))
    )

    record = await replicated.replicate(keep=1)

    assert busy.fired == 2
    assert record.outcome is Outcome.DELTA
    assert await replicated.left_over() == []


@pytest.mark.parametrize("method", ["VM.snapshot", "VDI.clone", "VBD.create", "VM.destroy"])
async def test_a_call_that_fails_costs_one_run_and_nothing_else(
    replicated: World, method: str
) -> None:
    await replicated.lab.guest_write("web01", 1, random=1, seed=1)
    fault = replicated.lab.faults.add(
        Fault("rpc", method, "dr", error=("SR_BACKEND_FAILURE_202", "", "general backend", ""))
    )

    async with replicated.daemon() as context:
        await replicated.run(context, keep=1)
        record = await replicated.run(context, keep=1)

    assert fault.fired == 1
    assert record.outcome is Outcome.DELTA, record.error
    assert len(await replicated.points()) == 1
    await replicated.newest_equals_its_source()
    assert await replicated.left_over() == []


async def test_a_disk_that_is_reset_at_each_boot_is_refused(two_pools: World) -> None:
    def make_volatile(xenapi: Any) -> None:
        vm = hands.vm_of(xenapi, "web01")
        xenapi.VM.hard_shutdown(vm)
        xenapi.VDI.set_on_boot(hands.disks_of(xenapi, vm)["1"], "reset")

    await two_pools.ask("prod", make_volatile)

    await refused(two_pools, "is reset at each boot, which XAPI cannot snapshot")


async def test_a_chain_as_long_as_xapi_allows_is_refused_before_its_snapshot(
    two_pools: World,
) -> None:
    put_there: list[str] = []
    for number in range(29):
        await two_pools.lab.guest_write("web01", 1, random=1, seed=number)

        def snapshot(xenapi: Any, name: str = f"by hand {number}") -> None:
            taken = xenapi.VM.snapshot(hands.vm_of(xenapi, "web01"), name)
            put_there.append(xenapi.VM.get_uuid(taken))

        await two_pools.ask("prod", snapshot)
    async with two_pools.daemon() as context:
        record = await two_pools.run(context)

    assert record.outcome is Outcome.FAILED
    assert "is a chain of 30 VHDs, and XAPI allows 30" in (record.error or "")
    assert await two_pools.bases() == []
    assert await two_pools.left_over(but=put_there) == []
