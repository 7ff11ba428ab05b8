"""What happens in a sequence, decided before anything does. Pure: a seed always gives the same.

    options, then steps:  Deed Deed  Run  Deed  Run(killed at …)  Deed Deed  Run …  Run

A deed names a role, not an object: what stands for it is chosen when its turn comes, by its `salt`.
So a deed means the same when others before it are left out, and a sequence can be made shorter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random
from typing import Any

CHUNK = 1 << 20
"""Bytes of a stream that count as one request more."""


class Role(StrEnum):
    """What an object is to a job."""

    SOURCE = "source"
    """The source VM, its disks."""
    BASE = "base"
    """A snapshot of it that a run took."""
    REPLICA = "replica"
    POINT = "point"
    MEMORY = "memory"
    """A suspended VM beside a restore point, its disks, its memory."""
    STAGING = "staging"
    """A disk of ours on the target in no VM."""
    THEIRS = "theirs"
    """What people made."""


class Kind(StrEnum):
    VM = "VM"
    VDI = "VDI"
    POOL = "pool"


class End(StrEnum):
    """What becomes of a run at its moment."""

    WELL = "goes on"
    KILLED = "killed"
    FAILED = "fails"
    CUT = "loses the answer"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that people or other programs do to an object of a role."""

    name: str
    role: Role
    salt: int

    def __str__(self) -> str:
        return f"{self.name}({self.role})"


