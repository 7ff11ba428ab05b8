"""Transports by name, with distributions that really stand on the module path."""

from __future__ import annotations

import tomllib
import zlib
from pathlib import Path
from typing import Any

import pytest

from xorepd.errors import Refused, TransportFailed
from xorepd.extents import Extent
from xorepd.plugin.conformance import ScriptedReader, ScriptedTarget, surroundings
from xorepd.transports import registry
from xorepd.transports.base import Transport
from xorepd.transports.registry import OURS, installed, suggest
from xorepd.units import MiB

GOOD = """
class Factory:
    name, api = "{name}", 3
    def open(self, options, surroundings):
        if "rate" in options:
            raise ValueError("rate must be a size, such as 10MiB")
        self.options = dict(options)
        return self
    async def carry(self, reader, target):
        raise RuntimeError(type(self).name, self.options)
transport = Factory()
"""


class Site:
    """A directory of installed distributions."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def install(
        self, dist: str, name: str, code: str = GOOD, *, group: str = "xorepd.transports"
    ) -> None:
        """Put a distribution there that offers one transport."""
        module = dist.replace("-", "_")
        (self._path / f"{module}.py").write_text(code.replace("{name}", name))
        info = self._path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:transport\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.syspath_prepend(tmp_path)
    return Site(tmp_path)


def open_transport(name: str, options: dict[str, Any], timeout: float = 10.0) -> Transport:
    return registry.open_transport(name, options, surroundings(), timeout=timeout)


async def carried(transport: Transport) -> ScriptedTarget:
    reader = ScriptedReader(MiB, [Extent(0, MiB)])
    target = ScriptedTarget(reader)
    await transport.carry(reader, target)
    return target


async def test_direct_is_installed_with_xorepd() -> None:
    assert "direct" in installed()
    assert (await carried(open_transport("direct", {}))).sent == MiB


def test_options_of_direct_are_refused_by_name() -> None:
    with pytest.raises(Refused, match=r"transport direct: .*no options, remove rate"):
        open_transport("direct", {"rate": "1MiB"})


async def test_installed_transport_is_opened_with_its_options(site: Site) -> None:
    site.install("reg-good-one", "good-one")

    assert "good-one" in installed()
    with pytest.raises(TransportFailed, match=r"good-one failed .*'good-one', {'level': 3}"):
        await carried(open_transport("good-one", {"level": 3}))


def test_wrong_option_is_refused_with_the_transports_own_words(site: Site) -> None:
    site.install("reg-good-two", "good-two")

    with pytest.raises(Refused, match="transport good-two: rate must be a size, such as 10MiB"):
        open_transport("good-two", {"rate": "fast"})


@pytest.mark.parametrize("name", ["quantum", "fast", "xorepd-fast", "direct-2-electric", ""])
def test_no_package_is_suggested_that_may_not_exist(name: str) -> None:
    with pytest.raises(Refused, match=r"is not installed \(there is .*direct.*\); ") as caught:
        open_transport(name, {})

    assert "install xorepd-" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "there", "words"),
    [
        ("throttled", ["direct"], "install xorepd-throttled"),
        ("compressed", ["direct", "throttled"], "install xorepd-compressed"),
        ("compresed", ["direct"], "did you mean compressed? install xorepd-compressed"),
        ("throttle", ["direct", "throttled"], "did you mean throttled?"),
        ("drect", ["direct"], "did you mean direct?"),
        ("fast", ["direct"], "name one of those, or install the package that brings it"),
    ],
)
def test_only_packages_that_exist_are_suggested(name: str, there: list[str], words: str) -> None:
    assert suggest(name, there) == words


def test_the_packages_that_are_suggested_are_those_in_the_repository() -> None:
    projects = [
        tomllib.loads(file.read_text())["project"]
        for file in (Path(__file__).parents[3] / "plugins").glob("*/pyproject.toml")
    ]

    shipped = {
        name: project["name"]
        for project in projects
        for name in project.get("entry-points", {}).get("xorepd.transports", ())
    }
    assert shipped == OURS


def test_transport_that_is_misspelt_names_the_nearest() -> None:
    with pytest.raises(Refused, match=r"did you mean direct\?"):
        open_transport("dirct", {})


def test_transport_of_two_packages_names_both(site: Site) -> None:
    site.install("reg-first", "twice")
    site.install("reg-second", "twice")

    with pytest.raises(Refused, match=r"several packages \(reg-first, reg-second\); remove all"):
        open_transport("twice", {})


@pytest.mark.parametrize(
    "code",
    [
        "import missing_library",
        "raise RuntimeError('x')",
        "raise ValueError",
        "exit(2)",
        "other = 1",
    ],
)
def test_broken_transport_is_refused_by_who_names_it(site: Site, code: str) -> None:
    site.install(f"reg-broken-{zlib.crc32(code.encode())}", "broken", code)

    with pytest.raises(Refused, match=r"transport broken cannot be loaded .*reinstall"):
        open_transport("broken", {})


def test_broken_transport_hurts_nobody_else(site: Site) -> None:
    site.install("reg-broken-too", "broken", "raise RuntimeError")

    assert open_transport("direct", {})


HANGS = """
import threading
class transport:
    api = 3
    @staticmethod
    def open(options, surroundings):
        threading.Event().wait()
"""
RAISES = """
class transport:
    api = 3
    @staticmethod
    def open(options, surroundings):
        raise {what}
"""


def test_transport_that_hangs_in_open_is_refused_by_name(site: Site) -> None:
    site.install("reg-hangs", "hangs", HANGS)

    with pytest.raises(Refused, match=r"transport hangs did not open within 0\.2 s; update or"):
        open_transport("hangs", {}, timeout=0.2)


@pytest.mark.parametrize("what", ["KeyError('x')", "SystemExit(3)", "AttributeError('x')"])
def test_transport_that_raises_in_open_is_refused_by_name(site: Site, what: str) -> None:
    site.install(f"reg-raises-{len(what)}", "raises", RAISES.replace("{what}", what))

    with pytest.raises(Refused, match=r"transport raises cannot be opened \(\w+: .*report it"):
        open_transport("raises", {})


def test_what_cannot_carry_is_refused(site: Site) -> None:
    code = RAISES.replace("raise {what}", "return 3")
    site.install("reg-carries-nothing", "idle", code)

    with pytest.raises(Refused, match="idle opened something that is not a transport"):
        open_transport("idle", {})


def test_inner_transport_is_refused_as_an_option_is() -> None:
    with pytest.raises(ValueError, match=r"drect is not installed .*did you mean direct"):
        surroundings().open("drect", {})


@pytest.mark.parametrize("version", ["api = 2", "api = 0", "no_api = 1"])
def test_transport_of_another_version_is_refused(site: Site, version: str) -> None:
    dist = "reg-version-" + version.replace(" = ", "-").replace("_", "-")
    site.install(dist, "old", f"class transport:\n    {version}\n")

    with pytest.raises(Refused, match=r"made for transport API .*this is 3; install matching"):
        open_transport("old", {})


def test_entry_point_of_another_group_is_no_transport(site: Site) -> None:
    site.install("reg-elsewhere", "elsewhere", group="xorepd.others")

    assert "elsewhere" not in installed()
