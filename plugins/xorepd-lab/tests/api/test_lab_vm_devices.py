"""VBDs and VIFs: plugging, media, names and addresses."""

import pytest

from tests.lab.labclient import NULL, Api, vbd_record, vdi_record, vif_record
from tests.lab.vmwatch import empty_drive
from xorepd_lab.classes.devices.vif import mac_from_seed
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


async def test_a_disk_is_plugged_into_a_running_vm_and_out_again(api: Api) -> None:
    vm = await api.vm("web01")
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    disk = await api("VDI.create", vdi_record(sr))
    vbd = await api("VBD.create", vbd_record(vm, disk))

    assert set(await api("VBD.get_allowed_operations", vbd)) >= {"attach", "plug"}
    await api("VBD.plug", vbd)
    record = await api("VBD.get_record", vbd)
    assert (record["currently_attached"], record["device"]) == (True, "xvdc")
    assert await api.failure("VBD.plug", vbd) == ["DEVICE_ALREADY_ATTACHED", vbd]
    assert (await api.failure("VBD.set_mode", vbd, "RO"))[0] == "VM_BAD_POWER_STATE"
    await api("VM.add_to_other_config", vm, "lab:guest", "holds-disks")
    assert (await api.failure("VBD.unplug", vbd))[:3] == ["DEVICE_DETACH_REJECTED", "VBD", vbd]
    await api("VBD.unplug_force", vbd)
    assert await api.failure("VBD.unplug", vbd) == ["DEVICE_ALREADY_DETACHED", vbd]
    await api("VBD.destroy", vbd)
    await api("VDI.destroy", disk)


async def test_disks_are_not_plugged_where_that_cannot_be(api: Api) -> None:
    halted, running = await api.vm("db01"), await api.vm("web01")
    (vbd, *_) = await api("VM.get_VBDs", halted)

    assert await api.failure("VBD.plug", vbd) == [
        "VM_BAD_POWER_STATE",
        halted,
        "running",
        "halted",
    ]
    drive = await empty_drive(api, running)
    assert (await api.failure("VBD.unplug", drive))[0] == "OPERATION_NOT_ALLOWED"
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    data = await api("VDI.create", vdi_record(sr))
    readonly = await api("VBD.create", vbd_record(running, data, mode="RO"))
    assert await api.failure("VBD.plug", readonly) == [
        "DISK_VBD_MUST_BE_READWRITE_FOR_HVM",
        readonly,
    ]
    pinned = await api("VBD.create", vbd_record(running, data, unpluggable=False, mode="RW"))
    await api("VBD.plug", pinned)
    assert await api.failure("VBD.unplug", pinned) == ["VBD_NOT_UNPLUGGABLE", pinned]


