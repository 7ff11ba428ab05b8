"""Many objects and much data: what makes the lab fast must not change what it says."""

import contextlib
import json
import os
import random
import ssl
import struct
from pathlib import Path

import pytest
import uvloop

from tests.lab.labclient import (
    FAST,
    Api,
    exchange,
    get,
    logged_in,
    put,
    small_lab,
    until,
    vdi_record,
    wire,
)
from xorepd_lab.faults.faults import Fault
from xorepd_lab.lab import Lab
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.persistence import (
    RESUME_GAP,
    StateFile,
    dump_registry,
    journal_of,
    load_registry,
    read_state,
)
from xorepd_lab.model.registry import DELETIONS_HIGH, Registry
from xorepd_lab.topology import MIB, DiskSpec, PoolSpec, SrSpec, Topology, VmSpec

pytest_plugins = ("tests.lab.labfixtures",)
pytestmark = pytest.mark.lab

HEAD = {"seed": 1, "pools": {"p": {"password": "secret"}}}
BLOCK = 2 * MIB


def registry() -> Registry:
    return Registry(random.Random(1))


def reloaded(path: Path) -> Registry:
    db = registry()
    load_registry(db, read_state(path)["pools"]["p"]["registry"])
    return db


def contents(db: Registry) -> dict[str, dict[str, object]]:
    return {cls: {ref: db.record(cls, ref) for ref in db.refs(cls)} for cls in db.tables}


# -- the registry ---------------------------------------------------------------------------------


def test_objects_are_found_by_what_they_are_now() -> None:
    db = registry()
    srs = [db.create("SR", name_label=f"sr{number}") for number in range(3)]
    vdis = [db.create("VDI", SR=srs[number % 2], name_label="disk") for number in range(10)]

    db.set("VDI", vdis[0], SR=srs[2], name_label="moved")
    db.destroy("VDI", vdis[1])

    assert list(db.select("VDI", SR=srs[0])) == vdis[2::2]
    assert list(db.select("VDI", SR=srs[1], name_label="disk")) == vdis[3::2]
    assert list(db.select("VDI", name_label="moved")) == [vdis[0]]
    assert db.by_uuid("VDI", db.get("VDI", vdis[2], "uuid")) == vdis[2]
    assert list(db.select("VDI", SR=srs[1], managed=True)) == vdis[3::2]
    assert list(db.select("VDI", SR="OpaqueRef:nobody")) == []
    with pytest.raises(ApiError, match="UUID_INVALID"):
        db.by_uuid("VDI", "nobody")


def test_changes_are_told_in_the_order_of_making() -> None:
    db = registry()
    first, second = (db.create("SR", name_label=name) for name in "ab")
    since = db.generation
    assert db.changed_since("SR", since) == []

    db.set("SR", second, name_label="c")
    db.touch("SR", first)

    assert [row.ref for row in db.changed_since("SR", since)] == [first, second]
    assert [row.ref for row in db.changed_since("SR", 0)] == [first, second]
    assert [row.ref for row in db.changed_since("SR", db.generation - 1)] == [first]


# -- the journal ----------------------------------------------------------------------------------


def test_a_change_costs_its_own_line_only(tmp_path: Path) -> None:
    path, db = tmp_path / "lab.json", registry()
    for number in range(200):
        db.create("VM", name_label=f"vm{number}")
    state = StateFile(path)
    state.save(HEAD, {"p": db})
    whole = path.read_bytes()

    db.set("VM", db.refs("VM")[7], name_label="renamed")
    state.save(HEAD, {"p": db})
    state.save(HEAD, {"p": db})
    state.close()

    assert path.read_bytes() == whole
    (line,) = journal_of(path).read_text().splitlines()
    assert [row[4]["name_label"] for row in json.loads(line)["rows"]] == ["renamed"]
    assert contents(reloaded(path)) == contents(db)


