"""Every view shows every name: nothing is taken for markup, nothing commands the terminal."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from tests.unit.parts import NOON, job, record
from xorepd.console.forgetting import plans_view
from xorepd.console.progress import displayed
from xorepd.console.status import status_view
from xorepd.console.tables import (
    finished_view,
    history_table,
    jobs_table,
    links_table,
    orphans_view,
    run_view,
)
from xorepd.control.protocol import (
    ForgetPlanReply,
    HistoryReply,
    JobsReply,
    LinkReply,
    LinksReply,
    OrphanReply,
    OrphansReply,
    PoolStatus,
    StatusReply,
)
from xorepd.ctl import app
from xorepd.daemon.status import job_reply, job_status
from xorepd.screen import Screen, visible
from xorepd.state.history import Latest
from xorepd.state.records import DiskRecord, Outcome, RunRecord

LATER = NOON + timedelta(minutes=10)

ODD = [
    "web[/b]01",
    "[old] x",
    "[/]",
    "[bold red]x",
    r"\[a]",
    ":bomb: {name} %s {0}",
    "a\x9b31mb",
    "a\x1b]0;t\x07b",
    "nimda\u202egnp",
    "two\nlines",
    "Zoë 🐙 日本語",
    "e\u0301" * 5,
    "\u200b",
    "",
    " ",
    "-" * 90,
]


def records(name: str) -> tuple[RunRecord, ...]:
    """Return a record of each outcome with a text in every place that takes one."""
    disks = (
        DiskRecord(name, name, 1 << 30, "full", name, 4096, 4096, name, name, name),
        DiskRecord("1", name, 1 << 30, "excluded", name),
        DiskRecord("2", name, 1 << 30, "resync", compared_bytes=1, to_compare_bytes=4),
        DiskRecord("3", name, 1 << 30, waiting_for=name),
        DiskRecord("memory", name, 0, "memory", name),
    )
    return tuple(
        record(
            outcome=outcome,
            job=name,
            vm_name=name,
            source=name,
            target=target,
            sr=name,
            step=name,
            error=name if outcome is not Outcome.FULL else None,
            disks=disks,
            base_data=name,
            base_data_reason=name,
        )
        for outcome in Outcome
        for target in (name, "dr")
    )


def status(name: str) -> RenderableType:
    web = job(vms=list(dict.fromkeys(["a", name or "b"])))
    known = [Latest(each, NOON) for each in records(name)]
    shown = job_status(web, known, next_run_at=LATER, run_id=None, now=LATER)
    vms = tuple(vm.model_copy(update={"name": name, "last": records(name)[2]}) for vm in shown.vms)
    shown = shown.model_copy(update={"name": name, "vms": vms})
    pool = PoolStatus(name=name, latency_s=2, is_slow=True, max_vms=1, active_vms=1, waiting_vms=1)
    reply = StatusReply(
        version="1",
        pid=1,
        started_at=NOON,
        stopping=True,
        jobs=(shown,),
        running=records(name),
        pools=(pool,),
    )
    return status_view(reply, LATER)


def orphan(name: str) -> OrphanReply:
    return OrphanReply(
        pool=name,
        sr=name,
        replica=name,
        name=name,
        vm=name,
        job=name,
        points=1,
        newest_point_at=NOON,
        signs_of_use=(name,),
    )


VIEWS: dict[str, Callable[[str], RenderableType]] = {
    "status": status,
    "jobs": lambda name: jobs_table(
        JobsReply(
            jobs=(job_reply(job(), LATER).model_copy(update={"name": name, "source": name}),)
        ),
        LATER,
    ),
    "history": lambda name: history_table(HistoryReply(records=records(name)), LATER),
    "show": lambda name: run_view(records(name)),
    "run --wait": lambda name: finished_view(records(name)),
    "orphans": lambda name: orphans_view(
        OrphansReply(orphans=(orphan(name),), not_asked={name: name}), LATER
    ),
    "forget": lambda name: plans_view(
        [
            ForgetPlanReply(orphan=orphan(name), actions=(name,), objections=()),
            ForgetPlanReply(orphan=orphan(name), actions=(name,), objections=(name,)),
        ]
    ),
    "throttle": lambda name: links_table(
        LinksReply(
            links=(
                LinkReply(name=name, rate_bytes_per_s=1, reason=name, active_disks=1, sent_bytes=1),
            )
        )
    ),
}


SENTENCES = {"cancel", "reload"}
"""Commands that print one sentence and no view."""


def shown(view: RenderableType, width: int = 80) -> str:
    """Return what a view looks like; its lines fit, and hold nothing that a terminal obeys."""
    out = io.StringIO()
    Console(file=out, width=width).print(view)
    text = out.getvalue()
    obeyed = [c for c in text.replace("\n", "") if unicodedata.category(c) in OBEYED]
    assert obeyed == []
    assert all(cell_len(line) <= width for line in text.splitlines())
    return text


OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_every_command_that_shows_names_is_tried() -> None:
    commands = {
        each.name or each.callback.__name__ for each in app.registered_commands if each.callback
    }

    assert {view.split()[0] for view in VIEWS} == commands - SENTENCES


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_shows_every_name(view: str, name: str) -> None:
    text = shown(VIEWS[view](name), width=500)

    assert visible(name).strip() in text


@pytest.mark.parametrize("view", VIEWS)
@settings(deadline=None, max_examples=20)
@given(name=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_view_of_any_name_fits_a_terminal(view: str, name: str) -> None:
    shown(VIEWS[view](name))


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_progress_of_a_vm_of_any_name_is_shown(name: str, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=500, force_terminal=terminal)
    disks = tuple(DiskRecord(n, name, 1 << 30, name, "", 1000, 400) for n in ("0", name))

    with displayed(console) as display:
        display.show(record(outcome=Outcome.RUNNING, vm_name=name, step="transfer", disks=disks))

    assert visible(name).strip() in out.getvalue()
    assert not {"\x9b", "\u202e", "\u200b"} & set(out.getvalue())
    assert "\x1b]0;t" not in out.getvalue()


def test_a_sentence_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().print("job web[/b]: [red] :bomb:\x9b")

    assert capsys.readouterr().out == "job web[/b]: [red] :bomb:\\x9b\n"
