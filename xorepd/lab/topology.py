"""What a lab consists of, before it exists: pools, hosts, SRs, networks, VMs."""

from dataclasses import dataclass, field

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@dataclass(frozen=True, slots=True)
class SrSpec:
    name: str
    type: str
    hosts: tuple[str, ...]
    """Names of the hosts that see it; more than one makes it shared."""
    size: int = TIB


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
class DiskSpec:
    name: str
    sr: str
    size: int
    content: FilesystemSpec | NoiseSpec | None = None


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
class PoolSpec:
    name: str
    hosts: tuple[str, ...]
    """The first is the master."""
    srs: tuple[SrSpec, ...]
    networks: tuple[str, ...]
    vms: tuple[VmSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    name: str
    pools: tuple[PoolSpec, ...]
    job: tuple[str, str, str, str] = field(default=("prod", "web01", "dr", "dr-storage"))
    """Source pool, VM, target pool and SR of the daemon configuration that `up` writes."""


def _two_pools(name: str, prod_vms: tuple[VmSpec, ...]) -> Topology:
    prod = PoolSpec(
        name="prod",
        hosts=("prod-h1", "prod-h2"),
        srs=(
            SrSpec("prod-shared", "nfs", ("prod-h1", "prod-h2")),
            SrSpec("prod-local", "ext", ("prod-h2",)),
        ),
        networks=("lan",),
        vms=prod_vms,
    )
    recovery = PoolSpec(
        name="dr",
        hosts=("dr-h1",),
        srs=(SrSpec("dr-storage", "ext", ("dr-h1",)),),
        networks=("lan", "dr-isolated"),
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
                DiskSpec("web01-data", "prod-shared", 8 * GIB, NoiseSpec(256 * MIB)),
            ),
            network="lan",
            mac=WEB_MAC,
            running_on="prod-h1",
        ),
    ),
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

TOPOLOGIES = {topology.name: topology for topology in (DEMO, SMALL)}
