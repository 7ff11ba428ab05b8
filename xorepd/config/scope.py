"""The scope of a job: which VMs of its source pool, without which of their disks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from xorepd.config.choices import Empty, PowerState
from xorepd.config.fields import NOTHING, Table, Texts, freeze
from xorepd.config.names import is_pattern

PowerStates = Annotated[
    tuple[Annotated[PowerState, Field(strict=False)], ...], Field(strict=False, max_length=4)
]
DisksOfVms = Annotated[Mapping[str, Texts], AfterValidator(freeze)]


class Scope(Table):
    """The part of a job that selects VMs and disks."""

    vms: Texts = ()
    """UUIDs, exact names, or patterns of names with `*` and `?`, evaluated in each run."""
    tags: Texts = ()
    """VMs with one of these tags are replicated too."""
    exclude: Texts = ()
    """UUIDs, names or patterns of VMs that patterns and tags do not select."""
    exclude_tags: Texts = ()
    """Tags of VMs that patterns and tags do not select."""
    power_states: PowerStates = ()
    """Patterns and tags select only VMs in one of these states; absent: in any."""
    empty: Annotated[Empty, Field(strict=False)] = Empty.WARN
    """Whether a run fails when patterns and tags match no VM."""
    exclude_disks: DisksOfVms = Field(default_factory=lambda: NOTHING)
    """VM (UUID, name or pattern) → disks to exclude: UUIDs, device numbers, names or patterns.
    Disks with `[NOBAK]` in their name are always excluded, as in Xen Orchestra."""
    exclude_disk_tags: Texts = ()
    """Disks with one of these tags are excluded."""

    @property
    def named(self) -> tuple[str, ...]:
        """The VMs that `vms` names one by one."""
        return tuple(text for text in self.vms if not is_pattern(text))

    @property
    def found_by(self) -> str:
        """The patterns and tags that select VMs, for people; empty if there are none."""
        patterns = [text for text in self.vms if is_pattern(text)]
        return ", ".join(patterns + [f"tag {tag}" for tag in self.tags])

    @property
    def wanted(self) -> tuple[str, ...]:
        """The VMs that it names, and its patterns and tags, before any pool is asked."""
        return (*self.named, self.found_by) if self.found_by else self.named

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        if not self.vms and not self.tags:
            raise ValueError("names no VM; write vms or tags")
        if contradiction := next((vm for vm in self.named if vm in self.exclude), None):
            raise ValueError(f"has {contradiction!r} in vms and in exclude; remove it from one")
        return self
