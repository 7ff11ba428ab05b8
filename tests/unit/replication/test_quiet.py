"""How a VM was when a run took it down, as it is written on the VM."""

from __future__ import annotations

import json
from typing import Any

import pytest

from xorepd.replication.source.quiesce import Downed

LEFT = Downed("run-1", "uuid-of-web01", ("v-0", "v-1"), "2026-03-02T12:00:00+00:00")


@pytest.mark.parametrize("disks", [(), ("v-0",), ("v-0", "v-1")])
def test_what_is_written_comes_back(disks: tuple[str, ...]) -> None:
    started_at, ref = "2026-03-02T12:00:00+00:00", "OpaqueRef:web01"
    left = Downed("run-1", "uuid-of-web01", disks, started_at, "Halted", ref)

    assert Downed.decode(left.encode()) == left


def test_what_an_earlier_version_wrote_tells_neither_power_state_nor_reference() -> None:
    plain = json.loads(LEFT.encode())
    del plain["down"], plain["ref"]

    assert Downed.decode(json.dumps(plain)) == LEFT


@pytest.mark.parametrize("member", ["run", "self", "disks", "started_at"])
def test_what_is_not_whole_is_none(member: str) -> None:
    plain = json.loads(LEFT.encode())
    del plain[member]

    assert Downed.decode(json.dumps(plain)) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"run": 5},
        {"down": 5},
        {"ref": None},
        {"self": None},
        {"started_at": ["2026-03-02T12:00:00+00:00"]},
        {"disks": None},
        {"disks": 5},
        {"disks": ["v-0", 1]},
        {"disks": [["v-0"]]},
    ],
)
def test_what_is_not_sound_is_none(changes: dict[str, Any]) -> None:
    assert Downed.decode(json.dumps(json.loads(LEFT.encode()) | changes)) is None


@pytest.mark.parametrize("text", ["", "run-1", "true", "null", "[]", "{", "\x00", "[" * 100_000])
def test_what_an_earlier_version_or_anybody_wrote_is_none(text: str) -> None:
    assert Downed.decode(text) is None
