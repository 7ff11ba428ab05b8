"""What a guest of the lab reports, and how it takes requests.

There is no guest: what XAPI learns from one through xenstore is made up here. A guest behaves well
unless its VM says otherwise, in words of `VM.other_config["lab:guest"]`:

    word              the guest
    no-tools          has no drivers and reports nothing
    deaf              never acknowledges a request to shut down, reboot or suspend
    stuck             acknowledges it and goes on running
    holds-disks       refuses to let go of a disk

Source: xapi: ocaml/xapi/xapi_guest_agent.ml, xapi_xenops.ml (update_vm_internal),
ocaml/xenopsd/lib/xenops_server.ml.
"""

import ipaddress
from typing import Any

from xorepd_lab.calls.call import Pool
from xorepd_lab.model.failures import NULL
from xorepd_lab.model.registry import Registry

BEHAVIOUR_KEY = "lab:guest"
OS_VERSION = {
    "name": "Debian GNU/Linux 12 (bookworm)",
    "uname": "6.1.0-28-amd64",
    "distro": "debian",
    "major": "12",
    "minor": "8",
}
DRIVERS_VERSION = {"major": "8", "minor": "3", "micro": "60", "build": "1"}
ANNOUNCED = {
    "feature-shutdown": "1",
    "feature-poweroff": "1",
    "feature-reboot": "1",
    "feature-suspend": "1",
    "feature-vcpu-hotplug": "1",
    "feature-balloon": "1",
    "feature-static-ip-setting": "1",
    "has-vendor-device": "0",
    "platform-feature-multiprocessor-suspend": "1",
}
SUBNET = ipaddress.IPv4Network("192.0.2.0/24")
FIRST_ADDRESS = 10


def behaves(db: Registry, vm: str, word: str) -> bool:
    """Tell whether a VM's guest misbehaves in the way that the word names."""
    return word in str(db.get("VM", vm, "other_config").get(BEHAVIOUR_KEY, "")).split()


def has_drivers(db: Registry, vm: str) -> bool:
    """Tell whether something boots in the VM that reports: it has a disk, and means to."""
    disks = [vbd for vbd in db.get("VM", vm, "VBDs") if db.get("VBD", vbd, "type") == "Disk"]
    return bool(disks) and not behaves(db, vm, "no-tools")


def report_tools(pool: Pool, vm: str) -> None:
    """Write what a guest with drivers reports once it is up."""
    _write(
        pool,
        vm,
        os_version=dict(OS_VERSION),
        PV_drivers_version=dict(DRIVERS_VERSION),
        networks=_networks(pool.db, vm),
        other=dict(ANNOUNCED),
        PV_drivers_up_to_date=True,
        PV_drivers_detected=True,
        live=True,
        can_use_hotplug_vbd="yes",
        can_use_hotplug_vif="yes",
    )
    pool.operations.refresh_vm(vm)


def begin_report(pool: Pool, vm: str) -> None:
    """Let a new domain have a report that says nothing yet, unless it goes on with an older one."""
    if not pool.db.exists("VM_guest_metrics", pool.db.get("VM", vm, "guest_metrics")):
        _write(pool, vm, live=True)


def refresh_networks(pool: Pool, vm: str) -> None:
    """Report the addresses anew, after an interface came or went."""
    metrics = pool.db.get("VM", vm, "guest_metrics")
    if pool.db.exists("VM_guest_metrics", metrics) and pool.db.get(
        "VM_guest_metrics", metrics, "PV_drivers_detected"
    ):
        _write(pool, vm, networks=_networks(pool.db, vm))


def drop_report(db: Registry, vm: str) -> None:
    """Remove the report, as a start and a reboot do."""
    metrics = db.get("VM", vm, "guest_metrics")
    db.set("VM", vm, guest_metrics=NULL)
    if db.exists("VM_guest_metrics", metrics):
        db.destroy("VM_guest_metrics", metrics)


def _write(pool: Pool, vm: str, **fields: Any) -> None:
    db = pool.db
    fields["last_updated"] = pool.clock.now()
    metrics = db.get("VM", vm, "guest_metrics")
    if db.exists("VM_guest_metrics", metrics):
        db.set("VM_guest_metrics", metrics, **fields)
    else:
        db.set("VM", vm, guest_metrics=db.create("VM_guest_metrics", **fields))


def _networks(db: Registry, vm: str) -> dict[str, str]:
    """Return the addresses by XAPI's keys: `0/ip` and `0/ipv4/0` are the same one."""
    found: dict[str, str] = {}
    for vif in db.get("VM", vm, "VIFs"):
        record = db.record("VIF", vif)
        if not record["currently_attached"]:
            continue
        device = record["device"]
        address = _static(record, "ipv4") or str(SUBNET[FIRST_ADDRESS + int(device) % 200])
        found[f"{device}/ip"] = found[f"{device}/ipv4/0"] = address
        found[f"{device}/ipv6/0"] = _static(record, "ipv6") or link_local(record["MAC"])
    return found


def _static(vif: dict[str, Any], kind: str) -> str:
    if vif[f"{kind}_configuration_mode"] != "Static":
        return ""
    return str(vif[f"{kind}_addresses"][0]).partition("/")[0]


def link_local(mac: str) -> str:
    """Return the address that IPv6 derives from a MAC (RFC 4291, appendix A)."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    octets[3:3] = b"\xff\xfe"
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(octets)))
