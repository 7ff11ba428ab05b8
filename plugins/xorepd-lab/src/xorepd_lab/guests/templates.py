"""The templates that a pool is born with, in the shape that clients look for.

A few of XCP-ng's names. What matters to clients is `is_default_template`, `reference_label`,
`recommendations` and the provisioning of disks; sizes and limits are of the usual order.

Source: xcp-ng: guest-templates-json; xapi: ocaml/xapi/xapi_templates.ml.
"""

from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from xorepd_lab.calls.call import Pool
from xorepd_lab.rules.placement import update_memory_overhead
from xorepd_lab.wire.provision import DISKS_KEY, WantedDisk, write_disks

MIB, GIB = 1 << 20, 1 << 30
MOST_VCPUS = 64


@dataclass(frozen=True, slots=True)
class Template:
    name: str
    label: str
    """`reference_label`, the same in all languages and versions."""
    memory: int
    disk: int
    """Bytes of the one disk; 0 for none."""
    linux: bool = True
    uefi: bool = True
    """Whether it boots with UEFI unless told otherwise."""
    most_memory: int = 1536 * GIB


TEMPLATES = (
    Template("AlmaLinux 9", "almalinux-9", 2 * GIB, 10 * GIB),
    Template("CentOS 7", "centos-7", 2 * GIB, 10 * GIB, uefi=False),
    Template("Debian Bookworm 12", "debian-12", GIB, 10 * GIB),
    Template("Debian Bullseye 11", "debian-11", GIB, 10 * GIB),
    Template("Rocky Linux 9", "rocky-9", 2 * GIB, 10 * GIB),
    Template("Ubuntu Jammy Jellyfish 22.04", "ubuntu-22.04", 2 * GIB, 10 * GIB),
    Template("Ubuntu Noble Numbat 24.04", "ubuntu-24.04", 2 * GIB, 10 * GIB),
    Template("Windows 10 (64-bit)", "windows-10-64bit", 2 * GIB, 32 * GIB, linux=False),
    Template("Windows 11", "windows-11", 4 * GIB, 64 * GIB, linux=False),
    Template("Windows Server 2022 (64-bit)", "windows-server-2022-64bit", 2 * GIB, 32 * GIB, False),
    Template("Other install media", "other-install-media", 256 * MIB, 0, linux=False, uefi=False),
)


def make_templates(pool: Pool) -> None:
    """Add the default templates to a new pool."""
    db = pool.db
    for template in TEMPLATES:
        vm = db.create(
            "VM",
            name_label=template.name,
            name_description=_description(template),
            reference_label=template.label,
            is_a_template=True,
            is_default_template=True,
            user_version=1,
            memory_static_max=template.memory,
            memory_dynamic_max=template.memory,
            memory_dynamic_min=template.memory,
            memory_static_min=template.memory,
            VCPUs_max=1,
            VCPUs_at_startup=1,
            actions_after_shutdown="destroy",
            actions_after_reboot="restart",
            actions_after_crash="restart",
            domain_type="hvm",
            HVM_boot_policy="BIOS order",
            HVM_boot_params={"order": "cdn", "firmware": "uefi" if template.uefi else "bios"},
            has_vendor_device=False,
            platform=_platform(template),
            other_config=_other_config(template, db.new_uuid()),
            recommendations=_recommendations(template),
        )
        update_memory_overhead(db, vm)
        pool.operations.refresh("VM", vm)


def _description(template: Template) -> str:
    if not template.disk:
        return (
            "Template which allows VM installation from install media and allows booting from PXE"
        )
    return f"Template that allows installing {template.name} on a new VM"


def _platform(template: Template) -> dict[str, str]:
    platform = {
        "acpi": "1",
        "apic": "true",
        "hpet": "true",
        "nx": "true",
        "pae": "true",
        "videoram": "8",
        "vga": "std",
        "viridian": str(not template.linux).lower(),
        "device-model": "qemu-upstream-uefi" if template.uefi else "qemu-upstream-compat",
    }
    if template.uefi:
        platform["secureboot"] = "false"
    return platform


def _other_config(template: Template, seed: str) -> dict[str, str]:
    config = {
        "default_template": "true",
        "mac_seed": seed,
        "install-methods": "cdrom,nfs,http,ftp" if template.linux else "cdrom",
    }
    if template.linux:
        config["linux_template"] = "true"
    if template.disk:
        disk = WantedDisk("0", template.disk, "", bootable=True, type="system")
        config[DISKS_KEY] = write_disks([disk])
    return config


def _recommendations(template: Template) -> str:
    restrictions = (
        {"field": "memory-static-min", "min": str(template.memory)},
        {"field": "memory-static-max", "max": str(template.most_memory)},
        {"field": "vcpus-min", "min": "1"},
        {"field": "vcpus-max", "max": str(MOST_VCPUS)},
        {"field": "has-vendor-device", "value": "false"},
        {"field": "allow-gpu-passthrough", "value": "1"},
        {"field": "allow-vgpu", "value": "1"},
        {"field": "allow-network-sriov", "value": "1"},
        {"field": "supports-bios", "value": "yes"},
        {"field": "supports-uefi", "value": "yes" if template.uefi else "no"},
        {"field": "supports-secure-boot", "value": "yes" if template.uefi else "no"},
        {"property": "number-of-vbds", "max": "255"},
        {"property": "number-of-vifs", "max": "7"},
    )
    elements = "".join(
        f"<restriction {' '.join(f'{key}={quoteattr(value)}' for key, value in each.items())}/>"
        for each in restrictions
    )
    return f"<restrictions>{elements}</restrictions>"
