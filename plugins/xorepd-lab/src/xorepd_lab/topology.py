"""What a lab consists of, before it exists: pools, hosts, SRs, networks, VMs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@dataclass(frozen=True, slots=True)
class SrSpec:
    name: str
    type: str
    """One of `kinds.KINDS`."""
    hosts: tuple[str, ...]
    """Names of the hosts that see it; more than one makes it shared."""
    size: int = TIB
    sm_config: Mapping[str, str] = field(default_factory=dict)
    """Beside what its kind puts there: `allocation=thin`, or `use_vhd=false`."""
    isos: tuple[str, ...] = ()
    """Names of the images that lie on an SR of type `iso`."""


@dataclass(frozen=True, slots=True)
class FilesystemSpec:
    """An ext4 file system from the disk's beginning, with text files in it."""

    size: int
    files: int
    file_size: int


@dataclass(frozen=True, slots=True)
class NoiseSpec:
    """Random bytes in a few places, `total` in all."""

    total: int


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What a sparse raw image holds, from the disk's beginning; it may be removed afterwards."""

    path: Path


@dataclass(frozen=True, slots=True)
class DiskSpec:
    name: str
    sr: str
    size: int
    content: FilesystemSpec | NoiseSpec | ImageSpec | None = None


@dataclass(frozen=True, slots=True)
class VmSpec:
    name: str
    disks: tuple[DiskSpec, ...]
    network: str
    mac: str
    running_on: str | None = None
    memory: int = 2 * GIB
    vcpus: int = 2
    cd_drive: bool = True


@dataclass(frozen=True, slots=True)
class AccountSpec:
    """A user of the directory service. Its password is made with the lab."""

    name: str
    role: str
    """`pool-admin` … `read-only`; "" for none, who cannot log in."""


@dataclass(frozen=True, slots=True)
class PoolSpec:
    name: str
    hosts: tuple[str, ...]
    """The first is the master."""
    srs: tuple[SrSpec, ...]
    networks: tuple[str, ...]
    vms: tuple[VmSpec, ...] = ()
    accounts: tuple[AccountSpec, ...] = ()
    """Who may log in beside root."""
    release: Literal["8.3", "26", "newer"] = "8.3"
    """What the pool runs: XCP-ng 8.3, or xapi 26.17; `newer` is an older name of the latter."""
    nbd: Literal["", "nbd", "insecure_nbd"] = ""
    """Purpose of the first network, which is the management network; hosts come without one."""
    network: str = ""
    """Such as `10.1.2`: its hosts are 10.1.2.1 and so on, addresses that the machine has to have.
    Without it they are loopback addresses, which other labs are likely not to have."""


@dataclass(frozen=True, slots=True)
class Topology:
    name: str
    pools: tuple[PoolSpec, ...]
    job: tuple[str, str, str, str] = field(default=("prod", "web01", "dr", "dr-storage"))
    """Source pool, VM, target pool and SR of the daemon configuration that `up` writes."""


def _two_pools(
    name: str, prod_vms: tuple[VmSpec, ...], nbd: Literal["", "nbd", "insecure_nbd"] = ""
) -> Topology:
    prod = PoolSpec(
        name="prod",
        hosts=("prod-h1", "prod-h2"),
        srs=(
            SrSpec("prod-shared", "nfs", ("prod-h1", "prod-h2")),
            SrSpec("prod-local", "ext", ("prod-h2",)),
        ),
        networks=("lan",),
        vms=prod_vms,
        nbd=nbd,
    )
    recovery = PoolSpec(
        name="dr",
        hosts=("dr-h1",),
        srs=(SrSpec("dr-storage", "ext", ("dr-h1",)),),
        networks=("lan", "dr-isolated"),
        nbd=nbd,
    )
    return Topology(name, (prod, recovery))


WEB_MAC = "02:16:3e:5e:6c:01"

DEMO = _two_pools(
    "demo",
    (
        VmSpec(
            "web01",
            disks=(
                DiskSpec(
                    "web01-root",
                    "prod-shared",
                    512 * MIB,
                    FilesystemSpec(512 * MIB, files=60, file_size=512 * KIB),
                ),
                DiskSpec("web01-data", "prod-shared", 2 * GIB, NoiseSpec(96 * MIB)),
            ),
            network="lan",
            mac=WEB_MAC,
            running_on="prod-h1",
        ),
    ),
    nbd="nbd",
)

SMALL = _two_pools(
    "small",
    (
        VmSpec(
            "web01",
            disks=(
                DiskSpec(
                    "web01-root",
                    "prod-shared",
                    64 * MIB,
                    FilesystemSpec(32 * MIB, files=6, file_size=64 * KIB),
                ),
                DiskSpec("web01-data", "prod-shared", 32 * MIB, NoiseSpec(4 * MIB)),
            ),
            network="lan",
            mac=WEB_MAC,
            running_on="prod-h1",
        ),
        VmSpec(
            "db01",
            disks=(DiskSpec("db01-data", "prod-local", 16 * MIB, NoiseSpec(2 * MIB)),),
            network="lan",
            mac="02:16:3e:5e:6c:02",
        ),
    ),
)


def _large(vms: int) -> Topology:
    """Return one pool with many VMs of two disks each, every tenth of them running."""
    hosts = ("big-h1", "big-h2")
    guests = tuple(
        VmSpec(
            f"vm{number:04}",
            disks=tuple(
                DiskSpec(f"vm{number:04}-{role}", "big-shared", 8 * GIB)
                for role in ("root", "data")
            ),
            network="lan",
            mac=f"02:16:3e:00:{number // 256:02x}:{number % 256:02x}",
            running_on=hosts[number // 10 % 2] if number % 10 == 0 else None,
        )
        for number in range(vms)
    )
    pool = PoolSpec(
        "big", hosts, (SrSpec("big-shared", "nfs", hosts, size=64 * TIB),), ("lan",), guests
    )
    return Topology("large", (pool,), job=("big", "vm0000", "big", "big-shared"))


LARGE = _large(1000)

TOPOLOGIES = {topology.name: topology for topology in (DEMO, SMALL, LARGE)}