def test_what_was_made_and_destroyed_since_the_file_comes_from_the_journal(tmp_path: Path) -> None:
    path, db = tmp_path / "lab.json", registry()
    old, kept = (db.create("SR", name_label=name) for name in ("old", "kept"))
    state = StateFile(path)
    state.save(HEAD, {"p": db})

    new = db.create("VDI", SR=kept)
    state.save(HEAD, {"p": db})
    db.destroy("SR", old)
    gone = db.create("VDI", SR=kept)
    db.destroy("VDI", gone)
    state.save(HEAD, {"p": db})
    state.close()

    back = reloaded(path)
    assert contents(back) == contents(db)
    assert back.get("SR", kept, "VDIs") == [new]
    assert [each.ref for each in back.deletions["SR"]] == [old]


def test_a_line_that_was_cut_is_not_there(tmp_path: Path) -> None:
    path, db = tmp_path / "lab.json", registry()
    state = StateFile(path)
    state.save(HEAD, {"p": db})
    db.create("SR", name_label="first")
    state.save(HEAD, {"p": db})
    expected = contents(db)
    db.create("SR", name_label="second")
    state.save(HEAD, {"p": db})
    state.close()

    whole = journal_of(path).read_bytes()
    journal_of(path).write_bytes(whole[:-20])

    assert contents(reloaded(path)) == expected


def test_a_journal_older_than_the_file_changes_nothing(tmp_path: Path) -> None:
    """A kill came after the file was replaced and before the journal was."""
    path, db = tmp_path / "lab.json", registry()
    state = StateFile(path)
    state.save(HEAD, {"p": db})
    made = db.create("SR", name_label="before")
    state.save(HEAD, {"p": db})
    old = journal_of(path).read_bytes()
    db.set("SR", made, name_label="after")
    state.save({**HEAD, "seed": 2}, {"p": db})
    state.close()

    journal_of(path).write_bytes(old)

    assert read_state(path)["seed"] == 2
    assert reloaded(path).get("SR", made, "name_label") == "after"


def test_more_deletions_than_are_remembered_are_saved_all_the_same(tmp_path: Path) -> None:
    path, db = tmp_path / "lab.json", registry()
    refs = [db.create("SR") for _ in range(DELETIONS_HIGH + 10)]
    state = StateFile(path)
    state.save(HEAD, {"p": db})

    for ref in refs:
        db.destroy("SR", ref)
    state.save(HEAD, {"p": db})
    state.close()

    assert reloaded(path).refs("SR") == []


def test_a_journal_is_folded_into_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, db = tmp_path / "lab.json", registry()
    monkeypatch.setattr("xorepd_lab.model.persistence.JOURNAL_BYTES", 4096)
    state = StateFile(path)
    made = db.create("SR")
    largest = 0
    for number in range(50):
        db.set("SR", made, name_label=f"name {number}")
        state.save(HEAD, {"p": db})
        largest = max(largest, journal_of(path).stat().st_size)
    state.close()

    assert 4096 < largest < 16384
    assert reloaded(path).get("SR", made, "name_label") == "name 49"


def test_sessions_and_tasks_are_not_kept(tmp_path: Path) -> None:
    path, db = tmp_path / "lab.json", registry()
    state = StateFile(path)
    state.save(HEAD, {"p": db})
    db.create("task", name_label="short")
    db.create("session")
    state.save(HEAD, {"p": db})
    state.close()

    assert journal_of(path).read_bytes() == b""
    assert reloaded(path).refs("task") == []
    assert dump_registry(db)["rows"] == []


def test_however_many_tasks_come_and_go_nothing_is_written(tmp_path: Path) -> None:
    path, db = tmp_path / "lab.json", registry()
    state = StateFile(path)
    state.save(HEAD, {"p": db})
    written = path.stat()

    for _ in range(DELETIONS_HIGH + 10):
        db.destroy("task", db.create("task"))
    db.forget("session")
    state.save(HEAD, {"p": db})
    state.close()

    assert path.stat().st_ino == written.st_ino
    assert journal_of(path).read_bytes() == b""


