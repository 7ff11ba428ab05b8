"""Members of a pool that crash, boot, restart their toolstack, and take over from each other."""

import asyncio
import xmlrpc.client
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.lab.labclient import FAST, NULL, Api, get, post, until, wire
from xorepd_lab.calls.call import State
from xorepd_lab.faults.faults import Fault
from xorepd_lab.faults.incidents import Incident
from xorepd_lab.lab import Lab
from xorepd_lab.pools import Pool
from xorepd_lab.topology import MIB, DiskSpec, PoolSpec, SrSpec, Topology, VmSpec

pytestmark = pytest.mark.lab

MEMBERS = ("one", "two", "three")
SLOW = 1.0
"""Time scale for tests of what is not yet so: no machine is that slow."""


def guest(name: str, host: str | None) -> VmSpec:
    disk = DiskSpec(f"{name}-disk", "shared", 8 * MIB)
    mac = f"02:16:3e:00:00:{sum(name.encode()) % 256:02x}"
    return VmSpec(name, (disk,), "lan", mac, running_on=host)


TRIO = Topology(
    "trio",
    (
        PoolSpec(
            "trio",
            hosts=MEMBERS,
            srs=(SrSpec("shared", "nfs", MEMBERS), SrSpec("local", "ext", ("two",))),
            networks=("lan",),
            vms=(guest("alpha", "two"), guest("beta", "two"), guest("gamma", None)),
        ),
    ),
    job=("trio", "alpha", "trio", "shared"),
)
"""Three hosts, the first is master; two VMs run on the second."""


@asynccontextmanager
async def start(directory: Path) -> AsyncIterator[Lab]:
    async with Lab.start(directory, TRIO, seed=1, time_scale=FAST) as lab:
        yield lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with start(tmp_path) as made:
        yield made


@pytest.fixture
def pool(lab: Lab) -> Pool:
    return lab.pools["trio"]


@asynccontextmanager
async def login(pool: Pool) -> AsyncIterator[Api]:
    """Log in to whoever is master now, when it serves."""
    await until(pool.life.serves)
    api = Api(pool)
    try:
        await api.login()
        yield api
    finally:
        api.close()


@pytest.fixture
async def api(pool: Pool) -> AsyncIterator[Api]:
    async with login(pool) as made:
        yield made


async def ask(pool: Pool, host: str, method: str, *arguments: Any) -> Any:
    """Call one member over a connection of its own: the value, or the error's description."""
    url = f"http://{pool.address(pool.host(host))}:{pool.http_port}"
    body = xmlrpc.client.dumps(arguments, method).encode()
    async with wire(url) as connection:
        await connection.send(post(body))
        _, content = await connection.response()
    [answer], _ = xmlrpc.client.loads(content)
    assert isinstance(answer, dict)
    return answer.get("Value", answer.get("ErrorDescription"))


async def states(pool: Pool, *names: str) -> list[str]:
    return [pool.db.get("VM", pool.db.one("VM", name_label=name), "power_state") for name in names]


# -- crashes --------------------------------------------------------------------------------------


async def test_nobody_notices_a_dead_host_at_once(lab: Lab, pool: Pool, api: Api) -> None:
    two, vm = pool.host("two"), await api.vm("alpha")
    pool.clock.scale = SLOW

    await pool.crash_host(two)

    assert await api.failure("host.get_servertime", two) == ["CANNOT_CONTACT_HOST", two]
    assert await api("VM.get_power_state", vm) == "Running"
    assert await api("host_metrics.get_live", await api("host.get_metrics", two))
    with pytest.raises(ConnectionRefusedError):
        await ask(pool, "two", "session.login_with_password", "root", pool.password)
    with pytest.raises(ValueError, match="alpha is not running"):
        await lab.guest_write("alpha", 0, random=1)


async def test_a_dead_host_is_noticed_in_the_end(pool: Pool, api: Api) -> None:
    two, vm = pool.host("two"), await api.vm("alpha")
    metrics = await api("host.get_metrics", two)

    await pool.crash_host(two)

    await until(lambda: not pool.db.get("host_metrics", metrics, "live"))
    assert await api.failure("host.get_servertime", two) == ["HOST_OFFLINE", two]
    assert await api("VM.get_power_state", vm) == "Running"


