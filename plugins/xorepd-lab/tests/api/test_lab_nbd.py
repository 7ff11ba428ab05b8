"""Disks over NBD: who may read what, over which network, and every way in which it is refused."""

import asyncio
import shutil
import ssl
from dataclasses import replace
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from tests.lab import nbdclient
from tests.lab.labclient import FAST, Api, exchange, get, logged_in, small_lab, vdi_record
from tests.lab.nbdclient import (
    ACK,
    EINVAL,
    EPERM,
    EXPORT_NAME,
    INVALID,
    POLICY,
    READ,
    TLS_REQD,
    UNSUP,
    allow_nbd,
    connected,
    detached,
    dom0_vbds,
    exported,
    nbd_info,
    trusting,
)
from xorepd_lab.calls.call import State
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab
from xorepd_lab.pools import NBD_PORT
from xorepd_lab.topology import SMALL, AccountSpec

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab

MIB = 1 << 20
SIZE = 32 * MIB
"""Of web01-data."""


@pytest.fixture
async def disk(api: Api) -> str:
    """A snapshot of web01-data, in a pool whose network is for NBD without TLS."""
    await allow_nbd(api)
    return str(await api("VDI.snapshot", await api.disk("web01-data")))


@pytest.fixture
async def info(api: Api, disk: str) -> dict[str, Any]:
    """How to reach that snapshot on prod-h1."""
    return await nbd_info(api, disk)


