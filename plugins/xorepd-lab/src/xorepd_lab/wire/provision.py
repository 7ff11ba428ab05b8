"""The disks that a template asks for: XML in `VM.other_config["disks"]`.

    <provision><disk device="0" size="10737418240" sr="" bootable="true" type="system"/></provision>

Clients put an SR's UUID into `sr` before VM.provision makes the disks.

Source: xapi: ocaml/xapi/xapi_templates.ml.
"""

from dataclasses import dataclass
from xml.parsers import expat

from xorepd_lab.model.failures import internal_error

DISKS_KEY = "disks"
SCRIPT_KEY = "postinstall"
LARGEST_TEXT = 1 << 16
TYPES = ("system", "user", "ephemeral", "suspend", "crashdump")


@dataclass(frozen=True, slots=True)
class WantedDisk:
    device: str
    size: int
    sr: str
    bootable: bool
    type: str


def read_disks(text: str) -> list[WantedDisk]:
    """Return the disks that a template's text asks for.

    Raises:
        ApiError: INTERNAL_ERROR for anything else than a list of disks.
    """
    elements: list[tuple[str, dict[str, str]]] = []
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        elements.append((name, attributes))

    def refuse(*_: object) -> None:
        raise ValueError("entities are not read")

    parser.StartElementHandler = start
    parser.EntityDeclHandler = refuse
    try:
        if len(text) > LARGEST_TEXT:
            raise ValueError("too long")
        parser.Parse(text, True)
        (outer, attributes), *inner = elements
        if outer != "provision" or attributes or any(name != "disk" for name, _ in inner):
            raise ValueError("no list of disks")
        return [_disk(attributes) for _, attributes in inner]
    except (expat.ExpatError, ValueError, KeyError) as error:
        raise internal_error("Xapi_templates.Parse_failure") from error


def write_disks(disks: list[WantedDisk]) -> str:
    """Return the text that asks for these disks."""
    elements = "".join(
        f'<disk device="{disk.device}" size="{disk.size}" sr="{disk.sr}"'
        f' bootable="{str(disk.bootable).lower()}" type="{disk.type}"/>'
        for disk in disks
    )
    return f"<provision>{elements}</provision>"


def _disk(attributes: dict[str, str]) -> WantedDisk:
    kind = attributes.get("type", "system")
    return WantedDisk(
        attributes["device"],
        int(attributes["size"]),
        attributes["sr"],
        attributes["bootable"] == "true",
        kind if kind in TYPES else "system",
    )
