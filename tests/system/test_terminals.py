"""The commands as processes, on outputs that hold little, are full, or that nobody reads."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from tests.unit.control.stage import Stage, stage
from tests.unit.parts import NOON, POOLS, record, write
from xorepd.control.protocol import OrphanReply
from xorepd.state.records import DiskRecord, Outcome

NAME = "Zoë 🐙 [old] web[/b]\x9b31m\u202e\n01"
JOBS = """
[jobs.web]
source = "prod"
vms = ["Zoë 🐙 [/b]"]
target = { pool = "dr", sr = "dr [/x] ☃" }
schedule = "*/5 * * * *"
"""
JOB = "web"
BIN = Path(sys.executable).parent

OUTPUTS = {
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}
ENCODINGS = {"utf-8": "utf-8", "ascii": "ascii", "C": "ascii", "latin-1": "latin-1"}

COMMANDS = [
    (["status"], 0),
    (["jobs"], 0),
    (["history"], 0),
    (["history", "--job", NAME], 0),
    (["show"], 0),
    (["show", NAME], 1),
    (["orphans"], 0),
    (["forget", "stream-1", "--dry-run"], 0),
    (["forget", NAME, "--dry-run"], 0),
    (["forget", "nothing\x9b\u202e"], 1),
    (["throttle"], 0),
    (["throttle", NAME], 1),
    (["throttle", NAME, NAME], 1),
    (["run", JOB], 0),
    (["run", NAME], 1),
    (["cancel", JOB], 1),
    (["cancel", NAME], 1),
    (["reload"], 0),
    ([NAME], 2),
    (["history", "--limit", NAME], 2),
    (["--help"], 0),
    ([], 2),
    (["--version"], 0),
    (["--config", f"/nowhere/{NAME}", "status"], 1),
    (["--socket", f"/nowhere/{NAME}", "status"], 3),
]


@pytest.fixture
async def on(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, POOLS + JOBS) as made:
        disk = DiskRecord("0", NAME, 1 << 30, "full", NAME, 4096, 4096, NAME, NAME, NAME)
        told = (
            record(job=JOB, vm_name="Zoë 🐙 [/b]", sr="dr [/x] ☃", disks=(disk,)),
            record(job=NAME, vm_name=NAME, outcome=Outcome.FAILED, error=NAME, disks=(disk,)),
        )
        for each in told:
            made.history.add(each)
        assert await made.history.flush()
        orphan = OrphanReply(
            pool="dr",
            sr=NAME,
            replica=NAME,
            name=NAME,
            vm=NAME,
            job=NAME,
            points=1,
            newest_point_at=NOON,
            stream="stream-1",
        )
        made.orphans.orphans = (orphan,)
        runs = asyncio.get_running_loop().create_task(succeed(made))
        yield made
        runs.cancel()


async def succeed(on: Stage) -> None:
    """Have every run succeed that is begun."""
    while True:
        (await on.begun()).succeed()


async def tell(
    on: Stage,
    *arguments: str,
    stdout: int = subprocess.PIPE,
    environ: Mapping[str, str] | None = None,
) -> tuple[int | None, bytes, bytes]:
    """Run `xorepctl` beside this loop, which is the daemon's; return status and what it said."""
    known = {"PATH": os.environ["PATH"], "XOREPD_SOCKET": str(on.socket), "COLUMNS": "80"}
    process = await asyncio.create_subprocess_exec(
        BIN / "xorepctl",
        *(argument.encode() for argument in arguments),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**known, **(environ or {})},
    )
    said, complained = await process.communicate()
    return process.returncode, said or b"", complained


SOME = [COMMANDS[0], COMMANDS[2], COMMANDS[5], COMMANDS[8]]


@pytest.mark.parametrize(
    ("output", "arguments", "status"),
    [("ascii", *each) for each in COMMANDS]
    + [(output, *each) for output in ("utf-8", "C", "latin-1") for each in SOME],
)
async def test_a_command_says_what_it_has_to_on_any_output(
    on: Stage, output: str, arguments: list[str], status: int
) -> None:
    code, said, complained = await tell(on, *arguments, environ=OUTPUTS[output])
    text = (said + complained).decode(ENCODINGS[output])

    assert (code, "Traceback" in text) == (status, False), text
    assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf")]
    assert text


async def test_names_are_shown_with_as_much_of_them_as_an_output_holds(on: Stage) -> None:
    _, utf8, _ = await tell(on, "status", environ=OUTPUTS["utf-8"])
    _, ascii_only, _ = await tell(on, "status", environ=OUTPUTS["ascii"])

    assert "Zoë 🐙 [/b]" in utf8.decode()
    assert "Zo? ?? [/b]" in ascii_only.decode("ascii")


@pytest.mark.parametrize("output", OUTPUTS)
async def test_programs_get_every_name_as_it_is(on: Stage, output: str) -> None:
    _, said, _ = await tell(on, "history", "--json", environ=OUTPUTS[output])

    names = [each["vm_name"] for each in json.loads(said.decode(ENCODINGS[output]))["records"]]
    assert NAME in names


@pytest.mark.parametrize("arguments", [["status"], ["history", "--json"], ["--version"]])
async def test_a_reader_that_has_gone_ends_the_command_without_a_word(
    on: Stage, arguments: list[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        code, _, complained = await tell(on, *arguments, stdout=writing)
    finally:
        os.close(writing)

    assert (code, complained) == (141, b"")


@pytest.mark.parametrize("arguments", [["status"], ["history", "--json"], ["run", JOB, "--wait"]])
async def test_an_output_that_is_full_is_told_in_a_sentence(
    on: Stage, arguments: list[str]
) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        code, _, complained = await tell(on, *arguments, stdout=full)
    finally:
        os.close(full)

    assert code == 1
    assert complained.decode().count("\n") == 1
    assert "cannot write the answer (No space left on device)" in complained.decode()


async def test_a_command_without_any_output_does_its_work(on: Stage) -> None:
    write(on.directory, POOLS + JOBS + "keep = 5\n")
    command = f'exec "{BIN}/xorepctl" "$@" >&- 2>&-'
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        command,
        "sh",
        "reload",
        env={"PATH": os.environ["PATH"], "XOREPD_SOCKET": str(on.socket)},
    )

    assert await process.wait() == 0
    assert [list(changes.jobs.changed) for changes in on.applied] == [[JOB]]


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_daemons_own_commands_refuse_in_a_sentence_on_any_output(
    tmp_path: Path, output: str
) -> None:
    (tmp_path / "xorepd.toml").write_text(POOLS + JOBS.replace("prod", "nöwhere\x9b🐙"))
    for arguments in (["run"], ["check"], ["relay", "check"], ["relay", "init", NAME]):
        config = [] if "init" in arguments else ["--config", "xorepd.toml"]
        done = subprocess.run(
            [BIN / "xorepd", *arguments, *config],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], **OUTPUTS[output]},
            capture_output=True,
            check=False,
        )
        complained = done.stderr.decode(ENCODINGS[output])

        assert done.returncode in (1, 78)
        assert complained.startswith("xorepd: ")
        assert not [c for c in complained if c != "\n" and unicodedata.category(c) == "Cc"]
