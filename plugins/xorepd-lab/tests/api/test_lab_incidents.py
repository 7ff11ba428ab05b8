"""Incidents: what happens to a pool, and how people make it happen."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import XenAPI
from typer.testing import CliRunner, Result

from tests.lab.labclient import Api, exchange, get, logged_in, small_lab, until, vdi_record
from xorepd_lab.__main__ import app
from xorepd_lab.admin import Admin, AdminError, ask, socket_path
from xorepd_lab.disks.chain import DiskError
from xorepd_lab.faults.effects import EFFECTS
from xorepd_lab.faults.faults import BadFault, parse_incident
from xorepd_lab.faults.incidents import INCIDENTS, Incident
from xorepd_lab.lab import Lab

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab


@pytest.mark.parametrize(
    "incident",
    [
        {"kind": "host-crash", "pool": "prod", "host": "prod-h2"},
        {"kind": "sr-full", "sr": "prod-shared", "bytes": 4096},
        {"kind": "clock-jump", "seconds": -90.5},
        {"kind": "session-loss", "originator": "tests"},
    ],
    ids=lambda incident: incident["kind"],
)
def test_an_incident_survives_json(incident: dict[str, object]) -> None:
    assert parse_incident(json.loads(json.dumps(incident))).to_json() == incident


@pytest.mark.parametrize(
    ("incident", "complaint"),
    [
        ("host-crash", "incident: it must be a JSON object"),
        ({}, "incident: kind: Field required"),
        ({"kind": "flood"}, "no incident 'flood'; choose one of toolstack-restart"),
        ({"kind": "sr-full", "bytes": -1}, "bytes must be 0 or more"),
        ({"kind": "sr-full", "where": "x"}, "incident: where: Unexpected keyword argument"),
    ],
    ids=["no-object", "nothing", "unknown", "negative", "extra"],
)
def test_a_bad_incident_is_refused_in_one_sentence(incident: object, complaint: str) -> None:
    with pytest.raises(BadFault) as refused:
        parse_incident(incident)

    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "incident",
    [
        Incident("host-crash"),
        Incident("host-crash", host="nowhere"),
        Incident("sr-full", pool="prod", sr="dr-storage"),
        Incident("master-change", pool="dr"),
    ],
    ids=["which-pool", "unknown-host", "elsewhere", "no-other-host"],
)
async def test_an_incident_needs_a_place(lab: Lab, incident: Incident) -> None:
    with pytest.raises(LookupError):
        await lab.happen(incident)


# -- one by one -----------------------------------------------------------------------------------


async def test_one_client_loses_its_sessions(lab: Lab, api: Api) -> None:
    async with logged_in(lab, originator="other") as other:
        kept, lost = api.ref, other.ref

        await lab.happen(Incident("session-loss", pool="prod", originator="other"))

        assert lab.pools["prod"].db.exists("session", kept)
        assert not lab.pools["prod"].db.exists("session", lost)


async def test_the_clock_of_one_pool_jumps(lab: Lab, api: Api) -> None:
    disk = await api.disk("db01-data")

    await lab.happen(Incident("clock-jump", pool="prod", seconds=-86400 * 365))

    taken = (await api("VDI.get_snapshot_time", await api("VDI.snapshot", disk))).value
    [prod, recovery] = [pool.clock.now() for pool in lab.pools.values()]
    assert int(taken[:4]) == int(prod[:4]) == int(recovery[:4]) - 1


async def test_a_clock_that_is_wrong_stays_so(tmp_path: Path) -> None:
    async with small_lab(tmp_path) as lab:
        await lab.happen(Incident("clock-jump", pool="dr", seconds=3600))

    async with small_lab(tmp_path) as lab:
        assert lab.pools["dr"].clock.offset.total_seconds() == 3600
        assert lab.pools["prod"].clock.offset.total_seconds() == 0


async def test_an_sr_is_full_and_free_again(lab: Lab, api: Api) -> None:
    vdi = await api.disk("web01-data")
    await lab.happen(Incident("sr-full", sr="prod-shared"))

    failure = await api.failure("VDI.snapshot", vdi)
    assert failure[0].startswith("SR_BACKEND_FAILURE_")
    with pytest.raises(DiskError, match="fit"):
        await lab.guest_write("web01", 1, sequential=(16 << 20, 4 << 20))

    await lab.happen(Incident("sr-free", sr="prod-shared"))
    assert await api("VDI.snapshot", vdi)


async def test_an_sr_takes_so_many_bytes_more(lab: Lab, api: Api) -> None:
    sr = lab.pools["dr"].srs["dr-storage"].ref
    async with logged_in(lab, "dr") as recovery:
        await lab.happen(Incident("sr-full", sr="dr-storage", bytes=1 << 20))

        assert await recovery("VDI.create", vdi_record(sr))
        failures = [
            code for code in [(await attempt(recovery, sr)) for _ in range(64)] if code is not None
        ]

    assert failures
    assert failures[0].startswith("SR_BACKEND_FAILURE_")


async def attempt(api: Api, sr: str) -> str | None:
    """Return the code with which a disk could not be made."""
    try:
        await api("VDI.create", vdi_record(sr, 8 << 30))
    except XenAPI.Failure as error:
        return str(error.details[0])
    return None


async def test_coalescing_hangs_and_goes_on(lab: Lab, api: Api) -> None:
    vm = await api.vm("db01")
    store = lab.pools["prod"].srs["prod-local"].directory
    await lab.happen(Incident("coalesce-stuck", sr="prod-local"))
    for number in range(3):
        snapshot = await api("VM.snapshot", vm, f"s{number}")
        [vbd] = [
            each
            for each in await api("VM.get_VBDs", snapshot)
            if await api("VBD.get_type", each) == "Disk"
        ]
        vdi = await api("VBD.get_VDI", vbd)
        await api("VM.destroy", snapshot)
        await api("VDI.destroy", vdi)
    await lab.settled()
    hanging = len(list(store.glob("*.vhd")))

    await lab.happen(Incident("coalesce-resumed", sr="prod-local"))
    await lab.settled()

    assert len(list(store.glob("*.vhd"))) < hanging


async def test_a_host_loses_sight_of_an_sr(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    vdi = await api("VDI.snapshot", await api.disk("web01-data"))
    request = get(f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&format=vhd")

    await lab.happen(Incident("pbd-unplugged", sr="prod-shared", host="prod-h1"))
    answer = await exchange(pool.plain_url, request)
    assert answer.startswith(b"HTTP/1.1 302 Found")
    assert f"https://{pool.address(pool.host('prod-h2'))}".encode() in answer
    await lab.happen(Incident("pbd-unplugged", sr="prod-shared", host="prod-h2"))
    assert (await api.failure("VDI.snapshot", vdi))[0] == "SR_HAS_NO_PBDS"

    await lab.happen(Incident("pbd-plugged", sr="prod-shared", host="prod-h1"))
    assert (await exchange(pool.plain_url, request)).startswith(b"HTTP/1.1 200 OK")


async def test_a_host_cannot_be_reached_for_a_while(lab: Lab, api: Api) -> None:
    pool = lab.pools["prod"]
    place = (pool.address(pool.host("prod-h2")), pool.https_port)

    await lab.happen(Incident("host-unreachable", host="prod-h2"))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*place)
    assert await api("VM.get_all")
    await until(lambda: not pool.life.is_live(pool.host("prod-h2")))
    assert await api.failure("host.get_servertime", pool.host("prod-h2")) == [
        "HOST_OFFLINE",
        pool.host("prod-h2"),
    ]

    await lab.happen(Incident("host-reachable", host="prod-h2"))
    _, writer = await asyncio.open_connection(*place)
    writer.close()
    await writer.wait_closed()
    assert await api("host.get_servertime", pool.host("prod-h2"))


# -- for people -----------------------------------------------------------------------------------


@asynccontextmanager
async def administered(lab: Lab) -> AsyncIterator[Path]:
    admin = Admin(lab)
    server = await admin.serve()
    try:
        yield lab.directory
    finally:
        server.close()


async def test_people_make_things_happen(lab: Lab, api: Api) -> None:
    async with administered(lab) as state:
        await asyncio.to_thread(
            ask, state, "incident", kind="clock-jump", pool="prod", seconds=100.0
        )
        with pytest.raises(AdminError, match="2 pools are meant; give pool, host and sr"):
            await asyncio.to_thread(ask, state, "incident", kind="clock-jump")
        with pytest.raises(AdminError, match="no incident 'flood'; choose one of"):
            await asyncio.to_thread(ask, state, "incident", kind="flood")

    assert lab.pools["prod"].clock.offset.total_seconds() == 100


async def test_people_set_rules_with_incidents(lab: Lab, api: Api) -> None:
    async with administered(lab) as state:
        rule = {"where": "rpc", "incident": {"kind": "session-loss"}, "times": None}
        await asyncio.to_thread(ask, state, "fault-add", **rule)
        shown = (await asyncio.to_thread(ask, state, "fault-list"))["faults"]
        with pytest.raises(AdminError, match="fault: stop: Unexpected keyword argument"):
            await asyncio.to_thread(ask, state, "fault-add", where="rpc", stop=True)

    assert shown == [{**rule, "seen": 0, "fired": 0}]


async def test_the_command_line_knows_incidents_and_rules(
    lab: Lab, api: Api, tmp_path: Path
) -> None:
    rules: list[dict[str, Any]] = [
        {"where": "rpc", "match": "VM.start", "incident": {"kind": "host-crash"}},
        {"where": "any", "reset": True, "probability": 0.25, "seed": 4},
    ]
    path = tmp_path / "rules.json"
    path.write_text(json.dumps(rules))
    cli = CliRunner()

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(lambda: cli.invoke(app, [*arguments]))

    async with administered(lab) as directory:
        state = ("--state", str(directory))
        listed = await run("incident", *state)
        await run("incident", *state, "clock-jump", "--pool", "dr", "--seconds", "5")
        refused = await run("incident", *state, "flood")
        await run("fault", "load", *state, str(path))
        drawn = await run("fault", "add", "rpc", *state, "--reset", "--probability", "0.5")
        shown = [
            json.loads(each)
            for each in (await run("fault", "list", *state)).output.split("\n")[:-1]
        ]
        again = tmp_path / "again.json"
        again.write_text(json.dumps(shown))
        repeated = await run("fault", "load", *state, str(again))
        calls = await run("calls", *state)

    assert [line.split()[0] for line in listed.output.splitlines()] == list(INCIDENTS)
    assert lab.pools["dr"].clock.offset.total_seconds() == 5
    assert refused.exit_code == 1
    assert shown[:2] == [{**rule, "seen": 0, "fired": 0} for rule in rules]
    assert drawn.output.splitlines()[-1] == f"seed {shown[2]['seed']}"
    assert (repeated.exit_code, len(list(lab.faults))) == (0, 6)
    assert "session.login_with_password" in calls.output


async def test_the_kinds_of_faults_are_told() -> None:
    told = CliRunner().invoke(app, ["fault", "kinds"]).output

    assert [line.split()[0] for line in told.splitlines()] == list(EFFECTS)


@pytest.mark.parametrize(
    "line", [b"[]", b"{", b"nothing", b'{"command": "write"}', b'{"command": "read", "x": 1}']
)
async def test_nonsense_at_the_back_door_is_answered(lab: Lab, line: bytes) -> None:
    async with administered(lab) as state:

        def talk() -> dict[str, object]:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(socket_path(state)))
                connection.sendall(line + b"\n")
                with connection.makefile() as stream:
                    return dict(json.loads(stream.readline()))

        answer = await asyncio.to_thread(talk)

    assert answer["ok"] is False
    assert answer["error"]


def test_every_incident_says_what_it_is() -> None:
    assert all(kind.tells for kind in INCIDENTS.values())
