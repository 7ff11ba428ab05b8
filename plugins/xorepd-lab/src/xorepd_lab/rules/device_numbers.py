"""How XAPI reads the names of disks: `0`, `xvda`, `sda3` name a bus, a disk, a part of it.

    text      may be
    0         ide disk 0 (hda) for HVM, xen disk 0 (xvda) for PV
    4         xen disk 4, since IDE has four
    xvdb2     xen disk 1, partition 2

Two devices of a VM clash when their texts may be the same device.

Source: xapi: ocaml/xapi-idl/xen/device_number.ml, ocaml/xapi/xapi_vm_helpers.ml.
"""

import re
from typing import NamedTuple

IDE_DISKS = 4
MOST = {"xen": ((1 << 20) - 1, 15), "scsi": (15, 15), "floppy": (2, 0), "ide": (19, 63)}
"""Largest disk and partition of each bus."""
_PREFIXES = {"xvd": "xen", "sd": "scsi", "fd": "floppy", "hd": "ide"}

_INTEGER = re.compile(r"-?\d{1,18}$")
_NAME = re.compile(r"(?P<prefix>xvd|sd|fd|hd)(?P<disk>[a-z]{1,5})(?P<part>\d{0,6})$")
_NUMBERED = re.compile(r"d(?P<disk>\d{1,9})(?:p(?P<part>\d{1,6}))?$")


class Device(NamedTuple):
    bus: str
    disk: int
    partition: int = 0


def is_integer(text: str) -> bool:
    return _INTEGER.match(text) is not None


def read_device(text: str, hvm: bool) -> Device | None:
    """Return the device that a text names, or None."""
    if is_integer(text):
        number = int(text)
        return _in_range(Device("ide" if hvm and number < IDE_DISKS else "xen", number))
    found = _NAME.match(text)
    if found is not None:
        disk = 0
        for letter in found["disk"]:
            disk = disk * 26 + ord(letter) - ord("a") + 1
        return _device(_PREFIXES[found["prefix"]], disk - 1, found["part"])
    found = _NUMBERED.match(text)
    if found is not None:
        return _device("xen", int(found["disk"]), found["part"] or "")
    return None


def possible_devices(text: str) -> set[Device]:
    """Return every device that a text may name."""
    readings = (read_device(text, hvm) for hvm in (True, False))
    return {device for device in readings if device is not None}


def linux_name(text: str) -> str:
    """Return what the guest calls a device: 0 is xvda, and hda as well."""
    device = read_device(text, hvm=False)
    if device is None:
        return text
    prefix = {"scsi": "sd", "floppy": "fd"}.get(device.bus, "xvd")
    letters, number = "", device.disk + 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return f"{prefix}{letters}{device.partition or ''}"


def _device(bus: str, disk: int, partition: str) -> Device | None:
    return _in_range(Device(bus, disk, int(partition or 0)))


def _in_range(device: Device) -> Device | None:
    disks, partitions = MOST[device.bus]
    fits = 0 <= device.disk <= disks and 0 <= device.partition <= partitions
    return device if fits else None
