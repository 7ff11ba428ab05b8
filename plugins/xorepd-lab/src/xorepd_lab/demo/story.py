"""The demo: a story in six steps, each with its proof."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import XenAPI
from rich.console import Console

from xorepd_lab.demo.proof import (
    ProofError,
    check_equal,
    check_filesystem,
    disks_of,
    hold_files_still,
    leftovers,
    login,
)
from xorepd_lab.demo.stage import BIN, CONFIG, Stage, StageError

console = Console(highlight=False, soft_wrap=True)

MOTD = "/etc/motd"
NEW_MOTD = "Changed by the guest after the first replication.\n"
WHILE_KILLED = 16 * 1024 * 1024
"""Bytes per second of the export whose daemon is killed: slow enough to meet it in the middle."""


def format_size(size: float) -> str:
    """Return a size for people: `512 B`, `2.0 MiB`, `8.0 GiB`."""
    units = ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def format_duration(seconds: float) -> str:
    """Return a duration for people: `0.4 s`, `42 s`, `3 m 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest} s" if minutes else f"{rest} s"


def perform(keep: bool) -> bool:
    """Run the demo; say whether everything held, which the last line says as well.

    Args:
        keep: Leave everything running at the end, until Ctrl-C.
    """
    began = time.monotonic()
    with Stage() as stage:
        try:
            tell(stage)
        except (ProofError, StageError, OSError, subprocess.CalledProcessError) as error:
            console.print(f"\n[bold red]NOT PROVEN[/]  {error}", markup=True)
            return False
        took = format_duration(time.monotonic() - began)
        console.print(f"\n[bold green]PROVEN[/]  all six steps, in {took}.")
        if keep:
            invite(stage)
            wait_for_the_end(stage)
        return True


def tell(stage: Stage) -> None:
    """Tell the story.

    Raises:
        ProofError: a promise does not hold.
        StageError: a program does not do what it should.
    """
    step(1, "Two pools without a hypervisor: embedded XAPI servers, real VHD files")
    stage.start_lab()
    for pool in stage.pools.values():
        hold_files_still(pool)
    introduce(stage)

    step(2, "xorepd starts; the first run copies everything that is allocated")
    stage.start_daemon()
    fact(f"the daemon runs from {CONFIG.name}")
    first = replicate(stage)
    expect(first["outcome"] == "full", f"the first run was a {first['outcome']}, not a full")

    step(3, "The guest changes files and random blocks; the next run sends what changed")
    stage.guest("--disk", "0", "--file", f"{MOTD}={NEW_MOTD}")
    stage.guest("--disk", "1", "--random", "40", "--seed", "7")
    fact(f"the guest rewrote {MOTD} and 40 random blocks of 4 KiB")
    second = replicate(stage)
    expect(second["outcome"] == "delta", f"the second run was a {second['outcome']}, not a delta")
    stage.ctl_live("show")
    expect_small(second)

    step(4, "Proof: libvhdi reads both sides, e2fsck and debugfs the filesystem")
    prove_equal(stage, second)

    step(5, "A replica cannot be started by accident; a clone of it can")
    prove_protection(stage)

    step(6, "The daemon is killed in the middle of a transfer")
    kill_in_transfer(stage, second)
    stage.check_lab()
    fact("the records of both pools agree with each other and with every file")


def expect_small(record: dict[str, Any]) -> None:
    """Check that each disk was read over NBD, and what changed was sent in 64 KiB, and no more.

    What a guest has written as it was counts as changed, and the target has it already.
    """
    for disk in record["disks"]:
        expect(disk["reader"] == "nbd-changes", f"disk {disk['device']}: {disk['reader_reason']}")
        sent, changed = disk["sent_bytes"], disk["changed_bytes"]
        expect(
            sent + disk["unchanged_bytes"] == changed,
            f"disk {disk['device']}: {sent} bytes sent, {changed} changed",
        )


def introduce(stage: Stage) -> None:
    for pool in stage.pools.values():
        hosts = ", ".join(host["name"] for host in pool["hosts"])
        srs = ", ".join(sr["name"] for sr in pool["srs"])
        fact(f"pool {pool['name']} at {pool['url']}: hosts {hosts}; SRs {srs}")
    with login(stage.pools["prod"]) as xenapi:
        vm = xenapi.VM.get_by_name_label("web01")[0]
        record = xenapi.VM.get_record(vm)
        disks = []
        for vbd in record["VBDs"]:
            if xenapi.VBD.get_type(vbd) == "Disk":
                vdi = xenapi.VDI.get_record(xenapi.VBD.get_VDI(vbd))
                disks.append(f"{vdi['name_label']} {format_size(int(vdi['virtual_size']))}")
        fact(f"VM web01 is {record['power_state'].lower()} with disks {', '.join(disks)}")


def replicate(stage: Stage) -> dict[str, Any]:
    """Run the job before the audience's eyes and return its record from the history."""
    stage.ctl_live("run", "web", "--wait")
    record = newest_record(stage)
    fact(
        f"{record['outcome']}: {format_size(record['sent_bytes'])} sent of "
        f"{format_size(record['virtual_size'])} virtual, restore point {record['restore_point']}"
    )
    return record


def newest_record(stage: Stage) -> dict[str, Any]:
    history = stage.ctl("history", "--limit", "1")
    records: list[dict[str, Any]] = history["records"]
    expect(bool(records), "the history is empty")
    return records[0]


def prove_equal(stage: Stage, record: dict[str, Any]) -> None:
    prod, dr = stage.pools["prod"], stage.pools["dr"]
    with login(prod) as source, login(dr) as target:
        snapshot = base_snapshot(source)
        theirs = disks_of(prod, source, snapshot)
        ours = disks_of(dr, target, record["restore_point"])
        with console.status("reading and hashing every byte on both sides…"):
            same = check_equal(theirs, ours)
        for device, digest in same.items():
            fact(f"disk {device}: sha256 {digest[:32]}… on both sides, by libvhdi")
        verdict = check_filesystem(ours["0"], MOTD, NEW_MOTD.encode())
        fact(f"e2fsck: {verdict}")
        fact(f"{MOTD} on the replica: {NEW_MOTD.strip()!r}")


def base_snapshot(xenapi: Any) -> str:
    """Return the UUID of the one snapshot that xorepd keeps of web01."""
    vm = xenapi.VM.get_by_name_label("web01")[0]
    snapshots = xenapi.VM.get_snapshots(vm)
    expect(len(snapshots) == 1, f"web01 has {len(snapshots)} snapshots, not 1")
    uuid: str = xenapi.VM.get_uuid(snapshots[0])
    return uuid


def prove_protection(stage: Stage) -> None:
    with login(stage.pools["dr"]) as xenapi:
        replica = find_replica(xenapi)
        try:
            xenapi.VM.start(replica, False, False)
        except XenAPI.Failure as failure:
            expect(failure.details[0] == "OPERATION_BLOCKED", f"refused with {failure.details}")
            fact(f"VM.start: {failure.details[0]}: {failure.details[2]}")
        else:
            raise ProofError("the replica could be started")
        clone = xenapi.VM.clone(replica, "web01 (clone of the replica)")
        xenapi.VM.start(clone, False, False)
        state = xenapi.VM.get_power_state(clone)
        expect(state == "Running", f"the clone is {state}")
        fact(f"a clone of it is {state.lower()}")
        xenapi.VM.hard_shutdown(clone)
        disks = [
            xenapi.VBD.get_VDI(vbd)
            for vbd in xenapi.VM.get_VBDs(clone)
            if xenapi.VBD.get_type(vbd) == "Disk"
        ]
        xenapi.VM.destroy(clone)
        for vdi in disks:
            xenapi.VDI.destroy(vdi)


def find_replica(xenapi: Any) -> str:
    found = [
        ref
        for ref, vm in xenapi.VM.get_all_records().items()
        if "Continuous Replication" in vm["tags"] and not vm["is_a_snapshot"]
    ]
    expect(len(found) == 1, f"there are {len(found)} replicas, not 1")
    ref: str = found[0]
    return ref


def kill_in_transfer(stage: Stage, last: dict[str, Any]) -> None:
    prod, dr = stage.pools["prod"], stage.pools["dr"]
    stage.guest("--disk", "1", "--sequential", str(1 << 30), str(64 << 20), "--seed", "11")
    fact("the guest wrote another 64 MiB")
    stage.fault("add", "import", "--times", "0", "--rate", str(WHILE_KILLED))
    started = stage.ctl("run", "web")
    moved = wait_for_middle(stage, started["run_id"])
    stage.kill_daemon()
    stage.fault("clear")
    fact(f"SIGKILL after {format_size(moved)}")
    with login(dr) as xenapi:
        before = disks_of(dr, xenapi, last["restore_point"])
        check_filesystem(before["0"], MOTD, NEW_MOTD.encode())
    fact("the last restore point is intact")
    stage.start_daemon()
    fact("the daemon runs again")
    stage.let_catch_up()
    fact("it has made up for the run that was cut off")
    record = replicate(stage)
    expect(record["outcome"] == "delta", f"the run was a {record['outcome']}, not a delta")
    prove_equal(stage, record)
    with login(prod) as source, login(dr) as target:
        left = leftovers(prod, source) + leftovers(dr, target)
    expect(not left, f"left over: {'; '.join(left)}")
    fact("nothing is left over on either pool: no disk, snapshot, task or block")


def wait_for_middle(stage: Stage, run_id: str) -> int:
    """Wait until a run has moved some of its bytes, and not all; return how many."""
    for record in stage.events(run_id):
        if 8 << 20 < record["read_bytes"] < record["planned_bytes"] // 2:
            return int(record["read_bytes"])
    raise ProofError("the transfer was over before it could be interrupted")


def invite(stage: Stage) -> None:
    """Say how to look around."""
    dr = stage.pools["dr"]
    console.print(
        f"""
Everything still runs; end it with Ctrl-C. To look around, in another terminal:

  export XOREPD_SOCKET={stage.socket}
  {BIN}/xorepctl status
  {BIN}/xorepctl history
  curl --unix-socket $XOREPD_SOCKET http://localhost/status
  {BIN}/xorepd-lab write --state {stage.directory}/lab --vm web01 --disk 1 --random 100
  {BIN}/xorepctl run web --wait
  ls {dr["srs"][0]["directory"]}

XAPI of {dr["name"]}: {dr["url"]} user {dr["username"]} password {dr["password"]}""",
        markup=False,
    )


def wait_for_the_end(stage: Stage) -> None:
    try:
        assert stage.lab is not None
        stage.lab.wait()
    except KeyboardInterrupt:
        console.print("ending")


def step(number: int, title: str) -> None:
    console.print(f"\n[bold]{number}. {title}[/]")


def fact(text: str) -> None:
    console.print(f"   {text}", markup=False)


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProofError(otherwise)
