"""The methods that there are, by the signatures that declare their handlers.

A handler is declared by the signature that XAPI's data model gives it::

    @rpc("VM.snapshot(vm: ref VM, new_name: string, ignore_vdis: set ref VDI = [])")
    async def snapshot(call: Call, vm: str, new_name: str, ignore_vdis: list[str]) -> str: ...

The session, first parameter of nearly every call, is not passed on to it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from xorepd_lab.model.datamodel import ENUMS
from xorepd_lab.model.schema import Type, parse_type

Handler = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    type: Type
    mandatory: bool
    default: Any = None


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    parameters: tuple[Parameter, ...]
    handler: Handler
    asynchronous: bool = True
    """Whether `Async.<name>` exists."""
    session: bool = True
    tracked: bool = True
    """Whether a synchronous call shows as a task while it runs."""
    newer: bool = False
    """Whether pools of XCP-ng 8.3 do not know it."""

    @property
    def mandatory(self) -> int:
        return sum(p.mandatory for p in self.parameters)


METHODS: dict[str, Method] = {}
"""Every method by both its spellings, `VM.start` and `VM_start`."""

_SIGNATURE = re.compile(r"(?P<name>\w+\.\w+)\((?P<params>.*)\)$", re.DOTALL)
_PARAMETER = re.compile(r"\s*(?P<name>\w+): (?P<type>[\w ]+?)(?: = (?P<default>.+))?\s*$")


def register(method: Method, replace: bool = True) -> None:
    if not replace and method.name in METHODS:
        return
    METHODS[method.name] = method
    METHODS[method.name.replace(".", "_", 1)] = method


def rpc(
    signature: str, *, asynchronous: bool = True, session: bool = True, newer: bool = False
) -> Callable[[Handler], Handler]:
    """Declare the handler of one method. Defaults are written as JSON."""
    found = _SIGNATURE.match(signature)
    if found is None:
        raise ValueError(f"cannot read the signature {signature!r}")
    parameters = read_parameters(found["params"])

    def declare(handler: Handler) -> Handler:
        register(
            Method(
                found["name"],
                parameters,
                handler,
                asynchronous,
                session,
                tracked=asynchronous,
                newer=newer,
            )
        )
        return handler

    return declare


def read_parameters(text: str) -> tuple[Parameter, ...]:
    """Read what stands between the parentheses of a signature."""
    return tuple(_parameter(part) for part in text.split(",") if part.strip())


def _parameter(text: str) -> Parameter:
    found = _PARAMETER.match(text)
    if found is None:
        raise ValueError(f"cannot read the parameter {text!r}")
    declared = parse_type(found["type"], ENUMS)
    if found["default"] is None:
        return Parameter(found["name"], declared, mandatory=True)
    return Parameter(found["name"], declared, mandatory=False, default=json.loads(found["default"]))


def split_name(name: str) -> tuple[str, bool]:
    """Return a method's name and whether its `Async.` form was asked for."""
    for prefix in ("Async.", "InternalAsync."):
        if name.startswith(prefix):
            return name.removeprefix(prefix), True
    return name, False


@cache
def method_names(release: str) -> tuple[str, ...]:
    """Return the names of all methods that a pool of a release knows, once each."""
    old = release == "8.3"
    return tuple(sorted({m.name for m in METHODS.values() if not (m.newer and old)}))
