"""Build a lab from its topology, through the API's own calls wherever there is one."""

import random
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.signatures import METHODS
from xorepd_lab.classes.vm.power import boot, prepare
from xorepd_lab.disks.kinds import SrKind, kind_of
from xorepd_lab.disks.storage import Repository
from xorepd_lab.guests import workload as guests
from xorepd_lab.guests.iso9660 import make_iso
from xorepd_lab.guests.templates import make_templates
from xorepd_lab.model.roles import role_ref
from xorepd_lab.model.schema import words
from xorepd_lab.pools import Pool
from xorepd_lab.rules.placement import update_free_memory
from xorepd_lab.topology import (
    DiskSpec,
    FilesystemSpec,
    ImageSpec,
    NoiseSpec,
    PoolSpec,
    SrSpec,
    VmSpec,
)

SOFTWARE = {
    "product_brand": "XCP-ng",
    "product_version": "8.3.0",
    "product_version_text": "8.3",
    "product_version_text_short": "8.3",
    "platform_name": "XCP",
    "platform_version": "3.4.0",
    "build_number": "cloud",
    "git_id": "0",
    "hostname": "localhost",
    "date": "20250606",
    "xen": "4.17.5-13",
    "linux": "4.19.0+1",
    "xencenter_min": "2.21",
    "xencenter_max": "2.21",
    "network_backend": "openvswitch",
}
XAPI = {
    "8.3": {"xapi": "25.6", "xapi_build": "25.6.0", "db_schema": "5.786"},
    "26": {"xapi": "26.17", "xapi_build": "26.17.0", "db_schema": "5.909"},
}
"""What hosts say of their toolstack, by release."""
API_MAJOR = 2
API_MINOR = {"8.3": 21, "26": 23}
HOST_MEMORY = 256 << 30
NOISE_PLACES = 4
ISO_SIZE = 2 << 20
WORDS = words(
    "pool host disk chain base delta extent snapshot replica restore point schedule run"
    " job seed target source network bridge guest kernel service request answer queue"
    " index cache page"
)


async def build_pool(pool: Pool, spec: PoolSpec, addresses: dict[str, str]) -> None:
    """Make all objects of a pool. `addresses` gives each host its own."""
    db = pool.db
    hosts = {name: _make_host(pool, name, addresses[name]) for name in spec.hosts}
    db.create(
        "pool",
        name_label=spec.name,
        master=hosts[spec.hosts[0]],
        restrictions={"restrict_vtpm": "false", "restrict_cbt": "false"},
        cpu_info={"vendor": "GenuineIntel", "socket_count": str(len(hosts))},
    )
    _make_accounts(pool, spec)
    for kind in sorted({sr.type for sr in spec.srs}):
        _make_driver(pool, kind_of(kind))
    for control_domain in db.select("VM", is_control_domain=True):
        pool.operations.refresh("VM", control_domain)
    networks = {
        name: _make_network(pool, name, number, hosts) for number, name in enumerate(spec.networks)
    }
    if spec.nbd:
        await invoke(pool, "network.add_purpose", networks[spec.networks[0]], spec.nbd)
    for sr in spec.srs:
        await _make_sr(pool, sr, hosts)
    first = next(
        sr
        for sr, each in pool.storage.repositories.items()
        if each.space.kind.content_type == "user"
    )
    db.set("pool", next(db.select("pool")), default_SR=first, suspend_image_SR=first)
    make_templates(pool)
    for vm in spec.vms:
        await _make_vm(pool, vm, hosts, networks)


async def invoke(pool: Pool, name: str, *arguments: Any) -> Any:
    """Make a call from inside, as the toolstack."""
    result = METHODS[name].handler(Call(pool, pool.master), *arguments)
    return await result if hasattr(result, "__await__") else result


