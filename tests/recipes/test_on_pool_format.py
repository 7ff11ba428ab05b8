"""docs/on-pool-format.md: what it shows is what the daemon writes and understands."""

from __future__ import annotations

import json

import pytest

from tests.recipes.pages import Block, blocks, claim
from xorepd.replication.format import current
from xorepd.replication.format import marks as markers
from xorepd.replication.format.claims import claims_on
from xorepd.replication.format.marks import KEY, VERSION, ReplicaKey, decode
from xorepd.replication.target import interfaces
from xorepd.xapi.records import OWNER_PREFIX

PAGE = "docs/on-pool-format.md"
MARKS = [claim(PAGE, block.text) for block in blocks(PAGE) if block.language == "json"]
KEYS = claim(PAGE, "xorepd:current")
CLAIM = claim(PAGE, "XenCenter.CustomFields.xorepd-lease")
TASK = claim(PAGE, "xorepd import ")


@pytest.mark.parametrize("block", MARKS, ids=str)
def test_a_mark_is_understood_and_would_be_written_so(block: Block) -> None:
    shown = json.loads(block.text)

    mark = decode({KEY: block.text})

    assert mark is not None
    assert mark.role == shown["role"]
    if shown["v"] == VERSION:  # else it is one of an earlier xorepd
        assert json.loads(mark.encode()) == shown


def test_the_keys_are_those_of_the_code() -> None:
    known = {
        getattr(module, name)
        for module in (markers, interfaces, current)
        for name in vars(module)
        if name.isupper() and isinstance(getattr(module, name), str)
    }

    assert [line for line in KEYS.text.splitlines() if line.split()[0] not in known] == []


def test_a_claim_is_understood() -> None:
    key, value = CLAIM.text.splitlines()
    pool, vm = (f"00000000-0000-4000-8000-00000000000{n}" for n in "12")
    key = key.replace("<source pool>", pool).replace("<source VM>", vm)
    key = key.replace("<epoch>", "7").replace("<n>", "3")

    [found] = claims_on({key: value}, ReplicaKey(pool, vm, "sr"))

    assert (found.epoch, found.number, found.host) == (7, 3, "backup1")
    assert found.until is not None


def test_a_task_says_for_whom_it_runs() -> None:
    _, owner = TASK.text.splitlines()

    assert owner.startswith(OWNER_PREFIX)
    assert len(owner.removeprefix(OWNER_PREFIX).split("/")) == 3
