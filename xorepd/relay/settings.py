"""The configuration of a relay, `relay.toml`, as typed values.

It has the `[pools.NAME]` tables of `xorepd.toml`, and is read, expanded and checked like that file.
`config/relay.toml` shows every option to operators; a test keeps the two equal.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from xorepd.config.fields import (
    Duration,
    FilePath,
    Grace,
    Size,
    Table,
    UuidText,
    freeze,
    nearest,
)
from xorepd.config.load import read_tables, validate
from xorepd.config.models import Pools
from xorepd.config.secrets import secret_problems
from xorepd.errors import ConfigError, Refused, refuse
from xorepd.relay.certificates import is_name, server_context
from xorepd.relay.protocol.frames import SMALLEST_DATA_WINDOW
from xorepd.units import MiB


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError
    except ValueError:
        raise ValueError('write address and port, such as "0.0.0.0:9443" or "[::]:9443"') from None
    return text


Address = Annotated[str, AfterValidator(_address)]
"""`ADDRESS:PORT`, with an IPv6 address in brackets; port 0 lets the system choose."""


class RelayTable(Table):
    """The process itself."""

    listen: Address = "0.0.0.0:9443"
    certificate: FilePath
    """Certificate of the relay in PEM form, from `xorepd relay init`."""
    key: FilePath
    ca: FilePath
    """The CA that has signed the certificates of clients; no others may connect."""
    connections: Annotated[int, Field(ge=1, le=1024)] = 64
    """Most connections of all clients; each daemon has one."""
    disks: Annotated[int, Field(ge=1, le=256)] = 16
    """Disks written at once; others wait for their turn."""
    memory: Size = 256 * MiB
    """Half of it is for data in transit, shared by `disks`; half for the cache of units."""
    silence: Duration = 60.0
    """Seconds without a byte after which a client is disconnected."""
    grace: Grace = 60.0
    """Seconds that disks in transfer may take to end when the relay is told to stop."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"

    @property
    def place(self) -> tuple[str, int]:
        """Return address and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)

    @property
    def window(self) -> int:
        """Return how many bytes of one disk may be in transit."""
        return self.memory // 2 // self.disks

    @model_validator(mode="after")
    def _room_for_all(self) -> Self:
        if self.window < SMALLEST_DATA_WINDOW:
            least = 2 * self.disks * SMALLEST_DATA_WINDOW
            raise ValueError(
                f"memory is too small for {self.disks} disks; write at least {least // MiB}MiB, "
                "or fewer disks"
            )
        return self


class ClientTable(Table):
    """Permissions of a client, by the name in its certificate."""

    pools: Annotated[tuple[UuidText, ...], Field(strict=False, max_length=1000)] = ()
    """UUIDs of the source pools whose replicas it may write; empty: all."""


Clients = Annotated[Mapping[str, ClientTable], AfterValidator(freeze)]


class RelaySettings(Table):
    """A whole configuration, checked."""

    relay: RelayTable
    pools: Pools
    clients: Clients = Field(default_factory=dict)
    file: Path
    """The file, which a reload reads again."""


def load_relay(file: Path, *, environ: Mapping[str, str] | None = None) -> RelaySettings:
    """Return a relay's configuration, with certificates and passwords that can be read.

    Raises:
        ConfigError: it cannot be read, or something in it cannot be used; all of it.
    """
    file = file.absolute()
    tables, explainer = read_tables(file, environ)
    known = {"relay", "pools", "clients"}
    for key in tables.keys() - known:
        hint = nearest(key, known)
        explainer.note((key,), "a relay's configuration has no such table", hint=hint)
    relay = tables.get("relay", {})
    for key in relay.keys() - RelayTable.model_fields if isinstance(relay, dict) else ():
        hint = nearest(key, RelayTable.model_fields)
        explainer.note(("relay", key), "there is no such key", hint=hint)
    settings = validate(RelaySettings, tables, explainer)
    problems = explainer.problems
    if settings is not None:
        if not tables.get("pools"):
            explainer.note(("pools",), "there is no pool to write to", hint="add [pools.NAME]")
        for name in settings.clients:
            if not is_name(name):
                explainer.note(("clients", name), "no client can have this name")
        problems += secret_problems(settings, environ=environ)
        try:
            server_context(settings.relay.certificate, settings.relay.key, settings.relay.ca)
        except Refused as error:
            problems.append(ConfigError(file, "relay.certificate", str(error)))
    refuse(problems)
    assert settings is not None, "what cannot be used at all has its problem"
    return settings