async def content(lab: Lab, api: Api, vdi: str) -> bytes:
    """Return a disk as the HTTP handler gives it."""
    url = lab.pools["prod"].plain_url
    answer = await exchange(url, get(f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}"))
    return answer.partition(b"\r\n\r\n")[2]


# -- purposes and addresses ------------------------------------------------------------------------


async def test_without_a_purpose_there_is_nowhere_to_connect(lab: Lab, api: Api) -> None:
    vdi = await api.disk("web01-data")
    assert await api("VDI.get_nbd_info", vdi) == []

    pool = lab.pools["prod"]
    there = {"address": pool.address(pool.master), "port": pool.nbd_port}
    async with connected(there) as nbd:
        assert await nbd.rest() == b""


async def test_a_disk_is_offered_by_every_host_that_sees_its_sr(lab: Lab, api: Api) -> None:
    await allow_nbd(api, "nbd")
    shared, local = await api.disk("web01-data"), await api.disk("db01-data")

    everywhere = await api("VDI.get_nbd_info", shared)
    (here,) = await api("VDI.get_nbd_info", local)

    pool = lab.pools["prod"]
    hosts = {pool.address(pool.host(name)): name for name in ("prod-h1", "prod-h2")}
    assert {each["address"]: each["subject"] for each in everywhere} == hosts
    assert here["subject"] == "prod-h2"
    assert here["cert"] == await api("host.get_server_certificate", pool.host("prod-h2"))
    uuid = await api("VDI.get_uuid", local)
    assert here["exportname"] == f"/{uuid}?session_id={api.ref}"
    assert int(here["port"]) == pool.nbd_port
    assert set(here) == {"exportname", "address", "port", "cert", "subject"}


async def test_only_attached_networks_with_an_address_count(lab: Lab, api: Api) -> None:
    await allow_nbd(api)
    vdi, db = await api.disk("web01-data"), lab.pools["prod"].db
    (pif,) = (ref for ref in db.select("PIF", host=lab.pools["prod"].host("prod-h1")))

    db.set("PIF", pif, IPv6=["", "fd00::1"])
    addresses = [each["address"] for each in await api("VDI.get_nbd_info", vdi)]
    db.set("PIF", pif, currently_attached=False)
    left = [each["subject"] for each in await api("VDI.get_nbd_info", vdi)]

    assert len(addresses) == 3
    assert "fd00::1" in addresses
    assert left == ["prod-h2"]


async def test_info_is_not_to_be_had_as_a_task(api: Api, disk: str) -> None:
    error = await api.failure("Async.VDI.get_nbd_info", disk)

    assert error == ["Fault", "No async mode for this operation (rpc: VDI.get_nbd_info)"]


async def test_the_two_purposes_exclude_each_other_in_a_pool(lab: Lab, api: Api) -> None:
    (lan,) = await api("network.get_by_name_label", "lan")
    other = await api("network.create", {"name_label": "other", "other_config": {}})

    await api("network.add_purpose", lan, "nbd")
    await api("network.add_purpose", lan, "nbd")
    refused = await api.failure("network.add_purpose", other, "insecure_nbd")
    purpose = await api("network.get_purpose", lan)
    await api("network.remove_purpose", lan, "insecure_nbd")
    await api("network.remove_purpose", lan, "nbd")
    await api("network.add_purpose", other, "insecure_nbd")

    assert refused == ["NETWORK_INCOMPATIBLE_PURPOSES", "insecure_nbd", "nbd"]
    assert purpose == ["nbd"]
    assert await api("network.get_purpose", lan) == []
    lab.pools["prod"].db.set("network", other, managed=False)
    assert await api.failure("network.add_purpose", other, "insecure_nbd") == [
        "NETWORK_UNMANAGED",
        other,
    ]


async def test_both_purposes_at_once_are_as_good_as_none(lab: Lab, info: dict[str, Any]) -> None:
    db = lab.pools["prod"].db
    (lan,) = db.select("network", name_label="lan")
    db.set("network", lan, purpose=["nbd", "insecure_nbd"])

    async with connected(info) as nbd:
        assert await nbd.rest() == b""


# -- negotiation -----------------------------------------------------------------------------------


async def test_with_tls_nothing_is_said_in_clear(api: Api) -> None:
    await allow_nbd(api, "nbd")
    info = await nbd_info(api, await api.disk("web01-data"))

    async with connected(info) as nbd:
        await nbd.greet()
        said = [await nbd.option(option, b"data") for option in (3, 6, 7, 8, 9, 10, 77)]
        nbd.say(EXPORT_NAME, info["exportname"].encode())
        assert await nbd.rest() == b""
    async with connected(info) as nbd:
        await nbd.greet()
        nbd.say(nbdclient.ABORT)
        assert await nbd.rest() == b""

    assert said == [TLS_REQD] * 7


async def test_tls_is_1_2_and_of_the_certificate_that_xapi_tells(api: Api) -> None:
    await allow_nbd(api, "nbd")
    info = await nbd_info(api, await api.disk("web01-data"))

    async with connected(info) as nbd:
        await nbd.greet()
        await nbd.encrypt(trusting(info), info["subject"])
        channel = nbd.writer.get_extra_info("ssl_object")
        assert channel.version() == "TLSv1.2"
        assert channel.cipher()[0].startswith("ECDHE-RSA-AES")
        assert await nbd.option(nbdclient.STARTTLS) == INVALID
        assert await nbd.export(info["exportname"]) == (SIZE, 3)
        assert len(await nbd.read(0, 2 * MIB)) == 2 * MIB
    newer = trusting(info)
    newer.minimum_version = ssl.TLSVersion.TLSv1_3
    async with connected(info) as nbd:
        await nbd.greet()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await nbd.encrypt(newer, info["subject"])


async def test_what_is_smuggled_in_before_the_handshake_ends_it(api: Api) -> None:
    await allow_nbd(api, "nbd")
    info = await nbd_info(api, await api.disk("web01-data"))

    async with connected(info) as nbd:
        await nbd.greet()
        nbd.say(nbdclient.STARTTLS)
        nbd.say(EXPORT_NAME, info["exportname"].encode())

        assert len(await nbd.rest()) <= 20


async def test_of_the_options_only_the_export_name_is_served(info: dict[str, Any]) -> None:
    async with connected(info) as nbd:
        await nbd.greet()
        said = {option: await nbd.option(option, b"x" * 9) for option in (3, 5, 4, 6, 7, 8, 9, 10)}
        large = await nbd.option(1000, bytes(3 * MIB))
        assert await nbd.option(nbdclient.ABORT) == ACK
        assert await nbd.rest() == b""

    assert said == {3: POLICY, 5: POLICY} | dict.fromkeys((4, 6, 7, 8, 9, 10), UNSUP)
    assert large == UNSUP


@pytest.mark.parametrize("flags", [0, 1, 3])
async def test_client_flags_matter_for_tls_only(api: Api, flags: int) -> None:
    await allow_nbd(api)
    info = await nbd_info(api, await api.disk("web01-data"))

    async with connected(info) as nbd:
        await nbd.greet(flags)
        assert await nbd.export(info["exportname"]) == (SIZE, 3)
    (lan,) = await api("network.get_by_name_label", "lan")
    await api("network.remove_purpose", lan, "insecure_nbd")
    await api("network.add_purpose", lan, "nbd")
    async with connected(info) as nbd:
        await nbd.greet(flags)
        if flags:
            assert await nbd.option(3) == TLS_REQD
        else:
            assert await nbd.rest() == b""


@pytest.mark.parametrize(
    "name",
    [
        "/{uuid}",
        "/{uuid}?session_id=",
        "/{uuid}?session_id=OpaqueRef:00000000-0000-4000-8000-000000000000",
        "{uuid}?session_id={session}",
        "/x?session_id={session}",
        "",
        "/\udcff?session_id={session}",
    ],
)
async def test_a_bad_name_or_session_is_not_answered(
    lab: Lab, api: Api, info: dict[str, Any], name: str
) -> None:
    uuid = info["exportname"].partition("?")[0][1:]
    said = name.format(uuid=uuid, session=api.ref).encode(errors="surrogateescape")

    async with connected(info) as nbd:
        await nbd.greet()
        nbd.say(EXPORT_NAME, said)

        assert await nbd.rest() == b""
    assert lab.calls[-1].name == "connect"
    assert lab.calls[-1].outcome in ("SESSION_INVALID", "UUID_INVALID")


async def test_a_host_that_does_not_see_the_sr_closes(lab: Lab, api: Api) -> None:
    await allow_nbd(api)
    info = await nbd_info(api, await api.disk("db01-data"), "prod-h2")
    pool = lab.pools["prod"]

    async with connected({**info, "address": pool.address(pool.host("prod-h1"))}) as nbd:
        await nbd.greet()
        nbd.say(EXPORT_NAME, info["exportname"].encode())

        assert await nbd.rest() == b""
    assert lab.calls[-1].outcome == "SR_HAS_NO_PBDS"


async def test_the_session_is_asked_for_at_the_beginning_only(
    lab: Lab, info: dict[str, Any]
) -> None:
    async with logged_in(lab) as other:
        name = info["exportname"].partition("=")[0] + "=" + other.ref
        async with connected(info) as nbd:
            await nbd.greet()
            await nbd.export(name)
            await other("session.logout")

            assert len(await nbd.read(0, MIB)) == MIB

        async with connected(info) as nbd:
            await nbd.greet()
            nbd.say(EXPORT_NAME, name.encode())
            assert await nbd.rest() == b""
        await other.login()


async def test_readers_of_records_may_not_read_disks(tmp_path: Path) -> None:
    prod, other = SMALL.pools
    reader = AccountSpec("reader", "read-only")
    topology = replace(SMALL, pools=(replace(prod, nbd="insecure_nbd", accounts=(reader,)), other))
    async with (
        Lab.start(tmp_path / "lab", topology, seed=1, time_scale=FAST) as lab,
        logged_in(lab) as api,
    ):
        pool = lab.pools["prod"]
        info = await nbd_info(api, await api.disk("web01-data"))
        session = await pool.sessions.login(pool.master, "reader", pool.accounts["reader"], "x")

        async with connected(info) as nbd:
            await nbd.greet()
            name = info["exportname"].partition("=")[0] + "=" + session
            nbd.say(EXPORT_NAME, name.encode())
            assert await nbd.rest() == b""
        assert lab.calls[-1].outcome == "RBAC_PERMISSION_DENIED"
        async with exported(info) as nbd:
            assert len(await nbd.read(0, 512)) == 512


async def test_a_host_serves_sixteen_connections(lab: Lab, info: dict[str, Any]) -> None:
    async with exported(info) as first:
        async with asyncio.TaskGroup() as group:
            ended = asyncio.Event()

            async def hold() -> None:
                async with connected(info) as nbd:
                    await nbd.greet()
                    assert await nbd.option(3) == POLICY
                    ready.release()
                    await ended.wait()

            ready = asyncio.Semaphore(0)
            for _ in range(15):
                group.create_task(hold())
            for _ in range(15):
                await ready.acquire()
            async with connected(info) as nbd:
                assert await nbd.rest() == b""
            assert lab.calls[-1].outcome == "too many connections"
            assert len(await first.read(0, 512)) == 512
            ended.set()
        while True:  # the server sees them go one by one
            async with connected(info) as nbd:
                if await nbd.reader.read(8):
                    break


# -- reading ---------------------------------------------------------------------------------------


async def test_what_is_read_is_the_disk(
    lab: Lab, api: Api, disk: str, info: dict[str, Any]
) -> None:
    expected = await content(lab, api, disk)

    async with exported(info) as nbd:
        whole = await nbd.read(0, SIZE)
        parts = [(0, 512), (2 * MIB - 512, 1024), (3 * MIB + 1536, 5 * MIB), (SIZE - 512, 512)]
        read = [await nbd.read(offset, length) for offset, length in parts]
        nothing = await nbd.read(0, 0)

    assert whole == expected
    assert read == [expected[offset : offset + length] for offset, length in parts]
    assert nothing == b""


async def test_requests_sent_ahead_are_answered_in_order(
    lab: Lab, api: Api, disk: str, info: dict[str, Any]
) -> None:
    expected = await content(lab, api, disk)

    async with exported(info) as nbd:
        for number in range(200):
            nbd.ask(READ, number * 4096, 4096, handle=number)
        for number in range(200):
            assert await nbd.reply(number) == 0
            assert await nbd.take(4096) == expected[number * 4096 : (number + 1) * 4096]


async def test_several_connections_read_one_export(api: Api, disk: str, lab: Lab) -> None:
    everywhere = await api("VDI.get_nbd_info", disk)
    expected = await content(lab, api, disk)

    async def read(info: dict[str, Any]) -> bytes:
        async with exported(info) as nbd:
            return await nbd.read(0, SIZE)

    copies = await asyncio.gather(*(read(info) for info in everywhere * 3))

    assert [copy == expected for copy in copies] == [True] * 6


@pytest.mark.parametrize(
    ("command", "offset", "length", "error"),
    [
        (0, 100, 512, EINVAL),
        (0, 0, 100, EINVAL),
        (1, 0, 512, EPERM),
        (1, 1, 1, EPERM),
        (3, 0, 0, EINVAL),
        (4, 0, 512, EINVAL),
        (5, 0, 512, EINVAL),
        (0x0001_0000, 0, 512, EINVAL),
    ],
    ids=["offset", "length", "write", "odd write", "flush", "trim", "cache", "read with a flag"],
)
async def test_what_is_not_a_good_read_is_refused_and_ends_it(
    info: dict[str, Any], command: int, offset: int, length: int, error: int
) -> None:
    async with exported(info) as nbd:
        nbd.ask(command, offset, length, handle=1 << 63)

        assert await nbd.reply(1 << 63) == error
        assert await nbd.rest() == b""


@pytest.mark.parametrize(
    ("offset", "length", "sent"),
    [
        (SIZE - MIB, 2 * MIB, MIB),
        (SIZE - 512, 1024, 0),
        (SIZE, 512, 0),
        (1 << 63, 512, 0),
        (0, 1 << 31, 0),
        (0, (1 << 32) - 512, 0),
    ],
)
async def test_a_read_past_the_end_is_accepted_and_then_breaks_off(
    info: dict[str, Any], offset: int, length: int, sent: int
) -> None:
    async with exported(info) as nbd:
        nbd.ask(READ, offset, length)

        assert await nbd.reply() == 0
        assert len(await nbd.rest()) == sent


async def test_an_error_of_the_disk_drops_the_connection(
    lab: Lab, api: Api, disk: str, info: dict[str, Any]
) -> None:
    repository, _ = lab.pools["prod"].storage.of_vdi(disk)
    async with exported(info) as nbd:
        await nbd.read(0, SIZE)
        repository.store.lose_files()

        nbd.ask(READ, 0, SIZE)

        assert await nbd.reply() == 0
        assert len(await nbd.rest()) < SIZE
    await detached(api, disk)
    assert [call.outcome for call in lab.calls if call.name == "connect"] == [
        "SR_BACKEND_FAILURE_200"
    ]


async def test_a_request_without_magic_ends_it(lab: Lab, info: dict[str, Any]) -> None:
    async with exported(info) as nbd:
        nbd.send(bytes(28))

        assert await nbd.rest() == b""
    assert lab.calls[-1].outcome == "not NBD"


async def test_snapshots_and_coalescing_underneath_change_nothing(
    lab: Lab, api: Api, disk: str, info: dict[str, Any]
) -> None:
    expected = await content(lab, api, disk)
    live = await nbd_info(api, await api.disk("web01-data"))
    async with exported(info) as snapshot, exported(live) as running:
        before = await running.read(0, SIZE)
        for seed in range(3):
            await lab.guest_write("web01", 1, random=20, seed=seed)
            other = await api("VDI.snapshot", await api.disk("web01-data"))
            assert await snapshot.read(0, SIZE) == expected
            await api("VDI.destroy", other)
        after = await running.read(0, SIZE)
    await lab.settled()
    assert before == expected
    assert after == await content(lab, api, await api.disk("web01-data"))
    assert after != before
    assert expected == await content(lab, api, disk)


async def test_holes_are_read_as_zeroes(api: Api, lab: Lab) -> None:
    await allow_nbd(api)
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    info = await nbd_info(api, await api("VDI.create", vdi_record(sr, 6 * MIB)))

    async with exported(info) as nbd:
        assert await nbd.read(MIB + 512, 3 * MIB) == bytes(3 * MIB)


# -- the VBD ---------------------------------------------------------------------------------------


async def test_a_connection_is_a_vbd_of_dom0(api: Api, disk: str, info: dict[str, Any]) -> None:
    async with exported(info) as nbd:
        (vbd,) = await dom0_vbds(api, disk)
        assert (vbd["mode"], vbd["currently_attached"]) == ("RO", True)
        assert await api.failure("VDI.destroy", disk) == ["VDI_IN_USE", disk, "destroy"]
        assert len(await nbd.read(0, 512)) == 512

        nbd.ask(nbdclient.DISC)
        assert await nbd.rest() == b""

    assert await dom0_vbds(api, disk) == []
    await api("VDI.destroy", disk)


async def test_the_vbd_outlives_its_client(
    lab: Lab, api: Api, disk: str, info: dict[str, Any]
) -> None:
    repository, uuid = lab.pools["prod"].storage.of_vdi(disk)
    async with exported(info):
        lab.pools["prod"].clock.scale = 1.0
    while repository.store.is_open(uuid):  # noqa: ASYNC110 -- nobody tells
        await asyncio.sleep(0.001)

    assert len(lab.pools["prod"].db.get("VDI", disk, "VBDs")) == 1
    await detached(api, disk)


async def test_changed_blocks_are_to_be_asked_for_before_connecting(api: Api) -> None:
    await allow_nbd(api)
    live = await api.disk("web01-data")
    await api("VDI.enable_cbt", live)
    base, head = await api("VDI.snapshot", live), await api("VDI.snapshot", live)
    bitmap = await api("VDI.list_changed_blocks", base, head)

    async with exported(await nbd_info(api, head)):
        refused = await api.failure("VDI.list_changed_blocks", base, head)
        kept = await api.failure("VDI.data_destroy", head)
    await detached(api, head)
    async with exported(await nbd_info(api, base)):
        assert await api("VDI.list_changed_blocks", base, head) == bitmap

    assert refused[:2] == ["VDI_IN_USE", head]
    assert kept == ["VDI_IN_USE", head, "data_destroy"]
    await api("VDI.data_destroy", head)
    assert await api.failure("VDI.get_nbd_info", head) == [
        "VDI_INCOMPATIBLE_TYPE",
        head,
        "CBT metadata",
    ]


async def test_clients_that_vanish_leave_no_vbd(api: Api, disk: str, info: dict[str, Any]) -> None:
    async with connected(info) as nbd:
        await nbd.greet()
        nbd.say(EXPORT_NAME, info["exportname"].encode())
    async with exported(info) as nbd:
        nbd.ask(READ, 0, SIZE)
        await nbd.reply()

    await detached(api, disk)


async def test_a_restart_of_the_toolstack_leaves_connections_alone(
    lab: Lab, disk: str, info: dict[str, Any]
) -> None:
    life, master = lab.pools["prod"].life, lab.pools["prod"].master
    async with exported(info) as nbd, asyncio.TaskGroup() as group:
        restart = group.create_task(life.restart_toolstack(master))
        await asyncio.sleep(0)

        assert life.state(master) is State.DOWN
        assert len(await nbd.read(0, SIZE)) == SIZE
        async with connected(info) as late:
            await late.greet()  # said once the toolstack is back, which knows no session any more
            late.say(EXPORT_NAME, info["exportname"].encode())
            assert await late.rest() == b""
        await restart
        assert len(await nbd.read(0, 512)) == 512
    assert lab.calls[-2].outcome == "SESSION_INVALID"
    async with logged_in(lab) as again:
        await detached(again, disk)


async def test_the_port_is_nbds_own_unless_it_is_taken(tmp_path: Path) -> None:
    async with small_lab(tmp_path / "lab") as lab:
        pools = list(lab.pools.values())
        address, ports = pools[0].address(pools[0].master), [pool.nbd_port for pool in pools]
    shutil.rmtree(tmp_path / "lab")  # one in the same place has the same addresses
    with create_server((address, NBD_PORT)):
        async with small_lab(tmp_path / "lab") as lab:
            taken = [pool.nbd_port for pool in lab.pools.values()]
    async with small_lab(tmp_path / "lab") as lab, logged_in(lab) as api:
        await allow_nbd(api)
        info = await nbd_info(api, await api.disk("web01-data"))
        async with exported(info) as nbd:
            assert len(await nbd.read(0, 512)) == 512
        resumed = [pool.nbd_port for pool in lab.pools.values()]

    assert ports == [NBD_PORT, NBD_PORT]
    assert taken[0] != NBD_PORT
    assert taken[1] == NBD_PORT
    assert resumed == taken
    assert int(info["port"]) == taken[0]


async def test_nbd_of_a_host_ends_with_its_power_and_comes_back(
    lab: Lab, api: Api, disk: str
) -> None:
    pool, info = lab.pools["prod"], await nbd_info(api, disk, "prod-h2")
    async with exported(info) as nbd:
        await nbd.read(0, 512)

        await pool.crash_host(pool.host("prod-h2"))

        assert await nbd.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            async with connected(info):
                pass
    await pool.restart_host(pool.host("prod-h2"))
    async with exported(info) as nbd:
        assert len(await nbd.read(0, 512)) == 512


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "sent"),
    [
        (Fault("nbd", "connect", reset=True), 0),
        (Fault("nbd", "connect", error=("SR_BACKEND_FAILURE_46", "", "x", "")), 0),
        (Fault("nbd", "connect", drop_response=True), 0),
        (Fault("nbd", "read", skip=1, reset=True), MIB),
        (Fault("nbd", "read", skip=1, error=("VDI_IO_ERROR", "x")), MIB),
        (Fault("nbd", "connect", cut_at=MIB + 1000), MIB + 1000),
        (Fault("nbd", "connect", end_at=MIB + 1000), MIB + 1000),
        (Fault("nbd", "read", skip=1, cut_at=1000), MIB + 1000),
    ],
    ids=["reset", "error", "no answer", "read reset", "read error", "cut", "end", "read cut"],
)
async def test_connections_break_as_told(
    lab: Lab, api: Api, disk: str, info: dict[str, Any], fault: Fault, sent: int
) -> None:
    fault = lab.faults.add(fault)
    received = 0

    async with connected(info) as nbd:
        await nbd.greet()
        try:
            await nbd.export(info["exportname"])
            while True:
                nbd.ask(READ, 0, MIB)
                await nbd.reply()
                piece = await nbd.reader.read(MIB)
                while piece:
                    received += len(piece)
                    if received % MIB == 0:
                        break
                    piece = await nbd.reader.read(MIB - received % MIB)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    assert fault.fired == 1
    assert received <= sent
    if not fault.cut_at:  # a reset may overtake what was sent before it
        assert received == sent
    await detached(api, disk)