async def test_a_guest_writes_to_no_drive_that_it_may_only_read(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    (sr,) = await api("SR.get_by_name_label", "prod-local")
    vdi = await api("VDI.create", vdi_record(sr))
    await api("VBD.create", vbd_record(vm, vdi, mode="RO", userdevice="7"))
    await api("VM.start", vm, False, False)

    with pytest.raises(ValueError, match="db01 may only read disk 7"):
        await lab.guest_write("db01", 7, random=1)


async def test_a_guest_writes_nowhere_beyond_the_end_of_its_disk(lab: Lab) -> None:
    beyond = (0, 1 << 40)
    for write in (
        lab.guest_write("web01", 0, sequential=beyond),
        lab.guest_write("web01", 0, trim=beyond),
        lab.guest_write("web01", 0, random=1, within=beyond),
    ):
        with pytest.raises(ValueError, match="disk 0 of web01 has 67108864 bytes, and none at 0"):
            await write


async def test_a_vm_without_drivers_has_no_hotplug(api: Api) -> None:
    vm = await api.vm("db01")
    await api("VM.add_to_other_config", vm, "lab:guest", "no-tools")
    await api("VM.start", vm, False, False)
    (sr,) = await api("SR.get_by_name_label", "prod-local")
    vbd = await api("VBD.create", vbd_record(vm, await api("VDI.create", vdi_record(sr))))
    (vif,) = await api("VM.get_VIFs", vm)

    assert await api.failure("VBD.plug", vbd) == ["VM_MISSING_PV_DRIVERS", vm]
    assert await api.failure("VIF.unplug", vif) == ["VM_MISSING_PV_DRIVERS", vm]


async def test_a_disc_goes_into_an_empty_drive_and_out_of_a_full_one(api: Api) -> None:
    vm = await api.vm("web01")
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    disc = await api("VDI.create", vdi_record(sr, read_only=True))
    drive = await empty_drive(api, vm)

    assert await api.failure("VBD.eject", drive) == ["VBD_IS_EMPTY", drive]
    await api("VBD.insert", drive, disc)
    assert await api("VBD.get_VDI", drive) == disc
    assert await api.failure("VBD.insert", drive, disc) == ["VBD_NOT_EMPTY", drive]
    await api("VBD.eject", drive)
    assert await api("VBD.get_VDI", drive) == NULL
    (root, *_) = await api("VM.get_VBDs", vm)
    assert await api.failure("VBD.eject", root) == ["VBD_NOT_REMOVABLE_MEDIA", root]


async def test_names_of_disks_clash_in_all_their_spellings(api: Api) -> None:
    vm, disk = await api.vm("db01"), await api.disk("db01-data")

    for name in ("hda", "xvda", "0", "xvdd"):
        failure = await api.failure("VBD.create", vbd_record(vm, disk, userdevice=name))
        assert failure == ["DEVICE_ALREADY_EXISTS", name]
    vbd = await api("VBD.create", vbd_record(vm, disk, userdevice="xvdb"))
    assert "1" not in await api("VM.get_allowed_VBD_devices", vm)
    await api("VBD.destroy", vbd)
    assert (await api("VM.get_allowed_VBD_devices", vm))[:3] == ["1", "2", "4"]


async def test_an_interface_comes_and_goes_and_the_guest_tells(api: Api) -> None:
    vm, network = await api.vm("web01"), (await api("network.get_all"))[0]
    vif = await api("VIF.create", vif_record(vm, network))
    metrics = await api("VM.get_guest_metrics", vm)

    await api("VIF.plug", vif)
    assert "1/ip" in await api("VM_guest_metrics.get_networks", metrics)
    assert await api.failure("VIF.plug", vif) == ["DEVICE_ALREADY_ATTACHED", vif]
    assert await api.failure("VIF.destroy", vif) == [
        "OPERATION_NOT_ALLOWED",
        "VIF currently attached to a running VM",
    ]
    await api("VIF.configure_ipv4", vif, "Static", "192.0.2.77/24", "192.0.2.1")
    assert (await api("VM_guest_metrics.get_networks", metrics))["1/ip"] == "192.0.2.77"
    assert await api.failure("VIF.configure_ipv4", vif, "Static", "nowhere", "") == [
        "INVALID_CIDR_ADDRESS_SPECIFIED",
        "address",
    ]
    await api("VIF.unplug", vif)
    assert "1/ip" not in await api("VM_guest_metrics.get_networks", metrics)
    await api("VIF.destroy", vif)


async def test_addresses_of_an_interface_are_checked(api: Api) -> None:
    (vif,) = await api("VM.get_VIFs", await api.vm("db01"))

    await api("VIF.set_ipv4_allowed", vif, ["192.0.2.1", "192.0.2.1"])
    await api("VIF.add_ipv6_allowed", vif, "2001:db8::1")
    assert await api("VIF.get_ipv4_allowed", vif) == ["192.0.2.1"]
    assert await api.failure("VIF.add_ipv4_allowed", vif, "2001:db8::1") == [
        "INVALID_IP_ADDRESS_SPECIFIED",
        "ipv4_allowed",
    ]
    await api("VIF.remove_ipv6_allowed", vif, "2001:db8::1")
    assert await api("VIF.get_ipv6_allowed", vif) == []
    assert (await api.failure("VIF.configure_ipv4", vif, "None"))[0] == "VM_LACKS_FEATURE"


async def test_an_interface_moves_to_another_network_under_the_guest(api: Api) -> None:
    (vif,) = await api("VM.get_VIFs", await api.vm("web01"))
    network = await api(
        "network.create", {"name_label": "other", "other_config": {}, "MTU": "1500"}
    )

    await api("VIF.move", vif, network)

    assert await api("VIF.get_network", vif) == network
    assert await api("VIF.get_currently_attached", vif) is True
    assert await api("network.get_VIFs", network) == [vif]


def test_addresses_follow_from_the_seed() -> None:
    made = [mac_from_seed("e4a8f2c0-3d44-9b1f-6f1b-1f0f7d2f1c11", str(n)) for n in range(3)]

    assert len(set(made)) == 3
    assert made == [mac_from_seed("e4a8f2c0-3d44-9b1f-6f1b-1f0f7d2f1c11", str(n)) for n in range(3)]
    assert all(int(mac[:2], 16) & 3 == 2 for mac in made)
