"""Who is current: what both sides say, and when nothing may be copied."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.unit.replication.test_selection import vm
from xorepd.replication.format.current import KEY, Current, State, at_odds, own_current, source_of
from xorepd.xapi.records import Vm

LINEAGE = "pool-1/uuid-of-web01"
SOURCE = Current(LINEAGE, 1, State.ACTIVE, "uuid-of-web01")
STANDBY = Current(LINEAGE, 1, State.STANDBY, "uuid-of-replica", peer="uuid-of-web01")


def saying(current: Current | None, name: str = "replica") -> Vm:
    """Return a VM that says what it takes itself for."""
    return vm(name, other_config={} if current is None else {KEY: current.encode()})


# -- what a VM says ------------------------------------------------------------------------------


def test_what_a_vm_says_of_itself_comes_back() -> None:
    whole = replace(STANDBY, epoch=3, since="2026-03-02T12:00:00+00:00", by="run-1")
    assert all(asdict(whole).values())

    assert own_current(saying(whole)) == whole
    assert own_current(saying(STANDBY)) == STANDBY


def test_what_is_empty_is_not_written() -> None:
    assert json.loads(SOURCE.encode()) == {
        "v": 1,
        "lineage": LINEAGE,
        "epoch": 1,
        "state": "active",
        "self": "uuid-of-web01",
    }


def test_what_a_copy_inherits_says_nothing_of_it() -> None:
    assert own_current(saying(STANDBY, "clone of replica")) is None


def test_vm_that_says_nothing_says_nothing() -> None:
    assert own_current(saying(None)) is None


def test_members_of_a_later_release_are_ignored() -> None:
    text = json.dumps(json.loads(STANDBY.encode()) | {"notes": ["x"]})

    assert own_current(vm("replica", other_config={KEY: text})) == STANDBY


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": None},
        {"state": "dead"},
        {"state": None},
        {"state": ["active"]},
        {"epoch": 0},
        {"epoch": -1},
        {"epoch": 2**53},
        {"epoch": True},
        {"epoch": 1.0},
        {"epoch": "1"},
        {"lineage": 5},
        {"lineage": None},
        {"self": ["uuid-of-replica"]},
        {"peer": 5},
        {"since": {}},
        {"by": False},
    ],
)
def test_what_is_not_sound_says_nothing(changes: dict[str, Any]) -> None:
    text = json.dumps(json.loads(STANDBY.encode()) | changes)

    assert own_current(vm("replica", other_config={KEY: text})) is None


@pytest.mark.parametrize("member", ["v", "lineage", "epoch", "state", "self"])
def test_what_is_not_whole_says_nothing(member: str) -> None:
    plain = json.loads(STANDBY.encode())
    del plain[member]

    assert own_current(vm("replica", other_config={KEY: json.dumps(plain)})) is None


@pytest.mark.parametrize("text", ["", "null", "{", "[]", "1", "\x00", "[" * 100_000])
def test_garbage_says_nothing(text: str) -> None:
    assert own_current(vm("replica", other_config={KEY: text})) is None


def test_source_that_does_not_say_is_where_a_lineage_begins() -> None:
    assert source_of(vm("web01"), "pool-1") == SOURCE


def test_source_that_says_is_believed() -> None:
    failed_over = Current("pool-9/vm-9", 4, State.ACTIVE, "uuid-of-web01")

    assert source_of(saying(failed_over, "web01"), "pool-1") == failed_over


def test_clone_of_a_source_begins_a_lineage_of_its_own() -> None:
    clone = vm("clone", other_config={KEY: replace(SOURCE, epoch=4).encode()})

    assert source_of(clone, "pool-1") == Current(
        "pool-1/uuid-of-clone", 1, State.ACTIVE, "uuid-of-clone"
    )


# -- at odds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_said", [False, True])
def test_active_source_may_be_copied_to_its_standby(*, is_said: bool) -> None:
    assert at_odds(SOURCE, is_said, saying(STANDBY)) == ""


@pytest.mark.parametrize("is_said", [False, True])
@pytest.mark.parametrize("epoch", [1, 7])
def test_active_source_may_be_copied_to_a_replica_that_does_not_say_or_is_not_there(
    epoch: int, *, is_said: bool
) -> None:
    source = replace(SOURCE, epoch=epoch)

    assert at_odds(source, is_said, None) == ""
    assert at_odds(source, is_said, saying(None)) == ""
    assert at_odds(source, is_said, saying(STANDBY, "another that has its key")) == ""


def test_later_epoch_is_no_odds_where_both_are_at_it() -> None:
    source, standby = replace(SOURCE, epoch=4), replace(STANDBY, epoch=4)

    assert at_odds(source, True, saying(standby)) == ""


@pytest.mark.parametrize("state", [State.STANDBY, State.FENCED, State.TEST])
@pytest.mark.parametrize("replica", [None, saying(None), saying(STANDBY)])
def test_nothing_is_copied_from_a_source_that_is_not_active(
    state: State, replica: Vm | None
) -> None:
    source = replace(SOURCE, state=state, epoch=2)

    assert at_odds(source, True, replica) == f"the source is {state.value} since epoch 2"


@pytest.mark.parametrize("is_said", [False, True])
@pytest.mark.parametrize("state", [State.ACTIVE, State.FENCED, State.TEST])
def test_nothing_is_copied_over_a_replica_that_is_not_standby(
    state: State, *, is_said: bool
) -> None:
    replica = saying(replace(STANDBY, state=state))

    assert at_odds(SOURCE, is_said, replica) == f"the replica is {state.value}"


@pytest.mark.parametrize(
    ("here", "there", "is_said"), [(2, 1, True), (1, 2, True), (3, 5, True), (1, 2, False)]
)
def test_nothing_is_copied_between_epochs(here: int, there: int, *, is_said: bool) -> None:
    source, standby = replace(SOURCE, epoch=here), replace(STANDBY, epoch=there)

    assert at_odds(source, is_said, saying(standby)) == (
        f"the source is at epoch {here} and the replica at epoch {there}"
    )


def test_nothing_is_copied_between_lineages() -> None:
    standby = replace(STANDBY, lineage="pool-9/vm-9")

    assert at_odds(SOURCE, True, saying(standby)) == (
        f"the replica is of the lineage pool-9/vm-9, the source of {LINEAGE}"
    )


def test_source_that_has_lost_its_key_is_believed_before_the_roles_have_ever_changed() -> None:
    # Such as one that was rebuilt from an export, as another VM, or moved to another pool.
    standby = replace(STANDBY, lineage="pool-9/vm-9")

    assert at_odds(SOURCE, False, saying(standby)) == ""


@pytest.mark.parametrize(
    "changes", [{"epoch": 2}, {"state": State.ACTIVE}, {"state": State.FENCED}]
)
def test_source_that_has_lost_its_key_is_not_believed_once_the_roles_have_changed(
    changes: dict[str, Any],
) -> None:
    standby = replace(STANDBY, **({"lineage": "pool-9/vm-9"} | changes))

    assert at_odds(SOURCE, False, saying(standby)) != ""
