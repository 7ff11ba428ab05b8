"""The hands of people: the XenAPI SDK in a thread, and what they make, remove and write."""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import Collection, Coroutine
from contextlib import ExitStack, closing, suppress
from http.client import HTTPException, HTTPSConnection
from random import Random
from typing import Any
from urllib.parse import urlencode, urlsplit

import XenAPI

from tests.lab import hands
from tests.lab.labclient import VM_RECORD, vbd_record, vdi_record
from tests.mischief import contents
from tests.mischief.plan import Kind, Role
from tests.mischief.scene import NULL, Key, Look, Scene, Thing, Written
from tests.patience import patience
from xorepd_lab.demo.proof import login

LONGEST_S = patience(30.0)
"""What takes longer hangs."""

MiB = 1 << 20


class NotNow(Exception):
    """What is meant cannot be done as things stand."""


REFUSALS = (XenAPI.Failure, HTTPException, OSError, NotNow)
"""How a pool, or the situation, says no."""


class People:
    """What people do in one deed. Used in a thread: the lab lives in the loop."""

    def __init__(self, scene: Scene, look: Look, role: Role, rng: Random) -> None:
        self.scene, self.look, self.role, self.rng = scene, look, role, rng
        self.made: list[tuple[Kind, Key]] = []
        self.removed: list[Key] = []
        self.wrote: list[Written] = []
        self.touched_power = False
        """Whether they care how the source VM runs from now on."""
        self.hid_power = False
        """Whether they took away what tells that a run has stopped the source VM."""
        self._stack = ExitStack()
        self._sessions: dict[str, Any] = {}
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        with suppress(*REFUSALS):  # the toolstack may have forgotten the session
            self._stack.close()

    # -- the pools ------------------------------------------------------------------------------

    def x(self, pool: str) -> Any:
        """Return the SDK, logged in to a pool."""
        if pool not in self._sessions:
            described = self.scene.world.described(pool)
            self._sessions[pool] = self._stack.enter_context(login(described))
        return self._sessions[pool]

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something in the loop of the lab."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LONGEST_S)

    def name(self, what: str) -> str:
        """Return a name that nothing has."""
        self.scene.names += 1
        return f"{what} {self.scene.names}"

    def storage(self, pool: str, *, but: str = "") -> str:
        """Return an SR of a pool for disks."""
        srs = [
            ref
            for (name, ref), sr in self.look.srs.items()
            if name == pool and sr["content_type"] != "iso" and sr["name_label"] != "removable"
        ]
        return self.rng.choice([sr for sr in srs if sr != but] or srs)

    def look_at_keys(self, key: Key) -> None:
        """Note that they are going to change the keys of something."""
        if key == self.scene.source and key in self.look.vms:
            self.hid_power |= "xorepd:restart" in self.look.vms[key]["other_config"]

    # -- what they make and remove --------------------------------------------------------------

    def made_vm(self, pool: str, ref: str) -> str:
        """Remember a VM that they made, with the disks that it came with."""
        x = self.x(pool)
        self.made.append((Kind.VM, (pool, ref)))
        for vdi in hands.disks_of(x, ref).values():
            self.made_disk(pool, vdi)
        if (image := x.VM.get_suspend_VDI(ref)) != NULL:
            self.made_disk(pool, image)
        return ref

    def made_disk(self, pool: str, ref: str) -> str:
        self.made.append((Kind.VDI, (pool, ref)))
        return ref

    def create_vm(self, pool: str, what: str) -> str:
        record = {**VM_RECORD, "name_label": self.name(what)}
        return self.made_vm(pool, str(self.x(pool).VM.create(record)))

    def create_disk(self, pool: str, sr: str) -> str:
        record = vdi_record(sr, 2 * MiB, name_label=self.name("scratch"))
        return self.made_disk(pool, str(self.x(pool).VDI.create(record)))

    def attach(self, pool: str, vm: str, vdi: str, device: str, mode: str = "RW") -> str:
        return str(self.x(pool).VBD.create(vbd_record(vm, vdi, userdevice=device, mode=mode)))

    def destroy_disk(self, pool: str, ref: str) -> None:
        self.x(pool).VDI.destroy(ref)
        self.removed.append((pool, ref))

    def destroy_vm(self, pool: str, ref: str, *, with_disks: bool) -> None:
        """Delete a VM or a snapshot, as the usual tools do: with its disks, or its record alone."""
        x = self.x(pool)
        parts = list(hands.disks_of(x, ref).values()) if with_disks else []
        if with_disks and (image := x.VM.get_suspend_VDI(ref)) != NULL:
            parts.append(image)
        self.halt(pool, ref)
        x.VM.set_blocked_operations(ref, {})
        x.VM.destroy(ref)
        self.removed.append((pool, ref))
        for vdi in parts:
            with suppress(XenAPI.Failure):  # another VM may have it as well
                self.destroy_disk(pool, vdi)

    def halt(self, pool: str, ref: str) -> None:
        if self.x(pool).VM.get_power_state(ref) in ("Running", "Paused"):
            self.x(pool).VM.hard_shutdown(ref)
            self.touched_power |= (pool, ref) == self.scene.source

    # -- what they write ------------------------------------------------------------------------

    def write(self, pool: str, vm: str, device: str) -> None:
        """Let a running VM write to one of its disks."""
        x = self.x(pool)
        vdi = hands.disks_of(x, vm)[device]
        size = int(x.VDI.get_virtual_size(vdi))
        offset = self.rng.randrange(size // contents.PAGE) * contents.PAGE
        seed = self.rng.getrandbits(32)
        name = x.VM.get_name_label(vm)
        where = (offset, contents.PAGE)
        try:
            self.wait(
                self.scene.world.lab.guest_write(name, int(device), sequential=where, seed=seed)
            )
        except ValueError as error:  # several VMs of that name
            raise NotNow(str(error)) from error
        self._remember(pool, vdi, offset)

    def write_to(self, pool: str, vdi: str) -> None:
        """Attach a disk to a VM that was made for this, write to it, and detach it."""
        x = self.x(pool)
        rescue = self.create_vm(pool, "rescue")
        self.attach(pool, rescue, vdi, "0")
        try:
            x.VM.start(rescue, False, False)
            self.write(pool, rescue, "0")
        finally:
            self.destroy_vm(pool, rescue, with_disks=False)

    def _remember(self, pool: str, vdi: str, offset: int) -> None:
        look = Look(self.scene.world)
        thing = look.thing((pool, vdi))
        place = look.place(thing.key)
        assert place is not None
        self.wrote.append(Written(thing, self.role, offset, contents.page(place, offset)))

    # -- archives -------------------------------------------------------------------------------

    def export(self, thing: Thing) -> bytes:
        """Return a VM as an XVA."""
        with closing(self._connection(thing.pool)) as wire:
            path = f"/export?{urlencode({'ref': thing.ref})}"
            wire.request("GET", path, headers=self._credentials(thing.pool))
            answer = wire.getresponse()
            if answer.status != 200:
                raise NotNow(f"the pool answers {answer.status}")
            return answer.read()

    def import_vm(self, archive: bytes, pool: str, sr: str, *, restore: bool) -> list[str]:
        """Make VMs of an XVA."""
        x = self.x(pool)
        task = x.task.create("import by hand", "")
        try:
            wanted = {"sr_id": sr, "task_id": task, "restore": "true" if restore else "false"}
            with closing(self._connection(pool)) as wire:
                path = f"/import?{urlencode(wanted)}"
                wire.request("PUT", path, archive, self._credentials(pool))
                answer = wire.getresponse()
                answer.read()
            if x.task.get_status(task) != "success":
                raise NotNow(f"the import fails: {x.task.get_error_info(task)}")
            made = re.findall(r"OpaqueRef:[0-9a-f-]+", x.task.get_result(task))
        finally:
            x.task.destroy(task)
        return [self.made_vm(pool, ref) for ref in made]

    def _credentials(self, pool: str) -> dict[str, str]:
        described = self.scene.world.described(pool)
        plain = f"{described['username']}:{described['password']}".encode()
        return {"Authorization": f"Basic {base64.b64encode(plain).decode()}"}

    def _connection(self, pool: str) -> HTTPSConnection:
        described = self.scene.world.described(pool)
        place = urlsplit(described["url"])
        tls = ssl.create_default_context(cafile=described["ca_file"])
        return HTTPSConnection(place.hostname or "", place.port, context=tls, timeout=LONGEST_S)


def choose(rng: Random, things: Collection[Thing]) -> Thing:
    if not things:
        raise NotNow("there is none")
    return rng.choice(list(things))