def _make_host(pool: Pool, name: str, address: str) -> str:
    db = pool.db
    metrics = db.create(
        "host_metrics",
        memory_total=HOST_MEMORY,
        live=True,
        last_updated=pool.clock.now(),
    )
    host = db.create(
        "host",
        name_label=name,
        hostname=name,
        address=address,
        enabled=True,
        metrics=metrics,
        software_version=SOFTWARE | XAPI[db.release],
        API_version_major=API_MAJOR,
        API_version_minor=API_MINOR[db.release],
        API_version_vendor="XenSource",
        virtual_hardware_platform_versions=[0, 1, 2],
        capabilities=["xen-3.0-x86_64", "hvm-3.0-x86_64"],
        cpu_info={"cpu_count": "16", "socket_count": "1", "vendor": "GenuineIntel"},
        edition="xcp-ng",
        ssl_legacy=False,
        allowed_operations=["provision", "evacuate", "vm_start", "vm_resume", "vm_migrate"],
    )
    control_domain = db.create(
        "VM",
        name_label=f"Control domain on host: {name}",
        is_control_domain=True,
        power_state="Running",
        resident_on=host,
        affinity=host,
        domid=0,
        memory_static_max=4 << 30,
        memory_dynamic_max=4 << 30,
        memory_dynamic_min=4 << 30,
        memory_static_min=4 << 30,
        VCPUs_max=4,
        VCPUs_at_startup=4,
        domain_type="pv",
        metrics=db.create("VM_metrics", last_updated=pool.clock.now()),
    )
    db.set("host", host, control_domain=control_domain)
    update_free_memory(db, host)
    return host


def _make_accounts(pool: Pool, spec: PoolSpec) -> None:
    """Let the pool trust a directory service and know its users by their roles."""
    db = pool.db
    for number, account in enumerate(spec.accounts):
        for host in db.refs("host"):
            db.set("host", host, external_auth_type="AD", external_auth_service_name="lab.test")
        db.create(
            "subject",
            subject_identifier=f"S-1-5-21-{number + 1000}",
            other_config={
                "subject-name": account.name,
                "subject-upn": f"{account.name}@lab.test",
                "subject-sid": f"S-1-5-21-{number + 1000}",
                "subject-is-group": "false",
                "subject-account-disabled": "false",
                "subject-account-expired": "false",
                "subject-account-locked": "false",
                "subject-password-expired": "false",
            },
            roles=[role_ref(account.role)] if account.role else [],
        )


def _make_network(pool: Pool, name: str, number: int, hosts: dict[str, str]) -> str:
    db = pool.db
    network = db.create("network", name_label=name, bridge=f"xenbr{number}")
    for position, host in enumerate(hosts.values()):
        address = pool.address(host) if number == 0 else ""
        db.create(
            "PIF",
            device=f"eth{number}",
            MAC=f"02:00:00:{number:02x}:00:{position + 1:02x}",
            MTU=1500,
            VLAN=-1,
            network=network,
            host=host,
            physical=True,
            management=number == 0,
            IP=address,
            netmask="255.0.0.0" if address else "",
            ip_configuration_mode="Static" if address else "None",
            metrics=db.create(
                "PIF_metrics",
                carrier=True,
                duplex=True,
                speed=10000,
                vendor_name="The xorepd lab",
                device_name="No network card",
                last_updated=pool.clock.now(),
            ),
        )
    return network


def _make_driver(pool: Pool, kind: SrKind) -> None:
    pool.db.create(
        "SM",
        name_label=kind.label,
        type=kind.type,
        vendor="The xorepd lab",
        version="1.0",
        required_api_version="1.0",
        driver_filename=f"/opt/xensource/sm/{kind.type.upper()}SR",
        features=dict(kind.features),
        capabilities=list(kind.features),
    )


async def _make_sr(pool: Pool, spec: SrSpec, hosts: dict[str, str]) -> None:
    db, kind = pool.db, kind_of(spec.type)
    sr = db.create(
        "SR",
        name_label=spec.name,
        type=spec.type,
        content_type=kind.content_type,
        shared=len(spec.hosts) > 1,
        physical_size=spec.size,
        sm_config={**kind.sm_config, **spec.sm_config},
    )
    repository = await pool.storage.add(sr, pool.sr_directory(db.get("SR", sr, "uuid")))
    config = {"location": str(repository.directory)}
    for name in spec.hosts:
        db.create("PBD", host=hosts[name], SR=sr, device_config=config, currently_attached=True)
    pool.operations.refresh("SR", sr)
    for image in spec.isos:
        await _make_iso(pool, repository, image)


async def _make_iso(pool: Pool, repository: Repository, name: str) -> None:
    """Put an image onto an SR that clients cannot write to."""
    store = repository.store
    uuid = pool.db.new_uuid()
    content = make_iso(name.removesuffix(".iso"), {"README.TXT": f"{name}\n".encode()}, ISO_SIZE)

    def fill() -> None:
        store.create(uuid, len(content))
        with store.open(uuid, writable=True) as disk:
            disk.write(0, content)

    await repository.change(fill)
    pool.db.create(
        "VDI",
        uuid=uuid,
        location=name,
        name_label=name,
        SR=repository.ref,
        type="user",
        virtual_size=len(content),
        read_only=True,
        managed=True,
    )
    await repository.follow(uuid)


