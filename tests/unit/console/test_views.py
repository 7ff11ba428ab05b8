from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tests.unit.parts import NOON, job, record
from xorepd.console.progress import displayed
from xorepd.console.status import status_view
from xorepd.console.tables import (
    finished_view,
    history_table,
    jobs_table,
    orphans_view,
    run_view,
)
from xorepd.control.protocol import (
    HistoryReply,
    JobsReply,
    MemoryStatus,
    OrphanReply,
    OrphansReply,
    PoolStatus,
    StatusReply,
)
from xorepd.daemon.status import job_reply, job_status
from xorepd.state.history import Latest
from xorepd.state.records import DiskRecord, Outcome, RunRecord

LONG = "a-virtual-machine-with-a-name-that-somebody-thought-about"
LATER = NOON + timedelta(minutes=10)
TWO_TARGETS = [{"pool": "dr", "sr": "a"}, {"pool": "dr", "sr": "b"}]


def shown(view: RenderableType, *, terminal: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=terminal, highlight=False).print(view)
    text = out.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    return text


def status(*records: RunRecord, running: tuple[RunRecord, ...] = ()) -> StatusReply:
    web = job(vms=["web01", LONG])
    return StatusReply(
        version="1",
        pid=1,
        started_at=NOON,
        stopping=False,
        jobs=(
            job_status(
                web,
                [Latest(r, r.point_in_time if r.restore_point else None) for r in records],
                next_run_at=LATER + timedelta(minutes=5),
                run_id=None,
                now=LATER,
            ),
        ),
        running=running,
    )


def test_status_fits_a_terminal_and_says_how_old_replicas_are() -> None:
    text = shown(status_view(status(record()), LATER))

    assert "delta 9 m 30 s" in text
    assert "9 m 59 s" in text  # the age of the point, not of the run
    assert "in 5 m 0 s" in text
    assert "never" in text


def test_status_says_why_a_vm_failed() -> None:
    failed = record(outcome=Outcome.FAILED, step="transfer", error="SR dr-storage is full [sic]")

    text = shown(status_view(status(failed), LATER))

    assert "web01 (web): failed in transfer: SR dr-storage is full [sic]" in text


def test_status_says_which_disks_wait_for_memory_and_who_has_it() -> None:
    disks = tuple(
        DiskRecord(device=device, name=device, virtual_size=1, waiting_for=waiting_for)
        for device, waiting_for in (("0", ""), ("1", "memory"), ("2", "memory"))
    )
    running = record(outcome=Outcome.RUNNING, step="transfer", disks=disks)
    memory = MemoryStatus(size_bytes=16 << 20, held_bytes=12 << 20, waiting=2)
    reply = status(running=(running,)).model_copy(update={"memory": memory})

    text = shown(status_view(reply, LATER))

    assert "web01 (web): disks 1, 2 wait for memory" in text
    assert "memory: other disks use 12.0 MiB of the 16.0 MiB that [daemon] memory allows" in text


def test_status_says_which_damaged_files_were_set_aside() -> None:
    told = "history.db was damaged and has been replaced; the damaged file is /s/history.db.damaged"
    reply = status().model_copy(update={"set_aside": (told,)})

    text = shown(status_view(reply, LATER))

    assert "history.db was damaged" in text
    assert "/s/history.db.damaged" in text


COMPARED = DiskRecord(
    "1", "data", 1 << 33, "resync", compared_bytes=3 << 30, to_compare_bytes=4 << 30
)


def test_status_says_how_far_a_comparison_is() -> None:
    sent = DiskRecord("0", "root", 1 << 33, "resync", compared_bytes=1, to_compare_bytes=1)
    running = record(outcome=Outcome.RUNNING, step="transfer", disks=(sent, COMPARED))

    text = shown(status_view(status(running=(running,)), LATER))

    assert "web01 (web): disk 1 is being compared, 3.0 GiB of 4.0 GiB, 75%" in text
    assert "disk 1: 3.0 GiB of 4.0 GiB compared with the target" in shown(run_view([running]))
    assert "disk 0" not in text