@dataclass(frozen=True, slots=True)
class Moment:
    """A request of a run: the fault that waits for it."""

    where: str
    match: str
    pool: str | None = None
    skip: int = 0
    changing: bool = True
    after: bool = False
    """It has been done, and the daemon was not told yet."""

    def __str__(self) -> str:
        what = "request" if self.where == "any" else f"{self.where} {self.match}"
        on = f" on {self.pool}" if self.pool else ""
        return f"{'after' if self.after else 'before'} its {self.skip + 1}th {what}{on}"

    def rule(self) -> dict[str, Any]:
        """Return the members of the fault."""
        rule: dict[str, Any] = {
            "where": self.where,
            "match": self.match,
            "pool": self.pool,
            "skip": self.skip,
            "changing": self.changing,
            "moment": "after" if self.after else "before",
        }
        return rule if self.after else rule | {"chunk": CHUNK}


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of the job, by a daemon that has just started."""

    moment: Moment | None = None
    end: End = End.WELL
    during: tuple[Deed, ...] = ()
    """What is done at the moment."""

    def __str__(self) -> str:
        if self.moment is None:
            return "run"
        during = f", meanwhile {', '.join(map(str, self.during))}" if self.during else ""
        return f"run, {self.end} {self.moment}{during}"


@dataclass(frozen=True, slots=True)
class Forget:
    """The operator removes the job and gives the stream up."""

    keeps_replica: bool = False

    def __str__(self) -> str:
        return "forget, and keep the replica" if self.keeps_replica else "forget"


Step = Deed | Run | Forget


@dataclass(frozen=True, slots=True)
class Options:
    """The job, and the pools."""

    job: Mapping[str, Any] = field(default_factory=dict)
    disks: int = 1
    """Of the source VM."""
    target: str = "dr"
    """Pool; in `prod` the replica stands beside its source."""
    nbd: bool = False
    maps: bool = False
    """The daemon's state directory survives its death."""
    seeded: bool = False
    """Xen Orchestra has replicated the VM before."""

    def __str__(self) -> str:
        facts = [f"{name} = {value!r}" for name, value in self.job.items()]
        facts += [f"{self.disks} disks", f"to {self.target}"]
        facts += [name for name in ("nbd", "maps", "seeded") if getattr(self, name)]
        return ", ".join(facts)


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    sequence: int
    options: Options
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, sequence {self.sequence}: {self.options}"]
        lines += [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join(lines)


# -- making one -----------------------------------------------------------------------------------

Table = Mapping[str, tuple[int, Sequence[Role]]]
"""Weight and roles of each deed, by its name."""

WEIGHTS = {
    Role.SOURCE: 3,
    Role.BASE: 3,
    Role.REPLICA: 5,
    Role.POINT: 5,
    Role.MEMORY: 1,
    Role.STAGING: 2,
    Role.THEIRS: 4,
}
"""How often a deed meets a role that it can meet."""

NAMED = (
    ("rpc", "VM.snapshot", "prod"),
    ("rpc", "VM.checkpoint", "prod"),
    ("rpc", "VM.clean_shutdown", "prod"),
    ("rpc", "VM.start", "prod"),
    ("rpc", "VM.snapshot", None),
    ("rpc", "VDI.clone", None),
    ("rpc", "VDI.create", None),
    ("rpc", "VM.create", None),
    ("rpc", "VBD.create", None),
    ("rpc", "VBD.destroy", None),
    ("rpc", "VM.destroy", None),
    ("rpc", "VDI.destroy", None),
    ("rpc", "VDI.data_destroy", None),
    ("rpc", "VDI.set_other_config", None),
    ("rpc", "VM.set_other_config", None),
    ("rpc", "VM.set_is_a_template", None),
    ("rpc", "VM.remove_from_other_config", None),
    ("rpc", "VDI.remove_from_other_config", None),
    ("import", "*", None),
    ("export", "*", None),
)
"""Requests after which, or before which, a run is at its most delicate."""

REPLACING = ("VDI.set_other_config", "VM.set_other_config")
"""Requests that replace what the one before has read. XAPI cannot compare and swap: what people do
between the two is undone. No person works in such milliseconds, so they do it afterwards."""

FORGOTTEN = 0.15
"""Part of the sequences that end with the job."""

LONGEST = 75
"""Requests of a run that change something, about."""


def make_plan(seed: int, sequence: int, table: Table) -> Plan:
    """Return what happens in one sequence of a seed."""
    rng = Random(f"{seed}/{sequence}")
    steps: list[Step] = [*_some(rng, table, (0, 0, 1, 2)), _run(rng, table)]
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        steps += _some(rng, table, (1, 2, 2, 3, 4))
        steps.append(_run(rng, table))
    steps += _some(rng, table, (0, 1, 1, 2, 3))
    steps.append(Run())
    if rng.random() < FORGOTTEN:
        steps += [*_some(rng, table, (0, 1)), Forget(rng.random() < 0.3)]
    return Plan(seed, sequence, _options(rng), tuple(steps))


def _options(rng: Random) -> Options:
    nbd = rng.random() < 0.5
    job: dict[str, Any] = {
        "keep": rng.choice((1, 1, 2)),
        "verify": rng.choice(("off", "sample", "full")),
        "resume": rng.choice(("0s", "1d")),
    }
    if rng.random() < 0.25:
        job["diverged"] = "replace"
    if nbd and rng.random() < 0.5:
        job["changed_blocks"] = "enable"
        if rng.random() < 0.5:
            job["base_data"] = "destroy"
    if (kind := rng.choice(("plain", "plain", "plain", "plain", "offline", "memory"))) != "plain":
        job["snapshot"] = kind
    return Options(
        job=job,
        disks=rng.choice((1, 1, 2)),
        target=rng.choice(("dr", "dr", "dr", "dr", "prod")),
        nbd=nbd,
        maps=rng.random() < 0.5,
        seeded=rng.random() < 0.15,
    )


def _some(rng: Random, table: Table, counts: Sequence[int]) -> list[Deed]:
    names = list(table)
    weights = [table[name][0] for name in names]
    return [_deed(rng, name, table) for name in rng.choices(names, weights, k=rng.choice(counts))]


def _deed(rng: Random, name: str, table: Table) -> Deed:
    roles = table[name][1]
    [role] = rng.choices(roles, [WEIGHTS[role] for role in roles])
    return Deed(name, role, rng.getrandbits(32))


def _run(rng: Random, table: Table) -> Run:
    if rng.random() < 0.25:
        return Run()
    if rng.random() < 0.5:
        where, match, pool = rng.choice(NAMED)
        moment = Moment(where, match, pool, rng.choice((0, 0, 0, 1, 2)), after=rng.random() < 0.5)
    else:
        moment = Moment("any", "*", None, rng.randrange(LONGEST), after=rng.random() < 0.5)
    end = rng.choice((End.WELL, End.WELL, End.WELL, End.KILLED, End.KILLED, *End))
    counts = (1, 1, 2) if end is End.WELL else (0, 0, 1)
    during = tuple(_some(rng, table, counts))
    if during and moment.match in REPLACING:
        moment = replace(moment, after=True)
    return Run(moment, end, during)


# -- making it shorter ----------------------------------------------------------------------------


def shorter(plan: Plan) -> Iterator[Plan]:
    """Yield plans with less to do, the ones with the least left first."""
    size = len(plan.steps) // 2
    while size:
        for start in range(0, len(plan.steps), size):
            yield replace(plan, steps=plan.steps[:start] + plan.steps[start + size :])
        size //= 2
    for number, step in enumerate(plan.steps):
        before, after = plan.steps[:number], plan.steps[number + 1 :]
        if isinstance(step, Run) and step.moment is not None:
            simpler = [Run()] if step.end is End.WELL else [replace(step, during=())]
            simpler += [
                replace(step, during=step.during[:place] + step.during[place + 1 :])
                for place in range(len(step.during))
            ]
            for other in simpler:
                if other != step:
                    yield replace(plan, steps=(*before, other, *after))
    defaults = {"keep": 1, "verify": "off", "resume": "0s"}
    for name in plan.options.job:
        job = {k: v for k, v in plan.options.job.items() if k != name}
        if name in defaults:
            job = dict(plan.options.job) | {name: defaults[name]}
        if job != plan.options.job:
            yield replace(plan, options=replace(plan.options, job=job))
    simplest: tuple[tuple[str, Any], ...] = (
        ("disks", 1), ("target", "dr"), ("nbd", False), ("maps", False), ("seeded", False),
    )  # fmt: skip
    for name, plain in simplest:
        if getattr(plan.options, name) != plain:
            yield replace(plan, options=replace(plan.options, **{name: plain}))
