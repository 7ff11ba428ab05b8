"""Whether a run may send disks whole. Pure.

A full copy of terabytes over a thin line is sometimes worse than an older replica; who would rather
be asked first says so with `full`. Every full has its reason already, and the refusal repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping

from xorepd.config.choices import Fulls
from xorepd.config.models import JobSettings
from xorepd.errors import Refused
from xorepd.replication.plan import FullReason


def check_fulls(job: JobSettings, vm: str, fulls: Mapping[str, FullReason]) -> None:
    """Hold a run that would send disks whole and must not.

    Args:
        vm: Name of the source VM, for the sentence.
        fulls: Device of each disk that would be sent whole → why.

    Raises:
        Refused: what would be sent, why, and what lets it.
    """
    held: dict[str, FullReason]
    match job.full:
        case Fulls.ALLOW:
            return
        case Fulls.ASK:
            held = {dev: why for dev, why in fulls.items() if why is not FullReason.FIRST_RUN}
            remedy = f"let it once with `xorepctl run {job.name} --allow-full`"
        case Fulls.NEVER:
            held = dict(fulls)
            remedy = f'set full = "ask" in job {job.name} if it may after all'
    if held:
        disks = ", ".join(f"{device} ({why.value})" for device, why in held.items())
        whole = "disk" if len(held) == 1 else "disks"
        raise Refused(
            f"VM {vm}: {whole} {disks} would be sent whole, and job {job.name} has full = "
            f'"{job.full.value}"; {remedy}'
        )