@pytest.mark.parametrize("name", ["connect", "read"])
async def test_bytes_are_flipped_as_told(
    lab: Lab, api: Api, disk: str, info: dict[str, Any], name: str
) -> None:
    expected = await content(lab, api, disk)
    offset = 5 * MIB + 3 if name == "connect" else 3
    lab.faults.add(Fault("nbd", name, skip=0 if name == "connect" else 5, flip_at=offset))

    async with exported(info) as nbd:
        read = b"".join([await nbd.read(number * MIB, MIB) for number in range(8)])

    at = 5 * MIB + 3
    assert read[at] == expected[at] ^ 0xFF
    assert read[:at] + read[at + 1 :] == expected[:at] + expected[at + 1 : 8 * MIB]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("nbd", "connect", stall=True),
        Fault("nbd", "connect", stall=True, stall_at=MIB),
        Fault("nbd", "read", stall=True, skip=1),
        Fault("nbd", "read", stall=True, stall_at=4096, skip=1),
    ],
    ids=["connect", "connection", "read", "within a read"],
)
async def test_connections_stall_until_released(
    lab: Lab, api: Api, disk: str, info: dict[str, Any], fault: Fault
) -> None:
    expected = await content(lab, api, disk)
    fault = lab.faults.add(fault)

    async def read() -> bytes:
        async with exported(info) as nbd:
            return b"".join([await nbd.read(number * MIB, MIB) for number in range(4)])

    async with asyncio.TaskGroup() as group:
        reading = group.create_task(read())
        await fault.stalled.wait()
        assert not reading.done()
        fault.release()

    assert reading.result() == expected[: 4 * MIB]


