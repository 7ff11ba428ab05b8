"""What must hold between the parts of a configuration, once each part is right by itself."""

from __future__ import annotations

from xorepd.config.explain import Explainer
from xorepd.config.fields import nearest
from xorepd.config.models import JobSettings, Settings


def check_references(settings: Settings, explainer: Explainer) -> None:
    """Refuse jobs that name unknown pools, or that would write the same replica.

    Raises:
        ConfigError: the first contradiction, in the order of the file.
    """
    replicas: dict[tuple[str, str, str, str], JobSettings] = {}
    ids: dict[str, JobSettings] = {}
    for name, job in settings.jobs.items():
        for loc, pool in (
            (("jobs", name, "source"), job.source),
            (("jobs", name, "target", "pool"), job.target.pool),
        ):
            if pool not in settings.pools:
                hint = nearest(pool, settings.pools) or f"add a table [pools.{pool}]"
                raise explainer.error(loc, "there is no such pool", value=pool, hint=hint)

        twin = ids.setdefault(job.id, job)
        if twin is not job:
            raise explainer.error(
                ("jobs", name, "id"), f"job {twin.name} has the same id", value=job.id
            )

        for vm in job.vms:
            rival = replicas.setdefault((job.source, vm, job.target.pool, job.target.sr), job)
            if rival is not job:
                raise explainer.error(
                    ("jobs", name, "vms"),
                    f"job {rival.name} replicates {vm!r} to the same storage repository",
                    hint="a VM has one replica per storage repository; remove it from one job",
                )