def test_pool_that_is_slow_or_full_is_shown_and_others_are_not() -> None:
    plain: dict[str, Any] = {
        "latency_s": 0.02,
        "is_slow": False,
        "max_vms": None,
        "active_vms": 1,
        "waiting_vms": 0,
    }
    pools = (
        PoolStatus(name="prod", **plain),
        PoolStatus(name="dr", **plain | {"latency_s": 2.3, "is_slow": True, "max_vms": 1}),
        PoolStatus(name="far", **plain | {"max_vms": 2, "active_vms": 2, "waiting_vms": 5}),
    )

    text = shown(status_view(status(record()).model_copy(update={"pools": pools}), LATER))

    assert "pool dr: answers slowly (2.3 s); 1 VM at once; 1 in transfer, 0 waiting" in text
    assert "pool far: 2 VMs at once; 2 in transfer, 5 waiting" in text
    assert "pool prod" not in text


def test_orphans_are_shown_with_what_could_not_be_asked() -> None:
    orphan = OrphanReply(
        pool="dr",
        sr="dr-storage",
        replica="3d6b2b1e-8a4f-4a57-9f3b-6c1f4d2e7a90",
        name="[XO Backup web] web01",
        vm="vm-1",
        job="web",
        points=3,
        newest_point_at=NOON,
    )

    text = shown(orphans_view(OrphansReply(orphans=(orphan,), not_asked={"far": "off"}), LATER))

    assert "[XO Backup web]" in text
    assert "dr/dr-storage" in text
    assert "far did not answer: off" in text
    none = OrphansReply(orphans=(), not_asked={})
    assert shown(orphans_view(none, LATER)) == "Every replica has a job.\n"


def test_status_says_who_holds_a_vm_and_which_replica_is_late() -> None:
    held = record(
        outcome=Outcome.LEASE_HELD,
        step="connect",
        restore_point=None,
        error="the xorepd on alpha has it",
    )

    text = shown(status_view(status(held, record()), LATER))

    assert "web01 (web): lease-held in connect: the xorepd on alpha has it" in text
    assert "9 m 59 s late" in text


def test_status_names_disks_that_stay_behind() -> None:
    disks = (
        DiskRecord("0", "root", 1 << 30, "delta", "", 0, 0),
        DiskRecord("1", "scratch [NOBAK]", 1 << 30, "excluded", "[NOBAK] in its name"),
    )

    text = shown(status_view(status(record(disks=disks)), LATER))

    assert "web01 (web): disk 1 scratch [NOBAK] is not replicated: [NOBAK] in its name" in text
    assert "disk 0" not in text


def test_memory_that_stays_behind_is_told_with_its_reason() -> None:
    disks = (
        DiskRecord("0", "root", 1 << 30, "delta", "", 0, 0),
        DiskRecord("memory", "memory of web01", 0, "memory", "the VM was not running"),
    )

    text = shown(status_view(status(record(disks=disks)), LATER))
    assert "web01 (web): its memory is not replicated: the VM was not running" in text

    text = shown(run_view([record(disks=disks)]))
    assert "memory: not replicated because the VM was not running" in text


def test_memory_that_came_has_a_line_and_needs_no_word() -> None:
    disk = DiskRecord("memory", "memory of web01", 1 << 30, "memory", "", 4096, 4096)

    assert "not replicated" not in shown(status_view(status(record(disks=(disk,))), LATER))
    assert "memory" in shown(run_view([record(disks=(disk,))]))


def test_status_shows_progress_of_what_runs() -> None:
    disk = DiskRecord("0", "root", 1 << 40, "full", "first", 4 << 30, 1 << 30)
    running = record(
        outcome=Outcome.RUNNING, step="transfer", disks=(disk,), rate_bytes_per_s=80 << 20
    )

    text = shown(status_view(status(running=(running,)), LATER))

    assert "25%" in text
    assert "80.0 MiB/s" in text


def test_jobs_and_history_fit_a_terminal() -> None:
    jobs = JobsReply(jobs=(job_reply(job(timezone="Europe/Paris"), LATER),))
    records = (record(vm_name=LONG), record(outcome=Outcome.FAILED, error="cut"))

    assert "*/5 * * * *" in shown(jobs_table(jobs, LATER))
    assert "failed in prune: cut" in shown(history_table(HistoryReply(records=records), LATER))


