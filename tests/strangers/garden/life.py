"""A VM's life as somebody writes it who uses XenGarden: life.py URL USER PASSWORD VM."""

import asyncio
import json
import sys
from typing import Any

from XenGarden.session import create_session
from XenGarden.SR import SR
from XenGarden.VM import VM


async def main(url: str, user: str, password: str, name: str) -> None:
    session = create_session("lab", {"lab": {"host": url, "username": user, "password": password}})
    (vm,) = [found for found in VM.list_vm(session) if found.get_name() == name]
    report: dict[str, Any] = {"cpus": vm.get_vCPUs(), "disks": len(vm.get_Disks())}
    report["macs"] = [vif.get_mac() for vif in vm.get_VIFs()]

    clone = await vm.clone(f"{name} in the garden")
    clone.set_description("planted")
    clone.set_vCPUs(4)
    clone.set_memory(1 << 30)
    await clone.start()
    report["clone"] = {
        "state": clone.get_power_state(),
        "description": clone.get_description(),
        "cpus": clone.get_vCPUs(),
        "memory": clone.get_memory(),
    }
    await clone.force_shutdown()
    disks = [vbd.get_VDI() for vbd in clone.get_Disks()]
    await clone.delete()
    for disk in disks:
        disk.destroy()
    report["srs"] = sorted(sr.get_name() for sr in SR.get_all(session))
    session.xenapi.session.logout()
    json.dump(report, sys.stdout)


asyncio.run(main(*sys.argv[1:]))
