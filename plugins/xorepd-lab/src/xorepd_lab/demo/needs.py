"""What the demo needs beside the lab: the daemon, and what judges the disks."""

import importlib.util
import shutil
import sys
from pathlib import Path

BIN = Path(sys.executable).parent

COMMANDS = ("xorepd", "xorepctl")
MODULES = {"XenAPI": "XenAPI", "pyvhdi": "libvhdi-python", "xxhash": "xxhash"}
"""Distributions by the modules that they bring."""
TOOLS = ("mkfs.ext4", "e2fsck", "debugfs")


def missing() -> str:
    """Return one sentence that says what is not there and how to install it; empty when all is."""
    lacking = ["xorepd"] if any(not (BIN / command).exists() for command in COMMANDS) else []
    lacking += [
        project for module, project in MODULES.items() if importlib.util.find_spec(module) is None
    ]
    if lacking:
        return f"{', '.join(lacking)} not installed; the extra xorepd-lab[demo] brings it"
    tools = [tool for tool in TOOLS if find_tool(tool) is None]
    if tools:
        return f"{', '.join(tools)} not installed (Debian: e2fsprogs)"
    return ""


def find_tool(name: str) -> str | None:
    """Return the path of a program; some systems keep e2fsprogs where users' PATH does not look."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
