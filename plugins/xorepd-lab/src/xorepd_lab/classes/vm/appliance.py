"""VM_appliance: VMs that are started and stopped together, in their order.

Source: xapi: ocaml/xapi/xapi_vm_appliance.ml, message_forwarding.ml.
"""

import asyncio
from contextlib import suppress
from itertools import groupby
from typing import Any

from xorepd_lab.calls.call import Call
from xorepd_lab.calls.dispatch import perform
from xorepd_lab.calls.generics import create_arguments
from xorepd_lab.calls.operations import Claim
from xorepd_lab.calls.signatures import rpc
from xorepd_lab.model.failures import NULL, ApiError


@rpc("VM_appliance.create(args: record VM_appliance)")
def create(call: Call, record: dict[str, Any]) -> str:
    ref = call.pool.db.create("VM_appliance", **create_arguments("VM_appliance", record))
    call.pool.operations.refresh("VM_appliance", ref)
    return ref


@rpc("VM_appliance.destroy(self: ref VM_appliance)")
def destroy(call: Call, appliance: str) -> None:
    for vm in call.pool.db.get("VM_appliance", appliance, "VMs"):
        call.pool.db.set("VM", vm, appliance=NULL)
    call.pool.db.destroy("VM_appliance", appliance)


@rpc("VM_appliance.start(self: ref VM_appliance, paused: bool)")
async def start(call: Call, appliance: str, paused: bool) -> None:
    state = "Paused" if paused else "Running"
    await _all(call, appliance, "start", state, paused, False)


@rpc("VM_appliance.clean_shutdown(self: ref VM_appliance)")
async def clean_shutdown(call: Call, appliance: str) -> None:
    await _all(call, appliance, "clean_shutdown", "Halted")


@rpc("VM_appliance.hard_shutdown(self: ref VM_appliance)")
async def hard_shutdown(call: Call, appliance: str) -> None:
    await _all(call, appliance, "hard_shutdown", "Halted")


@rpc("VM_appliance.shutdown(self: ref VM_appliance)")
async def shutdown(call: Call, appliance: str) -> None:
    await _all(call, appliance, "shutdown", "Halted")


async def _all(call: Call, appliance: str, operation: str, state: str, *arguments: bool) -> None:
    """Do one thing to all members not yet in a state: those of one order at a time, together.

    They are started from the lowest order, and stopped from the highest.

    Raises:
        ApiError: OPERATION_PARTIALLY_FAILED [operation, VMs that are not in that state].
    """
    db = call.pool.db

    def order(vm: str) -> int:
        return int(db.get("VM", vm, "order"))

    async with call.pool.operations.hold(call.task, Claim("VM_appliance", appliance, operation)):
        members = db.get("VM_appliance", appliance, "VMs")
        members = [vm for vm in members if db.get("VM", vm, "power_state") != state]
        members.sort(key=order, reverse=operation != "start")
        for _, together in groupby(members, key=order):
            async with asyncio.TaskGroup() as group:
                for vm in together:
                    group.create_task(_one(call, f"VM.{operation}", vm, *arguments))
        left = [vm for vm in members if db.get("VM", vm, "power_state") != state]
        if left:
            name = f"VM_appliance.{operation}"
            raise ApiError("OPERATION_PARTIALLY_FAILED", name, *left)


async def _one(call: Call, method: str, vm: str, *arguments: bool) -> None:
    # Whether it worked is read from the power state.
    with suppress(ApiError):
        await perform(call, method, vm, *arguments)
