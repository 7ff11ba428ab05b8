"""Execute jobs: lend each run its pools, and hold the limits that all runs share."""

from __future__ import annotations

import socket
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from functools import partial

from xorepd.config.models import JobSettings, PoolSettings, Settings
from xorepd.config.secrets import read_password
from xorepd.control.protocol import PoolStatus
from xorepd.daemon.orphans import Orphans
from xorepd.data.memory_budget import MemoryBudget
from xorepd.data.nbd.reader import NbdConnectionLimit
from xorepd.errors import ConfigError, Refused, XorepdError
from xorepd.ids import PoolName, RunId
from xorepd.process.lending import Pools
from xorepd.replication.context.admission import Admission, pool_key
from xorepd.replication.context.board import Board
from xorepd.replication.context.lease import Leases
from xorepd.replication.context.reservations import Reservations
from xorepd.replication.context.shared_source import SourceVm
from xorepd.replication.format.claims import Owner
from xorepd.replication.run.jobs import Context, Report, run_job
from xorepd.state.maps import Maps
from xorepd.state.records import RunRecord
from xorepd.transports.base import Surroundings
from xorepd.transports.links import Links
from xorepd.transports.registry import open_inner, open_transport
from xorepd.xapi.pool import Pool


class Engine:
    """Executes jobs on the pools of the current configuration."""

    def __init__(
        self,
        settings: Settings,
        pools: Pools[Pool],
        clock: Callable[[], datetime],
        owner: Owner,
        maps: Maps | None = None,
    ) -> None:
        self.board = Board()
        self._settings = settings
        self._pools = pools
        self._clock = clock
        self._admission = Admission(settings.daemon.max_vms)
        self._room = Reservations()
        self._maps = maps
        self._leases = Leases(owner, settings.daemon.lease)
        self._nbd = NbdConnectionLimit()
        self.budget = MemoryBudget(settings.daemon.memory)
        self.links = Links()
        self._offered = self.links
        self._sources: defaultdict[str, SourceVm] = defaultdict(SourceVm)
        self.orphans = Orphans(
            lambda: self._settings,
            pools,
            board=self.board,
            admission=self._admission,
            leases=self._leases,
            sources=self._sources,
            clock=clock,
            maps=maps,
        )

    async def run(
        self, job: JobSettings, run_id: RunId, report: Report | None = None
    ) -> list[RunRecord]:
        """Execute a job once (`daemon.runs.JobRunner`)."""
        configured = self._settings.pools
        async with AsyncExitStack() as stack:
            pools, closed = dict[PoolName, Pool](), dict[PoolName, XorepdError]()
            for name in sorted({job.source, *(target.pool for target in job.targets)}):
                try:
                    lent = self._pools.lend(configured[name])
                    pools[name] = await stack.enter_async_context(lent)
                except (XorepdError, OSError) as error:
                    # Such as a missing CA file: the trouble of one target must not stop the others.
                    closed[name] = Refused(f"cannot open pool {name}: {error}")
                    if name == job.source:
                        raise closed[name] from error
            context = Context(
                pools=pools,
                closed=closed,
                board=self.board,
                admission=self._admission,
                clock=self._clock,
                leases=self._leases,
                reservations=self._room,
                nbd=self._nbd,
                budget=self.budget,
                links=self.links,
                maps=self._maps,
                sources=self._sources,
            )
            return await run_job(job, run_id, context, report)

    def pool_states(self) -> tuple[PoolStatus, ...]:
        """Return how fast the open pools answer, and how many VMs are in transfer."""
        states = []
        for name, pool in sorted(self._pools.open().items()):
            key = pool_key(name)
            limits = (pool.settings.max_vms, pool.pace.at_once)
            states.append(
                PoolStatus(
                    name=name,
                    latency_s=pool.pace.median_s,
                    is_slow=pool.pace.is_slow,
                    max_vms=min((each for each in limits if each is not None), default=None),
                    active_vms=self._admission.at_work(key),
                    waiting_vms=self._admission.waiting(key),
                    clock_ahead_s=pool.clock.offset,
                )
            )
        return tuple(states)

    def offer(self, links: Links) -> None:
        """Keep the links of a configuration that has passed its checks, for `adopt_links`."""
        self._offered = links

    def adopt_links(self) -> None:
        """Put the links that were offered last in force at once."""
        self.links.adopt(self._offered)

    def apply(self, settings: Settings) -> None:
        """Put a new configuration in force, for each job from its next run."""
        self._settings = settings
        self.adopt_links()
        self._pools.retain(settings.pools)
        self._leases.good_for = settings.daemon.lease
        self.budget.size = settings.daemon.memory
        self._admission.max_vms = settings.daemon.max_vms


@asynccontextmanager
async def open_engine(
    settings: Settings,
    clock: Callable[[], datetime],
    daemon_id: str | None = None,
    maps: Maps | None = None,
) -> AsyncIterator[Engine]:
    """Provide the engine while a block lasts. A pool is opened by the first run that needs it.

    Args:
        daemon_id: Id that holds the leases and outlives the process; default: a new one.
        maps: Fingerprint maps of the restore points; None if none are kept.
    """

    def open_pool(pool: PoolSettings) -> Pool:
        return Pool(pool, partial(read_password, pool, file=settings.file))

    async with Pools(open_pool) as pools:
        owner = Owner(daemon_id or str(uuid.uuid4()), socket.gethostname())
        yield Engine(settings, pools, clock, owner, maps)


def open_transports(
    settings: Settings, clock: Callable[[], datetime]
) -> tuple[Links, list[ConfigError]]:
    """Open the transport to every target once, so that a missing one fails at the start.

    Returns:
        The links that the transports share, and a problem for each transport that cannot be opened.
    """
    links, problems = Links(strict=True), list[ConfigError]()
    for job in settings.jobs.values():
        for index, target in enumerate(job.targets):
            surroundings = Surroundings(
                job=job.name,
                source=job.source,
                target=target.pool,
                links=links,
                clock=clock,
                opener=open_inner,
            )
            transport = job.transport_to(target)
            try:
                open_transport(transport.name, transport.options, surroundings)
            except Refused as error:
                place = "transport" if target.transport is None else f"targets[{index}].transport"
                key = f"jobs.{job.name}.{place}"
                problems.append(ConfigError(settings.file, key, str(error)))
    return links, problems
