"""A program as somebody writes it who has read the XenAPI SDK's documentation, and nothing of ours.

    tour.py URL USER PASSWORD VM

It logs in through any member of the pool, snapshots a VM in the background while it watches events,
looks at what the snapshot is, meets some errors, cleans up, and prints what it saw as JSON. The
certificate is verified: SSL_CERT_FILE says by what.
"""

import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import XenAPI


def log_in(url: str, user: str, password: str) -> tuple[Any, bool]:
    """Return a session on the pool master, and whether we had to be sent there."""
    session = XenAPI.Session(url)
    try:
        session.login_with_password(user, password, "1.0", "tour")
    except XenAPI.Failure as failure:
        if failure.details[0] != "HOST_IS_SLAVE":
            raise
        there = urlsplit(url)._replace(netloc=f"{failure.details[1]}:{urlsplit(url).port}")
        session = XenAPI.Session(there.geturl())
        session.login_with_password(user, password, "1.0", "tour")
        return session, True
    return session, False


def wait_for(xenapi: Any, task: str) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """Wait with events until a task is done and return its record and all events' classes."""
    token, seen = "", set[tuple[str, str]]()
    while True:
        batch = getattr(xenapi.event, "from")(["task", "vm", "vdi"], token, 30.0)
        token = batch["token"]
        for event in batch["events"]:
            seen.add((event["class"], event["operation"]))
        record = xenapi.task.get_record(task)
        if record["status"] != "pending":
            return record, seen


def failure_of(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        call(*arguments)
    except XenAPI.Failure as failure:
        return failure.details
    return None


def main(url: str, user: str, password: str, name: str) -> None:
    session, redirected = log_in(url, user, password)
    xenapi = session.xenapi
    report: dict[str, Any] = {"redirected": redirected}

    (pool,) = xenapi.pool.get_all_records().values()
    report["default_sr_is_known"] = pool["default_SR"] in xenapi.SR.get_all()
    report["vms"] = {
        record["name_label"]: record["power_state"]
        for record in xenapi.VM.get_all_records().values()
        if not record["is_a_template"] and not record["is_control_domain"]
    }
    (vm,) = xenapi.VM.get_by_name_label(name)
    disks = xenapi.VM.get_VBDs(vm)
    report["disks"] = sorted(
        [record["userdevice"], record["type"]] for record in map(xenapi.VBD.get_record, disks)
    )

    task = xenapi.Async.VM.snapshot(vm, f"{name} by tour")
    record, seen = wait_for(xenapi, task)
    report["task"] = {key: record[key] for key in ("status", "progress", "error_info")}
    report["events"] = sorted(seen)
    snapshot = ElementTree.fromstring(record["result"]).text
    xenapi.task.destroy(task)
    taken = xenapi.VM.get_record(snapshot)
    report["snapshot"] = {
        key: taken[key] for key in ("name_label", "is_a_snapshot", "is_a_template", "power_state")
    }
    report["snapshot_is_of_vm"] = taken["snapshot_of"] == vm
    report["snapshot_time_is_a_date"] = hasattr(taken["snapshot_time"], "timetuple")

    report["failures"] = [
        failure_of(xenapi.VM.start, vm, False, False)[0],
        failure_of(xenapi.VM.start, snapshot, False, False)[0],
        failure_of(xenapi.VM.get_record, "OpaqueRef:gone")[:2],
        failure_of(xenapi.VM.get_by_uuid, "none")[:2],
        failure_of(xenapi.VM.levitate, vm),
    ]

    held = [xenapi.VBD.get_record(vbd) for vbd in taken["VBDs"]]
    xenapi.VM.destroy(snapshot)
    for vbd in held:
        if vbd["type"] == "Disk":
            xenapi.VDI.destroy(vbd["VDI"])
    report["gone"] = failure_of(xenapi.VM.get_uuid, snapshot)[0]
    session.logout()
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
