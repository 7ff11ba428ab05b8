"""Checks across the parts of a configuration, after each part is valid by itself."""

from __future__ import annotations

from itertools import product

from xorepd.config.explain import Explainer, Loc
from xorepd.config.fields import nearest
from xorepd.config.models import JobSettings, Settings


def check_references(settings: Settings, pools: object, explainer: Explainer) -> None:
    """Note jobs that name unknown pools, or that would write the same replica.

    Args:
        settings: The valid part of the configuration.
        pools: The table of the pools as written, including invalid ones.
    """
    written = set(pools) if isinstance(pools, dict) else set[str]()
    replicas: dict[tuple[str, str, str, str], JobSettings] = {}
    ids: dict[str, JobSettings] = {}
    for name, job in settings.jobs.items():
        places: list[tuple[Loc, str]] = [(("jobs", name, "source"), job.source)]
        for index, target in enumerate(job.targets):
            places.append((("jobs", name, "targets", index, "pool"), target.pool))
        for loc, pool in places:
            if pool not in written and not explainer.is_wrong(loc):
                hint = nearest(pool, written) or f"add a table [pools.{pool}]"
                explainer.note(loc, "there is no such pool", value=pool, hint=hint)

        twin = ids.setdefault(job.id, job)
        if twin is not job:
            explainer.note(("jobs", name, "id"), f"job {twin.name} has the same id", value=job.id)

        for vm, target in product(job.vms, job.targets):
            rival = replicas.setdefault((job.source, vm, target.pool, target.sr), job)
            if rival is not job:
                explainer.note(
                    ("jobs", name, "vms"),
                    f"job {rival.name} replicates {vm!r} to the same storage repository",
                    hint="a VM has one replica per storage repository; remove it from one job",
                )