async def test_a_token_from_before_a_kill_misses_nothing(tmp_path: Path) -> None:
    async with small_lab(tmp_path) as lab, logged_in(lab) as api:
        vm = await api.vm("web01")
        for number in range(20):
            await api("VM.set_name_description", vm, str(number))
        token = (await api("event.from", ["vm"], "", 0.0))["token"]
        assert lab.pools["prod"].db.generation < RESUME_GAP

    async with small_lab(tmp_path) as lab, logged_in(lab) as api:
        await api("VM.set_name_description", vm, "after")
        events = (await api("event.from", ["vm"], token, 5.0))["events"]
        assert "after" in [each["snapshot"]["name_description"] for each in events]


async def test_many_vms_resume_as_they_were(tmp_path: Path) -> None:
    guests = tuple(
        VmSpec(
            f"vm{number}",
            (DiskSpec(f"d{number}", "store", 4 * MIB),),
            "lan",
            f"02:00:00:00:00:{number:02x}",
        )
        for number in range(60)
    )
    pool = PoolSpec("many", ("h1",), (SrSpec("store", "ext", ("h1",)),), ("lan",), guests)
    topology = Topology("many", (pool,))

    async with Lab.start(tmp_path, topology, time_scale=FAST) as lab:
        before = contents(lab.pools["many"].db)
    async with Lab.start(tmp_path, topology, time_scale=FAST) as lab:
        after = contents(lab.pools["many"].db)

    for cls in ("VM", "VDI", "VBD", "VIF", "SR", "PBD", "host"):
        for ref, record in before[cls].items():
            assert after[cls][ref] == record
        assert after[cls].keys() == before[cls].keys()


# -- streams --------------------------------------------------------------------------------------


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def content_of(lab: Lab, vdi: str) -> bytes:
    repository, uuid = lab.pools["prod"].storage.of_vdi(vdi)
    with repository.store.open(uuid) as opened:
        return opened.read(0, opened.virtual_size)


async def new_disk(api: Api) -> str:
    (sr,) = await api("SR.get_by_name_label", "prod-shared")
    return str(await api("VDI.create", vdi_record(sr, 8 * MIB)))


async def export(url: str, api: Api, vdi: str, form: str) -> bytes:
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={vdi}&format={form}"
    if url.startswith("http:"):
        answer = await exchange(url, get(path))
    else:
        async with wire(url, trusting()) as connection:
            await connection.send(get(path))
            answer = await connection.rest()
    return answer.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("form", ["vhd", "raw"])
async def test_every_way_out_gives_the_same_bytes(lab: Lab, api: Api, form: str) -> None:
    """From the file by the kernel, through TLS, and through a fault that does nothing."""
    pool, disk = lab.pools["prod"], await api.disk("web01-data")
    await lab.guest_write("web01", 1, sequential=(0, 3 * BLOCK), seed=1)
    await api("VDI.snapshot", disk)
    await lab.guest_write("web01", 1, sequential=(BLOCK, BLOCK), seed=2)
    await lab.guest_write("web01", 1, random=20, seed=3)
    snapshot = await api("VDI.snapshot", disk)

    plain = await export(pool.plain_url, api, snapshot, form)
    ciphered = await export(pool.url, api, snapshot, form)
    lab.faults.add(Fault("export", bytes_per_s=1e12))
    looked_at = await export(pool.plain_url, api, snapshot, form)

    def stripped(body: bytes) -> bytes:
        """Each VHD has another id, in footers that hold its checksum as well."""
        return body if form == "raw" else body[512:-512]

    content = content_of(lab, snapshot)
    assert stripped(plain) == stripped(ciphered) == stripped(looked_at)
    if form == "raw":
        assert plain == content
    else:
        assert content[BLOCK : 2 * BLOCK] in plain