async def test_a_dead_host_does_nothing_for_anybody(pool: Pool, api: Api) -> None:
    two, vm = pool.host("two"), await api.vm("alpha")
    [local] = await api("SR.get_by_name_label", "local")
    pool.clock.scale = SLOW

    await pool.crash_host(two)

    for call in (("VM.hard_shutdown", vm), ("VM.snapshot", vm, "s"), ("SR.scan", local)):
        assert await api.failure(*call) == ["CANNOT_CONTACT_HOST", two]


async def test_a_disk_that_was_written_to_loses_its_changed_blocks(pool: Pool, api: Api) -> None:
    two, vm, disk = pool.host("two"), await api.vm("alpha"), await api.disk("alpha-disk")
    idle = await api.disk("gamma-disk")
    for each in (disk, idle):
        await api("VDI.enable_cbt", each)

    await pool.crash_host(two)
    await pool.restart_host(two)
    for name in ("alpha", "gamma"):
        await api("VM.start", await api.vm(name), False, False)

    assert await api("VDI.get_cbt_enabled", disk) is False
    assert await api("VDI.get_cbt_enabled", idle) is True
    told = (await api("message.get_all_records")).values()
    assert [each["obj_uuid"] for each in told if "CBT" in each["name"]] == [
        await api("VDI.get_uuid", disk)
    ]
    assert await api("VM.get_power_state", vm) == "Running"


async def test_its_vms_are_halted_when_it_is_back(pool: Pool, api: Api) -> None:
    two, vm = pool.host("two"), await api.vm("alpha")
    await pool.crash_host(two)

    await pool.restart_host(two)

    record = await api("VM.get_record", vm)
    assert (record["power_state"], record["resident_on"], record["domid"]) == ("Halted", NULL, "-1")
    assert not any([await api("VBD.get_currently_attached", vbd) for vbd in record["VBDs"]])
    assert await api("host_metrics.get_live", await api("host.get_metrics", two))
    assert await api("host.get_enabled", two)
    assert (await ask(pool, "two", "VM.get_all", api.ref))[0] == "HOST_IS_SLAVE"
    await api("VM.start", vm, False, False)


async def test_somebody_can_say_that_a_host_is_dead(pool: Pool, api: Api) -> None:
    two = pool.host("two")
    assert await api.failure("host.declare_dead", two) == ["HOST_IS_LIVE", two]
    await pool.crash_host(two)

    await api("host.declare_dead", two)

    assert await states(pool, "alpha", "beta") == ["Halted", "Halted"]
    await api("VM.start", await api.vm("alpha"), False, False)
    assert await api("VM.get_resident_on", await api.vm("alpha")) != two


async def test_a_booted_host_starts_what_is_marked(pool: Pool, api: Api) -> None:
    two = pool.host("two")
    own = (await api("pool.get_all"))[0]
    await api("pool.add_to_other_config", own, "auto_poweron", "true")
    for name in ("alpha", "beta"):
        await api("VM.add_to_other_config", await api.vm(name), "auto_poweron", "true")
    blocked = await api.vm("beta")
    await api("VM.add_to_blocked_operations", blocked, "start", "a replica")

    await pool.crash_host(two)
    await pool.restart_host(two)

    alpha = await api.vm("alpha")
    await until(lambda: pool.db.get("VM", alpha, "power_state") == "Running")
    assert await states(pool, "beta", "gamma") == ["Halted", "Halted"]


async def test_marks_mean_nothing_unless_the_pool_has_one(pool: Pool, api: Api) -> None:
    await api("VM.add_to_other_config", await api.vm("alpha"), "auto_poweron", "true")

    await pool.restart_host(pool.host("two"))

    await until(lambda: "autostart" not in {each.get_name() for each in asyncio.all_tasks()})
    assert await states(pool, "alpha") == ["Halted"]


async def test_a_crash_leaves_the_drives_of_its_streams_behind(
    lab: Lab, pool: Pool, api: Api
) -> None:
    two = pool.host("two")
    vdi = await api("VDI.snapshot", await api.disk("gamma-disk"))
    fault = lab.faults.add(Fault("export", stall=True, stall_at=4096))
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}"
    async with wire(f"http://{pool.address(two)}:{pool.http_port}") as connection:
        await connection.send(get(path))
        await fault.stalled.wait()

        await pool.crash_host(two)

        await connection.rest()
    [vbd] = await api("VDI.get_VBDs", vdi)
    assert await api("VBD.get_currently_attached", vbd)
    assert (await api.failure("VDI.destroy", vdi))[0] == "VDI_IN_USE"
    await pool.restart_host(two)
    assert await api("VDI.get_VBDs", vdi) == []
    await api("VDI.destroy", vdi)


