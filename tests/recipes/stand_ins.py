"""Programs that the recipes' machine has not: each does for them what the real one does.

`python -m tests.recipes.stand_ins NAME ARGUMENTS…`, with the machine's directory in `$MACHINE`.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

READY_S = 300.0


def machine() -> Path:
    return Path(os.environ["MACHINE"])


def fail(text: str) -> None:
    sys.exit(f"stand-in: {text}")


# -- what installs -----------------------------------------------------------------------------


def python3(arguments: Sequence[str]) -> None:
    """Make a virtual environment whose pip is a stand-in; run anything else as it is."""
    match list(arguments):
        case ["-m", "venv", directory]:
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
            pip_there = Path(directory) / "bin" / "pip"
            pip_there.write_text(
                f'#!/bin/sh\nVENV={directory} exec {machine()}/stand-ins/pip "$@"\n'
            )
            pip_there.chmod(0o755)
        case _:
            os.execv(sys.executable, [sys.executable, *arguments])


def pip(arguments: Sequence[str]) -> None:
    """Install a distribution of this repository by linking to what is installed already."""
    match [each for each in arguments if each != "--upgrade"]:
        case ["install", directory]:
            project = tomllib.loads((Path(directory) / "pyproject.toml").read_text())["project"]
        case _:
            fail(f"pip {shlex.join(arguments)}")
    there = Path(os.environ.get("VENV", machine())) / "bin"
    there.mkdir(exist_ok=True)
    for name in project.get("scripts", {}):
        (there / name).unlink(missing_ok=True)
        (there / name).symlink_to(Path(os.environ["BIN"]) / name)
    _link_data(Path(directory), there.parent)
    print(f"Successfully installed {project['name']}-{project['version']}")


def _link_data(source: Path, there: Path) -> None:
    """Link what the wheel brings beside the package."""
    text = (source / "pyproject.toml").read_text()
    wheel = tomllib.loads(text)["tool"]["hatch"]["build"]["targets"]["wheel"]
    for name, installed in wheel.get("shared-data", {}).items():
        place = there / installed
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to((source / name).resolve(strict=True))


# -- what needs root ---------------------------------------------------------------------------


def install(arguments: Sequence[str]) -> None:
    """Install for whom it is, but owned by the one who runs this; what a person types is a file."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument in ("-o", "-g"):
            _known(next(rest))
        else:
            kept.append(argument)
    if "/dev/stdin" in kept:
        kept[kept.index("/dev/stdin")] = str(machine() / "typed" / Path(kept[-1]).name)
    subprocess.run(["/usr/bin/install", *kept], check=True)


def chown(arguments: Sequence[str]) -> None:
    owner, *paths = [argument for argument in arguments if not argument.startswith("-")]
    for name in owner.split(":"):
        _known(name)
    for path in paths:
        if not Path(path).exists():
            fail(f"chown: there is no {path}")


def useradd(arguments: Sequence[str]) -> None:
    with (machine() / "users").open("a") as users:
        users.write(f"{arguments[-1]}\n")


def usermod(arguments: Sequence[str]) -> None:
    _known(arguments[arguments.index("-aG") + 1])


def _known(name: str) -> None:
    """Refuse a user or group that no recipe has made before."""
    users = machine() / "users"
    if name not in {"root", *(users.read_text().split() if users.exists() else ())}:
        fail(f"there is no user {name}")


# -- systemd -----------------------------------------------------------------------------------


def systemctl(arguments: Sequence[str]) -> None:
    match list(arguments):
        case ["daemon-reload"]:
            pass
        case ["edit", unit]:
            drop_in = _units() / f"{unit}.service.d" / "override.conf"
            drop_in.parent.mkdir()
            shutil.copy(machine() / "typed" / "override.conf", drop_in)
        case ["enable", "--now", unit] | ["start", unit]:
            _start(unit)
        case ["restart", unit]:
            _stop(unit)
            _start(unit)
        case ["stop", unit]:
            _stop(unit)
        case ["reload", unit]:
            command = _settings(unit)["ExecReload"][-1]
            subprocess.run(shlex.split(_moved(command)), check=True)
        case _:
            fail(f"systemctl {shlex.join(arguments)}")


def _units() -> Path:
    return machine() / "etc/systemd/system"


def _settings(unit: str) -> dict[str, list[str]]:
    """Return what a unit and its drop-ins say, by key."""
    said = defaultdict(list)
    files = [_units() / f"{unit}.service", *(_units() / f"{unit}.service.d").glob("*.conf")]
    for file in files:
        for line in file.read_text().splitlines():
            if line and line[0] not in "#;[":
                key, _, value = line.partition("=")
                said[key.strip()].append(value.strip())
    return said