async def test_exports_leave_no_file_open(lab: Lab, api: Api) -> None:
    pool, disk = lab.pools["prod"], await api.disk("web01-data")
    await lab.guest_write("web01", 1, sequential=(0, 16 * MIB), seed=1)
    snapshot = await api("VDI.snapshot", disk)
    path = f"/export_raw_vdi?session_id={api.ref}&vdi={snapshot}&format=vhd"

    def open_files() -> list[str]:
        links = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return [link for link in links if link.endswith(".vhd")]

    await export(pool.plain_url, api, snapshot, "vhd")
    async with wire(pool.plain_url) as connection:
        await connection.send(get(path))
        await connection.reader.readexactly(4 * MIB)
        assert open_files()
        connection.writer.transport.abort()

    await until(lambda: not open_files())


@pytest.mark.parametrize("ciphered", [False, True])
async def test_every_way_in_takes_the_same_bytes(lab: Lab, api: Api, ciphered: bool) -> None:
    """At once, through TLS or not, and through a fault that does nothing."""
    pool, noise = lab.pools["prod"], random.Random(1).randbytes(5 * MIB + 512)
    body = struct.pack("<QI", 512, len(noise)) + noise + bytes(12)
    found = []
    for fault in (None, Fault("import", bytes_per_s=1e12)):
        if fault is not None:
            lab.faults.add(fault)
        vdi, task = await new_disk(api), await api("task.create", "in", "")
        path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}&chunked"
        context = trusting() if ciphered else None
        async with wire(pool.url if ciphered else pool.plain_url, context) as connection:
            await connection.send(put(path, body, length=-1))
            await connection.rest()
        assert (await api.finished(task))["status"] == "success"
        found.append(content_of(lab, vdi))

    assert found == [bytes(512) + noise + bytes(8 * MIB - len(noise) - 512)] * 2


async def test_bytes_that_come_one_by_one_are_enough(lab: Lab, api: Api) -> None:
    """And the connection stays open: only the end marker says that all is there."""
    vdi, task = await new_disk(api), await api("task.create", "in", "")
    path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}&chunked"
    body = struct.pack("<QI", 1024, 512) + b"\x77" * 512 + bytes(12)

    async with wire(lab.pools["prod"].plain_url) as connection:
        await connection.send(put(path, length=-1))
        await connection.head()
        for position in range(len(body)):
            await connection.send(body[position : position + 1])
        record = await api.finished(task)

    assert record["status"] == "success"
    assert content_of(lab, vdi)[:2048] == bytes(1024) + b"\x77" * 512 + bytes(512)


async def test_a_client_that_stalls_keeps_nobody_else_waiting(lab: Lab, api: Api) -> None:
    stalled = [(await new_disk(api), await api("task.create", "in", "")) for _ in range(12)]
    async with contextlib.AsyncExitStack() as stack:
        for vdi, task in stalled:
            connection = await stack.enter_async_context(wire(lab.pools["prod"].plain_url))
            path = f"/import_raw_vdi?session_id={api.ref}&vdi={vdi}&task_id={task}&chunked"
            await connection.send(put(path, struct.pack("<QI", 0, MIB) + bytes(1000), length=-1))
            await connection.head()

        disk = await api.disk("web01-data")
        assert len(await export(lab.pools["prod"].plain_url, api, disk, "raw")) == 32 * MIB

    for vdi, task in stalled:
        assert (await api.finished(task))["error_info"] == ["VDI_IO_ERROR", "Device I/O errors"]
        assert await api("VDI.get_VBDs", vdi) == []
        assert content_of(lab, vdi) == bytes(8 * MIB)


def test_streams_run_in_uvloop_too(tmp_path: Path) -> None:
    """It has no sendfile, and its transports are of classes of their own."""

    async def main() -> None:
        async with small_lab(tmp_path) as lab, logged_in(lab) as api:
            await test_every_way_out_gives_the_same_bytes(lab, api, "raw")
            await test_every_way_in_takes_the_same_bytes(lab, api, ciphered=True)

    uvloop.run(main())