async def test_a_dead_master_takes_the_pool_with_it(pool: Pool, api: Api) -> None:
    one, old = pool.host("one"), api.ref
    address = pool.address(one)
    pool.clock.scale = 0.02
    login_as = ("session.login_with_password", "root", pool.password)

    await pool.crash_host(one)

    assert await ask(pool, "two", *login_as) == ["HOST_IS_SLAVE", address]
    await until(lambda: pool.life.state(pool.host("two")) is State.BOOTING)
    await until(lambda: pool.frontages[pool.host("two")].listening)
    assert await ask(pool, "two", *login_as) == ["HOST_STILL_BOOTING"]
    assert await states(pool, "alpha") == ["Running"]

    pool.clock.scale = FAST
    await pool.restart_host(one)
    async with login(pool) as again:
        assert not pool.db.exists("session", old)
        assert await again("VM.get_power_state", await again.vm("alpha")) == "Running"
    await until(lambda: pool.life.state(pool.host("two")) is State.UP)
    assert await ask(pool, "two", *login_as) == ["HOST_IS_SLAVE", address]


async def test_a_lab_that_stops_with_a_dead_host_resumes_with_it_up(tmp_path: Path) -> None:
    async with start(tmp_path) as lab:
        pool = lab.pools["trio"]
        two = pool.host("two")
        await pool.crash_host(two)
        await until(lambda: not pool.life.is_live(two))

    async with start(tmp_path) as lab:
        pool = lab.pools["trio"]
        assert pool.life.is_live(two)
        assert await states(pool, "alpha") == ["Halted"]


# -- toolstacks -----------------------------------------------------------------------------------


async def test_a_restarted_toolstack_forgets_and_serves_again(pool: Pool, api: Api) -> None:
    task = await api("task.create", "t", "")
    old = api.ref

    await pool.life.restart_toolstack(pool.master)

    assert not pool.db.exists("task", task)
    assert await ask(pool, "one", "VM.get_all", old) == ["SESSION_INVALID", old]
    assert await states(pool, "alpha") == ["Running"]


async def test_a_toolstack_restarts_when_it_is_asked_to(pool: Pool, api: Api) -> None:
    old = api.ref

    await api("host.restart_agent", pool.host("one"))

    await until(lambda: not pool.db.exists("session", old))
    async with login(pool) as again:
        assert await again("VM.get_all")


