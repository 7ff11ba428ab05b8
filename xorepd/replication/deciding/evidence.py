"""What a plan is made from: what is known of a VM's disks, and what the job wants. Pure.

Most of it comes from the records of both pools. Two things cost calls or reading, so they are asked
only if a plan depends on them (see `plan`): what the source offers against a base, and whether a
copy of other software holds what it says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from xorepd.config.choices import Fulls
from xorepd.config.models import JobSettings, Verify
from xorepd.replication.deciding.reader_choice import Facts
from xorepd.replication.deciding.resume import Begun, Leftover
from xorepd.replication.format.evidence import RestorePoint, SourceBase
from xorepd.replication.format.foreign import Copy
from xorepd.replication.format.inventory import SourceSide, TargetSide, VmSnapshot


@dataclass(frozen=True, slots=True)
class SourceDisk:
    """A disk of the source VM, to be replicated."""

    uuid: str
    device: str
    name: str
    virtual_size: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a VM's disks."""

    disks: tuple[SourceDisk, ...]
    """Disks of the snapshot that is sent; before there is one, disks of the VM."""
    points: tuple[RestorePoint, ...] = ()
    """Restore points of this VM on the target SR, newest first."""
    bases: tuple[SourceBase, ...] = ()
    """Snapshots of the source VM's disks."""
    present: Collection[str] = ()
    """UUIDs of the disks that the source VM has now."""
    excluded: Collection[str] = ()
    """UUIDs of its disks that stay behind."""
    copies: tuple[Copy, ...] = ()
    """What other software copied to the target SR, best first."""
    begun: Mapping[str, Begun] = field(default_factory=dict)
    """UUID of a source disk → what an interrupted run has sent of it."""
    offers: Mapping[tuple[str, str], Facts] = field(default_factory=dict)
    """UUIDs of a source disk and of a base → what the source offers for the disk against the base,
    as far as it has been asked."""
    samples: Mapping[str, bool] = field(default_factory=dict)
    """UUID of a copy of other software → whether a sample of it is equal to its base,
    as far as they have been compared."""

    def of_snapshot(self, snapshot: VmSnapshot) -> Evidence:
        """Return the evidence for the disks of the snapshot that is sent.

        Excluded disks are left out, even if the host could not leave them out of the snapshot.
        """
        disks = tuple(
            SourceDisk(disk.mark.disk, disk.mark.device, disk.vdi.name_label, disk.vdi.virtual_size)
            for disk in snapshot.disks
            if disk.mark.disk not in self.excluded
        )
        return replace(self, disks=disks)

    def with_offer(self, disk: str, base: str, facts: Facts) -> Evidence:
        return replace(self, offers={**self.offers, (disk, base): facts})

    def with_sample(self, onto: str, is_equal: bool) -> Evidence:
        return replace(self, samples={**self.samples, onto: is_equal})


def read_evidence(
    source: SourceSide,
    target: TargetSide,
    copies: Collection[Copy] = (),
    leftover: Leftover | None = None,
) -> Evidence:
    """Return what the records of both pools tell, before the snapshot that is sent.

    Args:
        copies: of other software, best first.
        leftover: what an interrupted run left, if this run continues it.
    """
    disks = (
        SourceDisk(vdi.uuid, vbd.userdevice, vdi.name_label, vdi.virtual_size)
        for vbd, vdi in source.disks
    )
    evidence = Evidence(
        disks=tuple(disks),
        points=tuple(target.plan_points()),
        bases=tuple(source.bases()),
        present=frozenset(vdi.uuid for _, vdi in source.disks),
        excluded=frozenset(disk.vdi.uuid for disk in source.excluded),
        copies=tuple(copies),
    )
    if leftover is None:
        return evidence
    begun = {
        disk.mark.disk: leftover.disks[disk.mark.snapshot]
        for disk in leftover.snapshot.disks
        if disk.mark.snapshot in leftover.disks
    }
    return replace(evidence.of_snapshot(leftover.snapshot), begun=begun)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a job allows and wants."""

    full: Fulls = Fulls.ALLOW
    full_every: int | None = None
    """Deltas after which a disk is sent whole all the same."""
    resync: bool = True
    """Whether a full may be avoided by reading both sides."""
    believes_copies: bool = True
    """Whether a copy of other software can be a base without a comparison of all of it."""

    @staticmethod
    def of(job: JobSettings) -> Policy:
        return Policy(job.full, job.full_every, job.resync, job.verify is not Verify.FULL)
