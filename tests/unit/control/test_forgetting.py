"""`xorepctl forget` and what is behind it on the socket, with orphans that a test lays out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.patience import patience
from tests.unit.control.stage import Stage, stage
from tests.unit.parts import record
from xorepd.control.protocol import ForgetReply, OrphanReply
from xorepd.ctl import app
from xorepd.errors import ControlError, Refused
from xorepd.replication.deciding.forgetting import Terms

ORPHAN = OrphanReply(
    stream="pool-1/vm-9/sr-1",
    pool="dr",
    sr="dr-storage",
    replica="replica-9",
    name="[XO Backup old] db01",
    vm="vm-9",
    job="old",
    points=2,
    newest_point_at=None,
    source="prod",
    known=True,
)


@pytest.fixture
async def on(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as staged:
        staged.orphans.orphans = (ORPHAN,)
        staged.orphans.goes_on.set()
        yield staged


async def command(on: Stage, *words: str, answer: str = "") -> Result:
    line = ["forget", *words, "--socket", str(on.socket)]
    return await asyncio.to_thread(CliRunner().invoke, app, line, input=answer)


@pytest.mark.parametrize(
    "what", ["db01", "[XO Backup old] db01", "replica-9", "vm-9", "pool-1/vm-9/sr-1"]
)
async def test_what_is_meant_may_be_said_by_any_of_its_names(on: Stage, what: str) -> None:
    result = await command(on, what, "--yes")

    assert result.exit_code == 0, result.output
    assert on.orphans.forgotten == [(ORPHAN.stream, Terms())]
    assert "restore point 1 of 2" in result.output
    assert "[XO Backup old] db01: forgotten" in result.output


def other(orphan: OrphanReply, vm: str, **changes: object) -> OrphanReply:
    """Return what is left of another VM of the same name."""
    pool, _, sr = orphan.stream.split("/")
    plain = {"vm": vm, "stream": f"{pool}/{vm}/{sr}", "replica": f"replica of {vm}"}
    return orphan.model_copy(update=plain | changes)


@pytest.mark.parametrize("what", ["db01", "[XO Backup old] db01"])
async def test_name_of_two_vms_is_refused_with_their_uuids_and_one_of_these_is_taken(
    on: Stage, what: str
) -> None:
    rebuilt = other(ORPHAN, "vm-8", source_vm_exists=True)
    on.orphans.orphans = (ORPHAN, rebuilt)

    refused = await command(on, what, "--yes")

    assert (refused.exit_code, on.orphans.forgotten) == (1, [])
    assert (
        f"{what} matches 2 VMs; name one by its UUID: vm-9 (gone, replicated to dr/dr-storage), "
        "vm-8 (replicated to dr/dr-storage)"
    ) in refused.output
    taken = await command(on, "vm-9", "--yes")
    assert taken.exit_code == 0, taken.output
    assert on.orphans.forgotten == [(ORPHAN.stream, Terms())]


async def test_vm_on_two_targets_is_one_vm(on: Stage) -> None:
    far = ORPHAN.model_copy(update={"stream": "pool-1/vm-9/sr-2", "sr": "tape", "replica": "r"})
    on.orphans.orphans = (ORPHAN, far)

    assert (await command(on, "db01", "--yes")).exit_code == 0

    assert [stream for stream, _ in on.orphans.forgotten] == [ORPHAN.stream, far.stream]


async def test_vm_that_was_moved_to_another_pool_is_told_by_its_streams(on: Stage) -> None:
    moved = ORPHAN.model_copy(update={"stream": "pool-2/vm-9/sr-1", "replica": "r"})
    on.orphans.orphans = (ORPHAN, moved)

    for what in ("db01", "vm-9"):
        refused = await command(on, what, "--yes")
        assert (refused.exit_code, on.orphans.forgotten) == (1, [])
        assert "pool-1/vm-9/sr-1 (gone, replicated" in refused.output
        assert "pool-2/vm-9/sr-1 (gone, replicated" in refused.output

    assert (await command(on, moved.stream, "--yes")).exit_code == 0
    assert [stream for stream, _ in on.orphans.forgotten] == [moved.stream]


WEB = other(ORPHAN, "vm-0", name="[XO Backup web] web01", job="web")


@pytest.mark.parametrize("last", [None, "vm-1", "vm-0"])
async def test_name_that_a_job_keeps_up_is_no_name_of_what_is_gone(
    on: Stage, last: str | None
) -> None:
    on.orphans.orphans = (WEB,)
    if last is not None:
        on.history.add(record(vm_uuid=last))

    refused = await command(on, "web01", "--yes")

    assert (refused.exit_code, on.orphans.forgotten) == (1, [])
    assert "web01 matches 2 VMs; name one by its UUID: vm-0 (gone," in refused.output
    assert f"{last or 'the one'} that job web replicates" in refused.output
    assert (await command(on, "vm-0", "--yes")).exit_code == 0
    assert on.orphans.forgotten == [(WEB.stream, Terms())]


async def test_former_target_of_a_vm_that_a_job_keeps_up_elsewhere_needs_no_uuid(
    on: Stage,
) -> None:
    on.history.add(record(vm_uuid="vm-0"))
    on.orphans.orphans = (WEB.model_copy(update={"sr": "former", "source_vm_exists": True}),)

    taken = await command(on, "web01", "--yes")

    assert taken.exit_code == 0, taken.output
    assert on.orphans.forgotten == [(WEB.stream, Terms())]


async def test_it_says_what_it_would_do_and_asks(on: Stage) -> None:
    refused = await command(on, "db01", answer="n\n")
    assert "destroy it" in refused.output
    assert (refused.exit_code, on.orphans.forgotten) == (1, [])

    agreed = await command(on, "db01", answer="y\n")
    assert (agreed.exit_code, len(on.orphans.forgotten)) == (0, 1)


async def test_dry_run_changes_nothing(on: Stage) -> None:
    result = await command(on, "db01", "--dry-run", "--keep-replica", "--json")

    [plan] = json.loads(result.output)
    assert plan["actions"] == ["set it free"]
    assert (result.exit_code, on.orphans.forgotten) == (0, [])


async def test_terms_are_handed_on(on: Stage) -> None:
    words = ("--keep-replica", "--even-if-used", "--even-if-unknown", "--leave-source")
    result = await command(on, "db01", "--yes", "--json", *words)

    assert on.orphans.forgotten == [(ORPHAN.stream, Terms(True, True, True, True))]
    last = json.loads(result.output.splitlines()[-1])
    assert (last["stream"], last["done"]) == (ORPHAN.stream, True)


async def test_json_without_consent_is_wrong_usage(on: Stage) -> None:
    assert (await command(on, "db01", "--json")).exit_code == 2


async def test_objection_is_said_and_nothing_is_done_not_even_to_the_others(on: Stage) -> None:
    other = ORPHAN.model_copy(update={"stream": "pool-1/vm-8/sr-1", "name": "x", "vm": "vm-8"})
    on.orphans.orphans = (ORPHAN, other)
    on.orphans.objections = ("its replica is running; shut it down first",)

    result = await command(on, "db01", "x", "--yes")

    assert (result.exit_code, on.orphans.forgotten) == (1, [])
    assert "refused: its replica is running; shut it down first" in result.output


async def test_vm_that_a_job_keeps_up_is_refused_by_the_name_of_that_job(on: Stage) -> None:
    result = await command(on, "web01", "--yes")

    assert result.exit_code == 1
    assert "job web replicates web01; remove the VM from that job" in result.output


async def test_what_is_not_there_is_refused_with_the_pools_that_were_not_asked(on: Stage) -> None:
    result = await command(on, "mail01", "--yes")
    assert "nothing to forget of mail01" in result.output
    assert "dr did not answer: it does not answer" in result.output

    result = await command(on, "db01", "--target", "dr/other", "--yes")
    assert "nothing to forget of db01 on dr/other" in result.output


async def test_failure_in_the_middle_is_told_and_ends_with_one(on: Stage) -> None:
    on.orphans.error = Refused("pool dr: disk a could not be removed yet; forget it again later")

    result = await command(on, "db01", "--yes")

    assert result.exit_code == 1
    assert "disk a could not be removed yet" in result.output


async def test_client_that_goes_stops_it(on: Stage) -> None:
    on.orphans.goes_on.clear()
    async with aclosing(on.client.forget(ORPHAN.stream)) as steps:
        first = await anext(steps)
    async with asyncio.timeout(patience()):
        await on.orphans.stopped.wait()

    assert first == ForgetReply(step="restore point 1 of 2")
    assert on.orphans.forgotten == []


async def test_what_this_daemon_has_replicated_is_known(on: Stage) -> None:
    on.history.add(record(sr_uuid="sr-uuid"))

    await on.client.orphans()

    assert on.orphans.known == {("vm-1", "sr-uuid")}


async def test_terms_that_do_not_exist_are_refused(on: Stage) -> None:
    with pytest.raises(ControlError, match="not even_if_broken"):
        await on.client.forget_plan(ORPHAN.stream, ["even_if_broken"])
    with pytest.raises(ControlError, match="name the replica"):
        await on.client.forget_plan("")
