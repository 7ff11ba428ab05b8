"""What tests of VMs look at and wait for."""

from typing import Any

from tests.lab.labclient import FAST, NULL, Api


async def until(api: Api, getter: str, ref: str, wanted: Any) -> None:
    """Wait until a field has a value."""
    cls = getter.partition(".")[0]
    token = ""
    while await api(getter, ref) != wanted:
        token = (await api("event.from", [f"{cls}/{ref}"], token, 5.0))["token"]


async def begun(api: Api, vm: str, operation: str, *arguments: Any) -> str:
    """Begin something to a VM that takes for ever, wait until it has a host, return the task."""
    api.pool.clock.scale = 60.0
    task = str(await api(f"Async.VM.{operation}", vm, *arguments))
    while await api("VM.get_scheduled_to_be_resident_on", vm) == NULL:
        pass
    api.pool.clock.scale = FAST
    return task


async def tools(api: Api, vm: str) -> dict[str, Any]:
    """Wait until the guest has reported and return what it said."""
    token = ""
    while (metrics := await api("VM.get_guest_metrics", vm)) == NULL:  # it has not booted that far
        token = (await api("event.from", [f"VM/{vm}"], token, 5.0))["token"]
    await until(api, "VM_guest_metrics.get_PV_drivers_detected", metrics, True)
    return dict(await api("VM_guest_metrics.get_record", metrics))


async def messages(api: Api, vm: str) -> list[str]:
    uuid = await api("VM.get_uuid", vm)
    records = (await api("message.get_all_records")).values()
    return [record["name"] for record in records if record["obj_uuid"] == uuid]


async def host(api: Api, name: str) -> str:
    (found,) = await api("host.get_by_name_label", name)
    return str(found)


async def free_memory(api: Api, name: str) -> int:
    metrics = await api("host.get_metrics", await host(api, name))
    return int((await api("host_metrics.get_record", metrics))["memory_free"])


async def empty_drive(api: Api, vm: str) -> str:
    drives = [vbd for vbd in await api("VM.get_VBDs", vm) if await api("VBD.get_empty", vbd)]
    return str(drives[0])
