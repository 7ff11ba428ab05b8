"""The steps of a bad day, with the UUIDs that each of them prints."""

from __future__ import annotations

import re

from tests.recipes.machine import Machine
from tests.recipes.pages import Block
from xorepd_lab.demo.proof import login
from xorepd_lab.demo.stage import Stage

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def clone_and_start(machine: Machine, pools: Stage, block: Block) -> dict[str, str]:
    """Do the steps of a page; return what each command of `xe` printed.

    All clones run afterwards, under the name of their source.
    """
    known: dict[str, str] = {}
    printed: dict[str, str] = {}
    clones: set[str] = set()
    for line in block.text.splitlines():
        if line and not line.startswith("#"):
            command = re.sub(r"<(.+?)>", lambda word: known[word[1]], line)
            verb = command.split()[1]
            printed[verb] = said = machine.run(command)
            names = {"vm-list": "replica uuid", "snapshot-list": "restore point uuid"}
            if (name := names.get(verb, "new uuid")) and (uuid := UUID.search(said)):
                known[name] = uuid[0]
                if name == "new uuid":
                    clones.add(uuid[0])
    for clone in clones - {known["new uuid"]}:
        machine.run(f"xe vm-start uuid={clone}")
    with login(pools.pools["dr"]) as xenapi:
        for made in clones:
            vm = xenapi.VM.get_by_uuid(made)
            assert xenapi.VM.get_power_state(vm) == "Running"
            assert xenapi.VM.get_name_label(vm) == "web01"
        assert xenapi.VM.get_tags(xenapi.VM.get_by_uuid(known["new uuid"])) == []
    return printed
