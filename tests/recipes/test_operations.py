"""What a running daemon is asked and says, as the pages for operators show it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from tests.recipes.likeness import assert_like, is_like
from tests.recipes.machine import Machine
from tests.recipes.pages import claim
from tests.recipes.shapes import assert_shaped
from tests.strangers.programs import need
from tests.unit.parts import NOON, job, record
from xorepd.console.forgetting import select_orphans
from xorepd.console.status import status_view
from xorepd.console.tables import orphans_view, run_view
from xorepd.control.protocol import (
    MemoryStatus,
    OrphanReply,
    OrphansReply,
    PoolStatus,
    StatusReply,
    UnresolvedReply,
)
from xorepd.daemon.status import job_status
from xorepd.errors import ControlError, LeaseHeld
from xorepd.state.history import Latest
from xorepd.state.records import DiskRecord, Outcome, RunRecord
from xorepd_lab.demo.stage import Stage

pytestmark = pytest.mark.timeout(600)  # whole systems, one thing after the other

PAGE = "docs/operations.md"
API = "docs/control-api.md"
REMOVING = "docs/removing.md"
CURL = "$ curl -s --unix-socket /run/xorepd/control.sock "
HELD = claim(PAGE, "web01 (web): lease-held in connect")
LOG_LINE = claim("docs/log-events.md", '{"timestamp"')
MEMORY = claim(PAGE, "web01 (web): disks 2, 3 wait")
VERSION = claim(API, CURL + "http://localhost/version")
STATUS = claim(API, CURL + "http://localhost/status")
AGE = claim(API, "curl -s --unix-socket /run/xorepd/control.sock http://localhost/status \\")
FOLLOW = claim(API, "$ run=$(curl")
REFUSALS = claim(API, CURL + "-X POST http://localhost/jobs/wev/run")
THROTTLE = claim("docs/transfers.md", "$ xorepctl throttle wan 5Mbit/s")
LINKS = claim("plugins/xorepd-throttled/README.md", "$ xorepctl throttle")
THROTTLED = claim("plugins/xorepd-throttled/README.md", "[jobs.web.transport]")
KEPT_UP = claim(REMOVING, "$ xorepctl forget web01\nxorepctl: job")
TWO_OF_ONE_NAME = claim(REMOVING, "$ xorepctl forget web01\nxorepctl: web01 matches")
ORPHANS = claim(REMOVING, "$ xorepctl orphans")
DOUBTS = claim(REMOVING, "Every replica has a job.")
FORGET = claim(REMOVING, "$ xorepctl forget web01\n[XO")
SLOW = claim(PAGE, "$ xorepctl status")
KEEP = claim("docs/jobs.md", "keep = {")

CONFIGURATION = """
[daemon]
state_dir = "/var/lib/xorepd"
socket = "/run/xorepd/control.sock"
[pools.prod]
url = "URL-PROD"
ca_file = "PEM-PROD"
password_env = "PROD"
[pools.dr]
url = "URL-DR"
ca_file = "PEM-DR"
password_env = "DR"
[jobs.web]
source = "prod"
vms = ["web01"]
target = { pool = "dr", sr = "dr-storage" }
schedule = "0 0 29 2 *"
keep = 2
"""
TIMETABLE = re.compile(r"timetable = \{.*?\}")


@pytest.fixture
def machine(root: Path, pools: Stage) -> Iterator[Machine]:
    """A machine whose daemon runs, with one restore point."""
    words: dict[str, str] = {}
    environment = {"XOREPD_SOCKET": str(root / "run/xorepd/control.sock")}
    for name, pool in pools.pools.items():
        words |= {f"URL-{name.upper()}": pool["url"], f"PEM-{name.upper()}": pool["ca_file"]}
        environment[name.upper()] = pool["password"]
    with Machine(root, words, environment) as made:
        made.write("/etc/xorepd/xorepd.toml", CONFIGURATION)
        daemon = made.start("xorepd run --config /etc/xorepd/xorepd.toml", "xorepd.log")
        made.wait_for("daemon.ready", "xorepd.log", daemon)
        made.run("xorepctl run web --wait")
        yield made


@pytest.mark.stranger
def test_an_operator_asks_and_tells_the_daemon_as_the_page_does(machine: Machine) -> None:
    need("curl", "Debian: curl")
    need("jq", "Debian: jq")

    # Logs
    log = (machine.root / "xorepd.log").read_text().splitlines()
    [finished] = [line for line in log if '"run.finished"' in line]
    assert_shaped(LOG_LINE.text, finished)

    # Control API
    for block in (VERSION, STATUS):
        [(command, shown)] = block.steps
        assert_shaped(shown, machine.run(command))
    assert float(machine.run(AGE.text)) > 0
    (start, _), (follow, shown) = FOLLOW.steps
    first, *_, last = machine.run(f"{start}\n{follow}").splitlines()
    assert_shaped(shown.splitlines()[0], first)
    assert list(json.loads(last)) == ["finished"]
    machine.write("/etc/xorepd/xorepd.toml", CONFIGURATION.replace("keep", "kep"))
    for command, shown in REFUSALS.steps:
        assert_like(shown, machine.run(command))

    # A rate
    table = TIMETABLE.sub('timetable = { "00:00-24:00" = "20Mbit/s" }', THROTTLED.text)
    machine.write("/etc/xorepd/xorepd.toml", CONFIGURATION + table)
    machine.run("xorepctl reload")
    machine.run("xorepctl run web --wait")
    listed, *others = LINKS.steps
    shown = listed[1].replace("Mon-Fri 08:00-18:00", "00:00-24:00").replace("lyon", "dr")
    assert_like(shown, machine.run(listed[0]))
    for command, _ in (*THROTTLE.steps, *others):
        machine.run(command)

    # What a removed job leaves
    for command, shown in KEPT_UP.steps:
        assert_like(shown, machine.run(command, status=1))
    machine.write("/etc/xorepd/xorepd.toml", CONFIGURATION.partition("[jobs.web]")[0])
    assert "has no jobs" in machine.run("xorepctl reload", status=1)
    machine.write("/etc/xorepd/xorepd.toml", "jobs = {}\n" + CONFIGURATION.partition("[jobs")[0])
    machine.run("xorepctl reload")
    for block in (ORPHANS, FORGET):
        [(command, shown)] = block.steps
        said = machine.run(f"{command} <<< y" if block is FORGET else command)
        assert_like(shown.replace("[y/N]: y\n", "[y/N]: "), said)

    # Retention and chain depth
    machine.write("/etc/xorepd/xorepd.toml", CONFIGURATION.replace("keep = 2\n", KEEP.text))
    said = machine.run("xorepd check --config /etc/xorepd/xorepd.toml")
    assert "keep last 3, daily 7, weekly 4, monthly 6, yearly 2" in said


# -- what is not had for the asking ----------------------------------------------------------------


def printed(view: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=110).print(view)
    return out.getvalue()


def status(*running: RunRecord, **changes: object) -> str:
    reply = StatusReply(
        version="1", pid=1, started_at=NOON, stopping=False, jobs=(), running=running
    )
    return printed(status_view(reply.model_copy(update=changes), NOON + timedelta(minutes=1)))


def test_a_run_that_another_daemon_holds_is_told_as_the_page_shows() -> None:
    what = "replication of VM web01 to SR dr-storage of pool dr"
    error = LeaseHeld(what, "backup1", "2026-11-23T12:03:41+00:00")
    held = record(outcome=Outcome.LEASE_HELD, step="connect", error=str(error), disks=())

    assert_like(HELD.text, printed(run_view([held])))


def test_disks_that_wait_for_memory_are_told_as_the_page_shows() -> None:
    disks = tuple(DiskRecord(n, n, 1 << 30, waiting_for="memory") for n in ("2", "3"))
    running = record(outcome=Outcome.RUNNING, step="transfer", disks=disks)
    memory = MemoryStatus(size_bytes=16 << 20, held_bytes=16 << 20, waiting=2)

    assert is_like(f"…{MEMORY.text}", status(running, memory=memory))


def test_a_name_that_means_two_vms_is_refused_as_the_page_shows() -> None:
    gone = OrphanReply(
        pool="dr",
        sr="dr-storage",
        replica="r",
        name="[XO Backup web] web01",
        vm="658fe22d-c336-47fc-bb52-2ec35aa5d63b",
        job="web",
        points=1,
        newest_point_at=NOON,
        stream="p/658fe22d-c336-47fc-bb52-2ec35aa5d63b/s",
    )
    kept = record(vm_uuid="61f1710d-1909-4015-b59e-df32a8d4580b")
    web = job_status(job(), [Latest(kept, NOON)], next_run_at=None, run_id=None, now=NOON)
    reply = StatusReply(
        version="1", pid=1, started_at=NOON, stopping=False, jobs=(web,), running=()
    )
    [(_, shown)] = TWO_OF_ONE_NAME.steps

    with pytest.raises(ControlError) as refused:
        select_orphans(OrphansReply(orphans=(gone,), not_asked={}), reply, ["web01"], None)

    assert_like(shown, f"xorepctl: {refused.value}")


def test_what_no_run_touches_is_told_as_the_page_shows() -> None:
    uuid = "d86b7d5c-f1a6-49a2-b6f4-a83b7b9b2a8a"
    doubt = UnresolvedReply(
        pool="dr",
        kind="VDI",
        uuid=uuid,
        name="web01-data",
        sr="dr-storage",
        size=4_800_000,
        since=NOON,
        why="carries the mark of disk 76d9f516-192f-4841-aa3d-ad22f9ed03d7: a run that died cloned "
        "it, or a person did",
        remove=f"xe vdi-destroy uuid={uuid}",
        keep=f"xe vdi-param-set uuid={uuid} other-config:xorepd:mark=none",
    )
    reply = OrphansReply(orphans=(), unresolved=(doubt,), not_asked={})

    said = printed(orphans_view(reply, NOON + timedelta(days=1)))

    assert_like(re.sub("of 30 Nov 22:36", "of …", DOUBTS.text), said)


def test_a_slow_pool_is_told_as_the_page_shows() -> None:
    slow = PoolStatus(
        name="dr", latency_s=1.5, is_slow=True, max_vms=1, active_vms=2, waiting_vms=0
    )
    [(_, shown)] = SLOW.steps

    assert_like(shown, status(pools=(slow,)))