async def test_a_stream_survives_the_toolstack(lab: Lab, pool: Pool, api: Api) -> None:
    vdi = await api("VDI.snapshot", await api.disk("gamma-disk"))
    fault = lab.faults.add(Fault("export", stall=True, stall_at=4096))
    async with wire(pool.plain_url) as connection:
        await connection.send(get(f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}"))
        await fault.stalled.wait()

        await pool.life.restart_toolstack(pool.master)
        fault.release()

        body = (await connection.rest()).partition(b"\r\n\r\n")[2]
    assert len(body) == 8 * MIB


# -- masters --------------------------------------------------------------------------------------


async def test_the_role_is_handed_over(pool: Pool, api: Api) -> None:
    two, old = pool.host("two"), api.ref

    await api("pool.designate_new_master", two)

    await until(lambda: pool.master == two)
    async with login(pool) as again:
        assert await again("host.get_address", two) in pool.url
        assert await again("pool.get_master", (await again("pool.get_all"))[0]) == two
        names = [each["name"] for each in (await again("message.get_all_records")).values()]
        assert "POOL_MASTER_TRANSITION" in names
        await until(lambda: pool.life.state(pool.host("one")) is State.UP)
        login_as = ("session.login_with_password", "root", pool.password)
        assert await ask(pool, "one", *login_as) == ["HOST_IS_SLAVE", pool.address(two)]
        assert await ask(pool, "two", "VM.get_all", old) == ["SESSION_INVALID", old]


async def test_a_dead_host_does_not_become_master(lab: Lab, pool: Pool, api: Api) -> None:
    one, two, three = (pool.host(name) for name in MEMBERS)
    pool.clock.scale = SLOW
    await pool.crash_host(two)

    assert await api.failure("pool.designate_new_master", two) == ["CANNOT_CONTACT_HOST", two]
    with pytest.raises(LookupError, match="host two is off"):
        await lab.happen(Incident("master-change", host="two"))
    assert pool.master == one

    pool.clock.scale = FAST
    await lab.happen(Incident("master-change"))
    assert pool.master == three


async def test_members_are_still_booting_while_the_master_changes(pool: Pool, api: Api) -> None:
    change = asyncio.get_running_loop().create_task(pool.change_master(pool.host("two")))
    await until(lambda: pool.life.state(pool.host("three")) is State.DOWN)
    pool.clock.scale = 0.4
    await until(lambda: pool.life.state(pool.host("three")) is State.BOOTING)
    await until(lambda: pool.frontages[pool.host("three")].listening)

    answer = await ask(pool, "three", "session.login_with_password", "root", pool.password)

    assert answer == ["HOST_STILL_BOOTING"]
    pool.clock.scale = FAST
    await change


async def test_a_member_seizes_the_role_of_a_dead_master(pool: Pool, api: Api) -> None:
    one, two = pool.host("one"), pool.host("two")
    local = ("session.slave_local_login_with_password", "root", pool.password)
    await pool.crash_host(one)

    session = await ask(pool, "two", *local)
    await ask(pool, "two", "pool.emergency_transition_to_master", session)

    await until(lambda: pool.master == two)
    async with login(pool) as again:
        login_as = ("session.login_with_password", "root", pool.password)
        told = await ask(pool, "three", *login_as)
        assert told in (["HOST_IS_SLAVE", pool.address(one)], ["HOST_STILL_BOOTING"])
        await again("pool.recover_slaves")
        await until(lambda: pool.life.state(pool.host("three")) is State.UP)
        assert await ask(pool, "three", *login_as) == ["HOST_IS_SLAVE", pool.address(two)]
        await pool.restart_host(one)
        assert await ask(pool, "one", *login_as) == ["HOST_IS_SLAVE", pool.address(two)]


# -- maintenance ----------------------------------------------------------------------------------


async def test_a_host_reboots_when_it_is_disabled_and_asked_to(pool: Pool, api: Api) -> None:
    three = pool.host("three")
    assert await api.failure("host.reboot", three) == ["HOST_NOT_DISABLED"]
    await api("host.disable", three)
    assert "reboot" in await api("host.get_allowed_operations", three)
    pool.clock.scale = 0.2

    await api("host.reboot", three)

    assert "shutdown" in (await api("host.get_current_operations", three)).values()
    pool.clock.scale = FAST
    await until(lambda: pool.life.state(three) is State.OFF)
    assert not pool.life.is_live(three)
    await until(lambda: pool.life.state(three) is State.UP)
    await until(lambda: pool.db.get("host", three, "enabled"))
    assert await api("host.get_current_operations", three) == {}


async def test_a_host_shuts_down_and_can_be_forgotten(pool: Pool, api: Api) -> None:
    three = pool.host("three")
    await api("host.disable", three)
    await api("host.shutdown", three)
    await until(lambda: pool.life.state(three) is State.OFF)
    assert await api.failure("host.power_on", three) == ["HOST_POWER_ON_MODE_DISABLED"]

    await api("host.destroy", three)

    assert len(await api("host.get_all")) == 2


async def test_a_host_is_evacuated(pool: Pool, api: Api) -> None:
    def may_migrate(vm: str) -> bool:
        return "pool_migrate" in pool.db.get("VM", vm, "allowed_operations")

    two = pool.host("two")
    for name in ("alpha", "beta"):
        vm = await api.vm(name)
        await until(partial(may_migrate, vm))
    await api("host.disable", two)
    assert await api("host.get_vms_which_prevent_evacuation", two) == {}

    await api("host.evacuate", two)

    assert await states(pool, "alpha", "beta") == ["Running", "Running"]
    assert await api("host.get_resident_VMs", two) == [await api("host.get_control_domain", two)]


async def test_a_host_that_cannot_be_evacuated_says_why(pool: Pool, api: Api) -> None:
    two, vm = pool.host("two"), await api.vm("alpha")
    await api("VM.add_to_blocked_operations", vm, "pool_migrate", "no")
    await api("host.disable", two)

    why = await api("host.get_vms_which_prevent_evacuation", two)
    assert why[vm] == ["OPERATION_BLOCKED", vm, "no"]
    assert (await api.failure("host.assert_can_evacuate", two))[0] == "CANNOT_EVACUATE_HOST"
    assert await api.failure("host.evacuate", two) in [list(each) for each in why.values()]


async def test_https_only_closes_the_port_without_tls(pool: Pool, api: Api) -> None:
    own = (await api("pool.get_all"))[0]
    plain = pool.plain_url.removeprefix("http://").split(":")

    await api("pool.set_https_only", own, True)
    assert await api("host.get_https_only", pool.master)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*plain)

    await api("pool.set_https_only", own, False)
    assert await ask(pool, "one", "VM.get_all", api.ref)