def test_end_of_a_full_run_says_why_it_was_full() -> None:
    disk = DiskRecord("0", "root", 1 << 30, "full", "no-base", 4096, 4096)

    text = shown(finished_view([record(outcome=Outcome.FULL, disks=(disk,))]))

    assert text == "web01: full, 4.0 KiB read, 0 B sent in 30 s (full because: no-base)\n"


def test_disk_that_stays_behind_is_no_reason_for_a_full() -> None:
    disks = (
        DiskRecord("0", "root", 1 << 30, "full", "first-run", 4096, 4096),
        DiskRecord("1", "swap", 1 << 30, "excluded", "tag swap"),
    )

    text = shown(finished_view([record(outcome=Outcome.FULL, disks=disks)]))

    assert text.endswith("(full because: first-run)\n")


def test_jobs_show_by_what_they_find_vms() -> None:
    jobs = (
        job_reply(job(vms=["a", "b"]), LATER),
        job_reply(job("shop", vms=["a", "shop-*"], tags=["gold"]), LATER),
        job_reply(job("x", vms=["x*"], targets=TWO_TARGETS), LATER),
    )

    text = shown(jobs_table(JobsReply(jobs=jobs), LATER))

    columns = [line.split()[:4] for line in text.splitlines()]
    assert ["web", "prod", "2", "dr/dr-storage"] in columns
    assert "1, shop-*" in text
    assert "dr/a" in text
    assert "dr/b" in text


def test_a_run_shows_how_each_disk_was_read_and_what_it_cost() -> None:
    disks = (
        DiskRecord(
            device="0",
            name="root",
            virtual_size=1 << 33,
            mode="delta",
            reader="nbd-changes",
            writer="chunked",
            changed_bytes=6 << 20,
            read_bytes=6 << 20,
            sent_bytes=6 << 20,
        ),
        DiskRecord(
            device="1",
            name="data",
            virtual_size=1 << 33,
            mode="full",
            reason="new-disk",
            reader="export",
            reader_reason="no network of pool prod has the purpose nbd",
            writer="vhd",
            read_bytes=1 << 30,
            sent_bytes=1 << 30,
            resumed_from=5 << 30,
            reconnects=2,
            compared_bytes=7 << 30,
        ),
    )

    text = shown(run_view([record(disks=disks)]))

    assert "nbd-changes" in text
    assert "1.00" in text
    assert "disk 1: export because no network of pool prod has the purpose nbd" in text
    assert "disk 1: 7.0 GiB compared with the target" in text
    assert "disk 1: an earlier run had reached 5.0 GiB, and this one continued from there" in text
    assert "disk 1: its transfer was interrupted and continued 2 times" in text
    assert "disk 0: " not in text


@pytest.mark.parametrize(
    ("base_data", "reason", "line"),
    [
        ("destroyed", "", "data of the next base: destroyed\n"),
        ("kept", "SR far needs it as well", "data of the next base: kept because SR far needs it"),
    ],
)
def test_a_run_says_what_became_of_the_data_of_its_base(
    base_data: str, reason: str, line: str
) -> None:
    text = shown(run_view([record(base_data=base_data, base_data_reason=reason)]))

    assert line in text
    assert "data of the next base" not in shown(run_view([record()]))


def test_a_run_that_can_be_continued_says_so() -> None:
    failed = record(outcome=Outcome.FAILED, step="transfer", error="cut", resumable=True)

    assert "cut; the next run continues from there" in shown(run_view([failed]))


def test_a_disk_that_an_earlier_run_had_finished_is_not_said_to_be_sent() -> None:
    """It was unchanged: there was nothing to send."""
    disk = DiskRecord("0", "root", 32 << 20, "delta", reader="unchanged", resumed_from=32 << 20)

    text = shown(run_view([record(disks=(disk,))]))

    assert "disk 0: an earlier run had reached its end" in text
    assert "had sent" not in text
    assert text.startswith("web01: delta, 0 B read, 0 B sent in 30 s")


COARSE = DiskRecord(
    device="0",
    name="root",
    virtual_size=8 << 30,
    mode="delta",
    planned_bytes=586 << 20,
    read_bytes=586 << 20,
    sent_bytes=18 << 20,
    unchanged_bytes=568 << 20,
)
"""A delta in blocks of 2 MiB, of which a map left most out."""