async def test_who_leaves_a_stalled_connection_is_noticed(
    lab: Lab, api: Api, disk: str, info: dict[str, Any]
) -> None:
    fault = lab.faults.add(Fault("nbd", "connect", stall=True, stall_at=MIB))

    async with exported(info) as nbd:
        nbd.ask(READ, 0, 2 * MIB)
        nbd.ask(READ, 0, 2 * MIB)
        await fault.stalled.wait()

    await detached(api, disk)


async def test_slowness_and_delay_change_no_byte(
    lab: Lab, api: Api, disk: str, info: dict[str, Any]
) -> None:
    expected = await content(lab, api, disk)
    slow = lab.faults.add(Fault("nbd", "connect", bytes_per_s=400 * MIB))
    late = lab.faults.add(Fault("nbd", "read", delay_s=0.01, times=None))

    async with exported(info) as nbd:
        read = b"".join([await nbd.read(number * 8 * MIB, 8 * MIB) for number in range(4)])

    assert read == expected
    assert (slow.fired, late.fired) == (1, 4)


async def test_every_request_is_written_down(
    lab: Lab, api: Api, disk: str, info: dict[str, Any]
) -> None:
    uuid = await api("VDI.get_uuid", disk)
    async with exported(info) as nbd:
        await nbd.read(512, 1024)
        await nbd.read(0, MIB)
        nbd.ask(nbdclient.DISC)
        await nbd.rest()

    calls = [call for call in lab.calls if call.kind == "nbd"]
    assert [(call.name, call.arguments, call.outcome, call.moved) for call in calls] == [
        ("connect", (uuid,), "ok", MIB + 1024),
        ("read", (uuid, 512, 1024), "ok", 1024),
        ("read", (uuid, 0, MIB), "ok", MIB),
    ]
    assert {(call.host, call.originator) for call in calls} == {("prod-h1", "tests")}
    assert not any(api.ref in str(call.arguments) for call in calls)