def _moved(text: str) -> str:
    """Return a command of a unit with the paths of this machine."""
    from tests.recipes.machine import Machine

    return Machine(machine()).here(text)


def _start(unit: str) -> None:
    """Start a service as systemd would: with its credentials, until it says that it is ready."""
    settings = _settings(unit)
    credentials = machine() / "run" / "credentials" / unit
    credentials.mkdir(parents=True, exist_ok=True)
    for loaded in settings["LoadCredential"]:
        name, _, path = loaded.partition(":")
        shutil.copy(_moved(path), credentials / name)
    for kind in ("State", "Runtime"):
        for name in settings[f"{kind}Directory"]:
            base = {"State": "var/lib", "Runtime": "run"}[kind]
            (machine() / base / name).mkdir(parents=True, exist_ok=True)
    notify = machine() / "run" / f"{unit}.notify"
    notify.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(notify))
        heard.settimeout(READY_S)
        with (machine() / f"{unit}.log").open("ab") as log:
            process = subprocess.Popen(
                shlex.split(_moved(settings["ExecStart"][-1])),
                env=dict(os.environ)
                | {"NOTIFY_SOCKET": str(notify), "CREDENTIALS_DIRECTORY": str(credentials)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (machine() / "run" / f"{unit}.pid").write_text(str(process.pid))
        while b"READY=1" not in heard.recv(4096):
            pass


def _stop(unit: str) -> None:
    file = machine() / "run" / f"{unit}.pid"
    process = int(file.read_text())
    ended = os.pidfd_open(process)
    os.kill(process, signal.SIGTERM)
    select.select([ended], [], [])
    os.close(ended)
    file.unlink()


# -- xe, on a host of a pool -------------------------------------------------------------------


def xe(arguments: Sequence[str]) -> None:
    """Do with the SDK what xe does, as far as the pages use it."""
    from xorepd_lab.demo.proof import login

    command, *rest = arguments
    given = dict(argument.split("=", 1) for argument in rest)
    pool = {
        key: os.environ[f"XE_{key.upper()}"] for key in ("url", "username", "password", "ca_file")
    }
    with login(pool) as xenapi:
        XE[command](xenapi, given)


def _print(record: dict[str, Any], params: str) -> None:
    for name in params.split(","):
        print(f"{name} ( RO)    : {record[name.replace('-', '_')]}")
    print()


def _vm(xenapi: Any, given: dict[str, str]) -> str:
    return str(xenapi.VM.get_by_uuid(given["uuid"]))


def _vm_list(xenapi: Any, given: dict[str, str]) -> None:
    for record in xenapi.VM.get_all_records().values():
        if record["is_a_template"] or record["is_control_domain"]:
            continue
        if record["name_label"] == given["name-label"]:
            _print(record, given["params"])


def _snapshot_list(xenapi: Any, given: dict[str, str]) -> None:
    of = xenapi.VM.get_by_uuid(given["snapshot-of"])
    for record in xenapi.VM.get_all_records().values():
        if record["is_a_snapshot"] and record["snapshot_of"] == of:
            _print(record, given["params"])


def _clone(xenapi: Any, given: dict[str, str]) -> None:
    made = xenapi.VM.clone(_vm(xenapi, given), given["new-name-label"])
    print(xenapi.VM.get_uuid(made))


def _set_template(xenapi: Any, given: dict[str, str]) -> None:
    xenapi.VM.set_is_a_template(_vm(xenapi, given), given["is-a-template"] == "true")


def _remove(xenapi: Any, given: dict[str, str]) -> None:
    xenapi.VM.remove_tags(_vm(xenapi, given), given["param-key"])


def _clear(xenapi: Any, given: dict[str, str]) -> None:
    xenapi.VM.set_blocked_operations(_vm(xenapi, given), {})


XE: dict[str, Callable[[Any, dict[str, str]], None]] = {
    "vm-list": _vm_list,
    "snapshot-list": _snapshot_list,
    "snapshot-clone": _clone,
    "vm-clone": _clone,
    "template-param-set": _set_template,
    "vm-param-remove": _remove,
    "vm-param-clear": _clear,
    "vm-start": lambda xenapi, given: xenapi.VM.start(_vm(xenapi, given), False, False),
    "vm-resume": lambda xenapi, given: xenapi.VM.resume(_vm(xenapi, given), False, False),
}

STAND_INS: dict[str, Callable[[Sequence[str]], None]] = {
    each.__name__: each for each in (python3, pip, install, chown, useradd, usermod, systemctl, xe)
}

if __name__ == "__main__":
    STAND_INS[sys.argv[1]](sys.argv[2:])