async def test_https_only_outlives_a_boot(pool: Pool, api: Api) -> None:
    two = pool.host("two")
    await api("host.set_https_only", two, True)

    await pool.restart_host(two)

    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(pool.address(two), pool.http_port)
    _, writer = await asyncio.open_connection(pool.address(two), pool.https_port)
    writer.close()
    await writer.wait_closed()


# -- high availability ----------------------------------------------------------------------------


async def test_protected_vms_start_elsewhere(pool: Pool, api: Api) -> None:
    two, alpha = pool.host("two"), await api.vm("alpha")
    await api("pool.enable_ha", [], {})
    assert await api.failure("pool.enable_ha", [], {}) == ["HA_IS_ENABLED"]
    await api("VM.set_ha_restart_priority", alpha, "restart")

    await pool.crash_host(two)

    await until(lambda: pool.db.get("VM", alpha, "resident_on") not in (two, NULL))
    assert await states(pool, "alpha", "beta") == ["Running", "Halted"]
    await api("pool.disable_ha")
    assert await api.failure("pool.disable_ha") == ["HA_NOT_ENABLED"]


async def test_with_ha_a_member_takes_over(pool: Pool, api: Api) -> None:
    one = pool.host("one")
    await api("pool.enable_ha", [], {})
    assert await api.failure("pool.designate_new_master", pool.host("two")) == ["HA_IS_ENABLED"]

    await pool.crash_host(one)

    await until(lambda: pool.master != one)
    async with login(pool) as again:
        await until(lambda: not pool.life.is_live(one))
        assert await again("pool.get_ha_enabled", (await again("pool.get_all"))[0])


async def test_a_master_that_ha_cannot_reach_gives_up_its_vms(
    lab: Lab, pool: Pool, api: Api
) -> None:
    one, gamma = pool.host("one"), await api.vm("gamma")
    await api("VM.start_on", gamma, one, False, False)
    await api("pool.enable_ha", [], {})
    await api("VM.set_ha_restart_priority", gamma, "restart")

    await lab.happen(Incident("host-unreachable", host="one"))

    await until(lambda: pool.db.get("VM", gamma, "resident_on") not in (one, NULL))
    assert pool.master != one
    assert not pool.life.has_power(one)


async def test_ha_needs_storage_that_all_hosts_see(lab: Lab, api: Api) -> None:
    [local] = await api("SR.get_by_name_label", "local")

    assert await api.failure("pool.enable_ha", [local], {}) == ["CANNOT_CREATE_STATE_FILE"]


# -- PBDs -----------------------------------------------------------------------------------------


async def test_a_local_sr_has_one_host(pool: Pool, api: Api) -> None:
    [local] = await api("SR.get_by_name_label", "local")
    [own] = await api("SR.get_PBDs", local)
    three = pool.host("three")
    record = {"SR": local, "host": three, "device_config": {}}

    pbd = await api("PBD.create", record)

    assert await api.failure("PBD.create", record) == ["PBD_EXISTS", local, three, pbd]
    assert await api.failure("PBD.plug", pbd) == ["SR_NOT_SHARABLE", local, pool.host("two")]
    await api("PBD.unplug", own)
    await api("PBD.plug", pbd)
    failure = await api.failure("PBD.destroy", pbd)
    assert failure == ["OPERATION_NOT_ALLOWED", "PBD is currently attached"]


async def test_an_sr_in_use_stays_plugged(pool: Pool, api: Api) -> None:
    two, disk = pool.host("two"), await api.disk("alpha-disk")
    [pbd] = [each for each in await api("host.get_PBDs", two) if await shared(api, each)]

    failure = await api.failure("PBD.unplug", pbd)

    assert failure[0] == "VDI_IN_USE"
    assert disk in failure


async def shared(api: Api, pbd: str) -> bool:
    return bool(await api("SR.get_shared", await api("PBD.get_SR", pbd)))


async def test_a_pbd_of_a_dead_host_cannot_be_plugged(lab: Lab, pool: Pool, api: Api) -> None:
    three = pool.host("three")
    [pbd] = await api("host.get_PBDs", three)
    pool.clock.scale = SLOW
    await lab.happen(Incident("host-crash", host="three"))

    assert await api.failure("PBD.unplug", pbd) == ["CANNOT_CONTACT_HOST", three]
