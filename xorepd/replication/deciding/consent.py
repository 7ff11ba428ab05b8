"""Whether a run may send disks whole. Pure.

A full copy of terabytes over a thin line is sometimes worse than an older replica. An operator who
would rather be asked first says so with `full`. Every full has its reason already, and the refusal
repeats it.

Consent holds for a run and for the later run that continues it: a disk that was begun whole shows
that there was consent. If consent is missing, what was sent of other disks stays on the target
until the consent comes or the snapshot is too old (see `resume`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xorepd.config.choices import Fulls
from xorepd.config.models import JobSettings
from xorepd.errors import ConsentMissing
from xorepd.replication.deciding.modes import FullReason


def fulls_held(
    policy: Fulls, fulls: Mapping[str, FullReason], begun: Iterable[FullReason] = ()
) -> Mapping[str, FullReason]:
    """Return those of some fulls that need consent and have none.

    Args:
        fulls: Device of each disk that would be sent whole → why.
        begun: Why disks are sent whole that an interrupted run has begun and this one continues.
            They are not among `fulls`.
    """
    match policy:
        case Fulls.ALLOW:
            return {}
        case Fulls.ASK:
            if any(_needs_consent(why) for why in begun):
                return {}
            return {device: why for device, why in fulls.items() if _needs_consent(why)}
        case Fulls.NEVER:
            return fulls


def _needs_consent(why: FullReason) -> bool:
    """Return whether `ask` asks about a full: a first copy has to be sent whole anyway."""
    return why is not FullReason.FIRST_RUN


def refuse_held(job: JobSettings, vm: str, held: Mapping[str, FullReason]) -> None:
    """Hold a run whose plan needs consent.

    Args:
        vm: Name of the source VM, for the sentence.
        held: Device of each disk that would be sent whole → why.

    Raises:
        ConsentMissing: which disks would be sent whole, why, and how to allow it.
    """
    if not held:
        return
    remedy = f"let it once with `xorepctl run {job.name} --allow-full`"
    if job.full is Fulls.NEVER:
        remedy = f'set full = "ask" in job {job.name} if it may after all'
    disks = ", ".join(f"{device} ({why.value})" for device, why in held.items())
    whole = "disk" if len(held) == 1 else "disks"
    raise ConsentMissing(
        f"VM {vm}: {whole} {disks} would be sent whole, and job {job.name} has full = "
        f'"{job.full.value}"; {remedy}'
    )