async def _make_vm(
    pool: Pool, spec: VmSpec, hosts: dict[str, str], networks: dict[str, str]
) -> None:
    home = hosts.get(spec.running_on or "", "OpaqueRef:NULL")
    record = {
        "name_label": spec.name,
        "name_description": "made by the lab",
        "user_version": 1,
        "is_a_template": False,
        "affinity": home,
        "memory_static_max": spec.memory,
        "memory_dynamic_max": spec.memory,
        "memory_dynamic_min": spec.memory,
        "memory_static_min": spec.memory // 2,
        "VCPUs_params": {},
        "VCPUs_max": spec.vcpus,
        "VCPUs_at_startup": spec.vcpus,
        "actions_after_shutdown": "destroy",
        "actions_after_reboot": "restart",
        "actions_after_crash": "restart",
        "PV_bootloader": "",
        "PV_kernel": "",
        "PV_ramdisk": "",
        "PV_args": "",
        "PV_bootloader_args": "",
        "PV_legacy_args": "",
        "HVM_boot_policy": "BIOS order",
        "HVM_boot_params": {"order": "cd", "firmware": "bios"},
        "platform": {"acpi": "1", "apic": "true", "pae": "true", "viridian": "false"},
        "PCI_bus": "",
        "other_config": {},
        "recommendations": "",
    }
    vm = await invoke(pool, "VM.create", record)
    for position, disk in enumerate(spec.disks):
        vdi = await _make_disk(pool, disk)
        await _connect(pool, vm, str(position), vdi, bootable=position == 0)
    if spec.cd_drive:
        await _connect(pool, vm, "3", None, bootable=False)
    vif = {
        "device": "0",
        "network": networks[spec.network],
        "VM": vm,
        "MAC": spec.mac,
        "MTU": 1500,
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
    }
    await invoke(pool, "VIF.create", vif)
    if spec.running_on is not None:
        prepare(pool.internal_call(), vm)
        boot(pool.internal_call(), vm, home, paused=False, tools_at_once=True)


async def _connect(pool: Pool, vm: str, position: str, vdi: str | None, bootable: bool) -> None:
    record = {
        "VM": vm,
        "VDI": vdi or "OpaqueRef:NULL",
        "userdevice": position,
        "bootable": bootable,
        "mode": "RW" if vdi else "RO",
        "type": "Disk" if vdi else "CD",
        "empty": vdi is None,
        "other_config": {},
        "qos_algorithm_type": "",
        "qos_algorithm_params": {},
    }
    await invoke(pool, "VBD.create", record)


async def _make_disk(pool: Pool, spec: DiskSpec) -> str:
    record = {
        "SR": next(pool.db.select("SR", name_label=spec.sr)),
        "name_label": spec.name,
        "virtual_size": spec.size,
        "type": "user",
        "sharable": False,
        "read_only": False,
        "other_config": {},
    }
    vdi = str(await invoke(pool, "VDI.create", record))
    if spec.content is not None:
        seed = pool.db.rng.getrandbits(32)
        repository, uuid = pool.storage.of_vdi(vdi)

        def fill() -> None:
            with repository.store.open(uuid, writable=True) as disk:
                match spec.content:
                    case FilesystemSpec(size, files, file_size):
                        image = guests.make_ext4(make_files(files, file_size, seed), size, seed)
                        try:
                            guests.load_raw(disk, image)
                        finally:
                            image.unlink()
                    case NoiseSpec(total):
                        step = spec.size // NOISE_PLACES
                        for place in range(NOISE_PLACES):
                            length = total // NOISE_PLACES
                            guests.write_sequential(disk, place * step, length, seed + place)
                    case ImageSpec(path):
                        guests.load_raw(disk, path)
                    case None:
                        pass

        await repository.change(fill)
        await repository.reconcile()
    return vdi


def make_files(count: int, size: int, seed: int) -> dict[str, bytes]:
    """Return text files of a small web server, the same for the same seed."""
    rng = random.Random(seed)
    files = {
        "etc/hostname": b"web01\n",
        "etc/motd": b"Welcome to web01, a machine that does not exist.\n",
        "var/www/index.html": b"<html><body><h1>It works</h1></body></html>\n",
    }
    for number in range(count):
        line = "".join(f"{word} " for word in rng.choices(WORDS, k=2000)).encode()
        text = line * (size // len(line) + 1)
        files[f"srv/data/report-{number:03}.txt"] = f"report {number}\n".encode() + text[:size]
    return files