def test_what_was_read_and_what_was_sent_are_told_apart_everywhere() -> None:
    ended = record(disks=(COARSE,))
    rates = {"rate_bytes_per_s": 80 << 20, "sent_rate_bytes_per_s": 3 << 20}
    running = record(outcome=Outcome.RUNNING, step="transfer", disks=(COARSE,), **rates)

    for text in (
        shown(run_view([ended])),
        shown(finished_view([ended])),
    ):
        assert "586.0 MiB read, 18.0 MiB sent in 30 s" in text
    table = shown(history_table(HistoryReply(records=(ended,)), LATER)).splitlines()
    assert table[0].split()[-3:] == ["READ", "SENT", "TOOK"]
    assert "586.0 MiB   18.0 MiB   30 s" in table[2]
    text = shown(status_view(status(running=(running,)), LATER))
    assert all(
        words in text
        for words in (
            "586.0 MiB of 586.0 MiB read",
            "18.0 MiB sent",
            "80.0 MiB/s read",
            "3.0 MiB/s sent",
        )
    )


def test_progress_tells_what_is_read_and_what_is_sent() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, highlight=False)

    with displayed(console) as display:
        display.show(
            record(
                outcome=Outcome.RUNNING,
                step="transfer",
                disks=(COARSE,),
                rate_bytes_per_s=80 << 20,
                sent_rate_bytes_per_s=3 << 20,
            )
        )

    text = out.getvalue()
    assert "586.0 MiB of 586.0 MiB read" in text
    assert "18.0 MiB sent" in text
    assert "80.0 MiB/s" in text
    assert "3.0 MiB/s" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_names_vm_and_step(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=terminal, highlight=False)
    disks = tuple(DiskRecord(n, n, 1 << 30, "delta", "", 1000, 400) for n in ("0", "1"))

    with displayed(console) as display:
        display.show(record(outcome=Outcome.RUNNING, step="preflight", disks=()))
        for _ in range(2):
            display.show(record(outcome=Outcome.RUNNING, step="transfer", disks=disks))

    if terminal:
        assert "disk 1 delta" in out.getvalue()
        assert "40%" in out.getvalue()
    else:
        assert out.getvalue() == "web01: preflight\nweb01: transfer\n"


def test_progress_says_which_disk_waits_and_what_for() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, highlight=False)
    goes = DiskRecord("0", "root", 1 << 30, "full", "", 1000, 400)
    waits = DiskRecord("1", "data", 1 << 30, "full", waiting_for="memory")

    with displayed(console) as display:
        display.show(record(outcome=Outcome.RUNNING, step="transfer", disks=(goes, waits)))

    assert "disk 0 full" in out.getvalue()
    assert "disk 1 waits for memory" in out.getvalue()


@pytest.mark.parametrize("disks", [(COMPARED,), (COMPARED, DiskRecord("2", "new", 1))])
def test_progress_shows_how_far_a_comparison_is(disks: tuple[DiskRecord, ...]) -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, highlight=False)

    with displayed(console) as display:
        display.show(record(outcome=Outcome.RUNNING, step="transfer", disks=disks))

    assert "75%" in out.getvalue()
    assert "3.0 GiB of 4.0 GiB" in out.getvalue()
    assert ("disk 1 compares" in out.getvalue()) == (len(disks) > 1)


def test_a_run_to_several_targets_names_them_and_what_was_read_together() -> None:
    disk = DiskRecord("0", "root", 64 << 20, mode="full", read_bytes=8 << 20, shared_bytes=3 << 20)
    near = record(sr="a", outcome=Outcome.FULL, disks=(disk,))
    far = record(
        sr="b", disks=(), outcome=Outcome.FAILED, step="connect", error="no answer from dr"
    )

    text = shown(run_view([near, far]))

    assert "web01 to dr/a: full" in text
    assert "disk 0: shared read, 3.0 MiB of 8.0 MiB together with other targets" in text
    assert "web01 to dr/b (web): failed in connect: no answer from dr" in text
    assert "web01 to" not in shown(run_view([near]))
