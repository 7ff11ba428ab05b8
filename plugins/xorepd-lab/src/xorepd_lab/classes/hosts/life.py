"""The members of a pool as machines: power, toolstack, network, and which of them is master.

    UP ──restart of the toolstack──► DOWN ──► BOOTING ──► UP      BOOTING: HOST_STILL_BOOTING
    UP ──crash, shutdown──► OFF ──boot──► BOOTING ──► UP          a master skips it

All members share one database, which is the master's; it survives every master. Sessions and tasks
live in the master's memory and do not.

Source: xapi: ocaml/xapi/xapi.ml (server_init), xapi_pool_transition.ml, xapi_host.ml, db_gc.ml,
dbsync_slave.ml, scripts/xapi-autostart-vms; ocaml/idl/datamodel.ml (emergency_calls).
"""

from collections import Counter

from xorepd_lab.calls.call import Pool, State
from xorepd_lab.classes.hosts import database
from xorepd_lab.classes.hosts.host_guests import (
    autostart,
    disks_written_by,
    guests_of,
    reset_guests,
    restart_protected,
)
from xorepd_lab.classes.storage.attachments import deactivate
from xorepd_lab.classes.vm.power import halt
from xorepd_lab.model.failures import ApiError
from xorepd_lab.model.schema import words

HOST_BOOT_S = 120.0
TOOLSTACK_S = 10.0
"""From its end until a toolstack serves again. Order of magnitude; not measured."""
HELLO_S = 5.0
"""How often a member without a master tries again."""
FUSE_S = 10.0
"""From the answer to a call that ends a toolstack or host until it ends."""
RESTART_AGENT_S = 1.0
DEAD_AFTER_S = 600.0
"""Without heartbeats for so long, a host counts as dead."""
FENCED_AFTER_S = 60.0
"""The same with HA. It depends on the timeouts configured; not measured."""
MASTER_LOST_S = 120.0
"""Without its master for so long, a member's toolstack restarts and finds none."""
TRANSITION_PRIORITY = 4

EMERGENCY = set(
    words(
        "pool.emergency_reset_master pool.emergency_transition_to_master pool.is_slave"
        " session.slave_local_login session.slave_local_login_with_password session.local_logout"
        " host.is_in_emergency_mode host.shutdown_agent host.local_assert_healthy"
        " host.get_system_status_capabilities"
    )
)
"""What a member answers by itself, with or without a master."""


class Life:
    """What the members of one pool are doing."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._states: dict[str, State] = {}
        self._isolated: set[str] = set()
        self._follows: dict[str, str] = {}
        """Masters of the past whom members still hold for theirs."""
        self._ended: Counter[str] = Counter()
        self._turns: Counter[str] = Counter()
        """Counts what happened to each host: who waits for long sees whether that still holds."""

    # -- what others ask ------------------------------------------------------------------------

    def state(self, host: str) -> State:
        return self._states.get(host, State.UP)

    def has_power(self, host: str) -> bool:
        return self.state(host) is not State.OFF

    def serves(self) -> bool:
        """Say whether the master answers calls."""
        master = self._pool.master
        return self.state(master) is State.UP and self._pool.frontages[master].listening

    def can_call(self, host: str) -> bool:
        """Say whether what runs in a host's control domain can make calls now."""
        pair = {host, self._pool.master}
        return all(self.state(each) is State.UP for each in pair) and (
            len(pair) == 1 or not pair & self._isolated
        )

    def toolstack(self, host: str) -> int:
        """Return which toolstack of a host runs: a number that is another one after each end."""
        return self._ended[host]

    def runs(self, vm: str) -> bool:
        """Say whether a VM runs, whatever its record says when its host is dead."""
        record = self._pool.db.record("VM", vm)
        return record["power_state"] == "Running" and self.has_power(record["resident_on"])

    def is_live(self, host: str) -> bool:
        """Say whether the master believes that the host lives."""
        db = self._pool.db
        metrics = db.get("host", host, "metrics")
        return not db.exists("host_metrics", metrics) or bool(
            db.get("host_metrics", metrics, "live")
        )

    def admit(self, host: str, method: str) -> None:
        """Raise what a member answers instead of executing a call.

        Raises:
            ApiError: HOST_STILL_BOOTING, or HOST_IS_SLAVE with the address of its master.
        """
        if method in EMERGENCY:
            return
        if self.state(host) is not State.UP:
            raise ApiError("HOST_STILL_BOOTING")
        master = self._pool.master
        if host != master:
            raise ApiError("HOST_IS_SLAVE", self._pool.address(self._follows.get(host, master)))

    def check_reachable(self, host: str) -> None:
        """Raise what the master answers when it has to ask a host that is not there.

        Raises:
            ApiError: HOST_OFFLINE when it knows, CANNOT_CONTACT_HOST when it finds out.
        """
        if not self.is_live(host):
            raise ApiError("HOST_OFFLINE", host)
        if self.state(host) in (State.OFF, State.DOWN) or host in self._isolated:
            raise ApiError("CANNOT_CONTACT_HOST", host)

    def all_up(self) -> None:
        """Let every member be up, as when a lab resumes that was left with one dead."""
        db = self._pool.db
        for host in db.refs("host"):
            if not self.is_live(host):
                self._set_live(host, live=True)
                reset_guests(self._pool, host)
                db.set("host", host, enabled=True, current_operations={})

    # -- power ----------------------------------------------------------------------------------

    async def crash(self, host: str) -> None:
        """Cut the power: whatever ran there is gone, and nobody has noticed yet."""
        if not self.has_power(host):
            return
        turn = self._turn(host)
        self._end(host, State.OFF, streams=True)
        pool = self._pool
        await pool.storage.unclean_stop(disks_written_by(pool.db, host))
        pool.spawn(self._notice_death(host, turn), "heartbeat")

    async def restart(self, host: str) -> None:
        """Boot a host that is off; one that is not loses its power first."""
        await self.crash(host)
        turn = self._turn(host)
        await self._pool.clock.nap(HOST_BOOT_S)
        if turn == self._turns[host]:
            await self._boot(host, turn)

    async def stop(self, host: str, again: bool) -> None:
        """Shut a host down in good order, some time from now; boot it again if told so."""
        pool = self._pool
        await pool.clock.nap(FUSE_S)
        for vm in guests_of(pool.db, host):
            halt(pool.internal_call(), vm)
        turn = self._turn(host)
        self._end(host, State.OFF, streams=True)
        pool.db.set("host", host, current_operations={})
        if host != pool.master:
            self._set_live(host, live=False)
        if again:
            await pool.clock.nap(HOST_BOOT_S)
            if turn == self._turns[host]:
                await self._boot(host, turn)

    async def _boot(self, host: str, turn: int) -> None:
        pool, db = self._pool, self._pool.db
        if not await self._join(host, turn):
            return
        for vbd in db.get("VM", db.get("host", host, "control_domain"), "VBDs"):
            vdi = db.get("VBD", vbd, "VDI")
            db.destroy("VBD", vbd)
            deactivate(pool, vdi)
            if db.exists("VDI", vdi):
                pool.operations.refresh("VDI", vdi)
        reset_guests(self._pool, host)
        db.set("host", host, enabled=True, current_operations={})
        pool.spawn(autostart(pool), "autostart")

    async def _join(self, host: str, turn: int) -> bool:
        """Start a host's toolstack: let it serve as master, or find the master first.

        Returns:
            False when something else happened to the host meanwhile.
        """
        pool = self._pool
        if host != pool.master:
            self._states[host] = State.BOOTING
            await self._open(host)
            await pool.clock.nap(HELLO_S)
            while not self._finds_master(host):
                await pool.clock.nap(HELLO_S)
                if turn != self._turns[host]:
                    return False
        if turn != self._turns[host]:
            return False
        self._states[host] = State.UP
        self._set_live(host, live=True)
        await self._open(host)
        return True

    def _finds_master(self, host: str) -> bool:
        """Say whether the host that a member holds for its master answers, and is one."""
        master = self._pool.master
        return (
            self._follows.get(host, master) == master
            and self.state(master) is State.UP
            and master not in self._isolated
        )

    # -- toolstack ------------------------------------------------------------------------------

    async def restart_toolstack(self, host: str) -> None:
        """Restart a host's toolstack: the master's forgets all sessions, tasks and calls."""
        if not self.has_power(host):
            return
        turn = self._turn(host)
        self._end(host, State.DOWN, streams=False)
        await self._pool.clock.nap(TOOLSTACK_S)
        if turn == self._turns[host]:
            await self._join(host, turn)

    async def roll_back(self, saved: str) -> None:
        """Kill the master's toolstack and let it come back with a database of before."""
        host = self._pool.master
        if not self.has_power(host):
            return
        turn = self._turn(host)
        self._end(host, State.DOWN, streams=False)
        await self._pool.clock.nap(TOOLSTACK_S)
        if turn != self._turns[host]:
            return
        await database.restore(self._pool, saved)
        for member in self._pool.db.refs("host"):
            self._set_live(member, live=self.has_power(member) and member not in self._isolated)
        await self._join(host, turn)

    async def restart_agent(self, host: str, after_s: float = RESTART_AGENT_S) -> None:
        await self._pool.clock.nap(after_s)
        await self.restart_toolstack(host)

    # -- master ---------------------------------------------------------------------------------

    async def change_master(self, host: str, after_s: float = 0.0) -> None:
        """Hand the role over in good order; every toolstack of the pool restarts."""
        pool = self._pool
        if after_s:
            await pool.clock.nap(after_s)
        if host == pool.master or not self.has_power(host):
            return
        members = [ref for ref in pool.db.refs("host") if self.has_power(ref)]
        turns = {member: self._turn(member) for member in members}
        for member in members:
            self._end(member, State.DOWN, streams=False)
        self._crown(host)
        await pool.clock.nap(TOOLSTACK_S)
        for member in sorted(members, key=lambda ref: ref != host):
            if turns[member] == self._turns[member]:
                await self._join(member, turns[member])

    async def seize(self, host: str, after_s: float = 0.0) -> None:
        """Make a member the master without asking anybody; the others do not know of it.

        A master that is up all the same restarts as a member: the lab has no pools with two heads.
        """
        pool, old = self._pool, self._pool.master
        if after_s:
            await pool.clock.nap(after_s)
        if host == pool.master:
            return
        turn = self._turn(host)
        self._end(host, State.DOWN, streams=False)
        if self.has_power(old):
            self._end(old, State.DOWN, streams=False)
        self._crown(host)
        self._follows = {ref: old for ref in pool.db.refs("host") if ref not in (host, old)}
        await pool.clock.nap(TOOLSTACK_S)
        if turn == self._turns[host]:
            await self._join(host, turn)
            if self.state(old) is State.DOWN:
                await self._join(old, self._turn(old))

    async def recover_members(self) -> list[str]:
        """Point members at the present master; return those that listened."""
        pool = self._pool
        found = [
            host
            for host in pool.db.refs("host")
            if host != pool.master
            and host not in self._isolated
            and (host in self._follows or self.state(host) is State.BOOTING)
        ]
        for host in found:
            self._follows.pop(host, None)
            pool.spawn(self._rejoin(host), "rejoin")
        return found

    async def follow(self, host: str, address: str, after_s: float = 0.0) -> None:
        """Point one member at a master by its address, as `emergency_reset_master` does."""
        pool = self._pool
        if after_s:
            await pool.clock.nap(after_s)
        for other in pool.db.refs("host"):
            if pool.address(other) == address:
                self._follows[host] = other
                await self.restart_toolstack(host)

    async def _rejoin(self, host: str) -> None:
        await self._join(host, self._turn(host))

    def _crown(self, host: str) -> None:
        pool, db = self._pool, self._pool.db
        self._forget()
        db.set("pool", next(db.select("pool")), master=host)
        self._follows.clear()
        db.create(
            "message",
            name="POOL_MASTER_TRANSITION",
            priority=TRANSITION_PRIORITY,
            cls="Host",
            obj_uuid=db.get("host", host, "uuid"),
            timestamp=pool.clock.now(),
        )

    # -- network --------------------------------------------------------------------------------

    def isolate(self, host: str) -> None:
        """Let nobody reach a host; its VMs go on, and its heartbeats get lost."""
        self._isolated.add(host)
        frontage = self._pool.frontages[host]
        frontage.close()
        frontage.cut(streams=True)
        self._pool.spawn(self._notice_death(host, self._turn(host)), "heartbeat")

    async def reconnect(self, host: str) -> None:
        self._isolated.discard(host)
        self._turn(host)
        if self.state(host) is State.UP:
            await self._open(host)
            self._set_live(host, live=True)
        elif self.state(host) is State.BOOTING:
            await self._rejoin(host)

    async def set_https_only(self, host: str, value: bool) -> None:
        """Close the port without TLS to everybody outside, or open it."""
        self._pool.db.set("host", host, https_only=value)
        await self._pool.frontages[host].set_plain(not value)

    # -- inside ---------------------------------------------------------------------------------

    def _turn(self, host: str) -> int:
        self._turns[host] += 1
        return self._turns[host]

    def _end(self, host: str, state: State, streams: bool) -> None:
        """End a host's toolstack, and with it what only lives in its memory."""
        self._states[host] = state
        self._ended[host] += 1
        frontage = self._pool.frontages[host]
        frontage.close()
        frontage.cut(streams)
        if host == self._pool.master:
            self._forget()

    def _forget(self) -> None:
        self._pool.cancel_calls()
        self._pool.restart_toolstack()

    async def _open(self, host: str) -> None:
        if host not in self._isolated:
            await self._pool.frontages[host].open()

    def _set_live(self, host: str, live: bool) -> None:
        db = self._pool.db
        metrics = db.get("host", host, "metrics")
        if db.exists("host_metrics", metrics):
            db.set("host_metrics", metrics, live=live, last_updated=self._pool.clock.now())

    async def _notice_death(self, host: str, turn: int) -> None:
        """Draw the conclusions from a host's silence, when it has lasted long enough."""
        pool, db = self._pool, self._pool.db
        was_master = host == pool.master
        protected = bool(db.get("pool", next(db.select("pool")), "ha_enabled"))
        if protected:
            await pool.clock.nap(FENCED_AFTER_S)
        else:
            await pool.clock.nap(MASTER_LOST_S if was_master else DEAD_AFTER_S)
        if turn != self._turns[host]:
            return
        if protected and self.has_power(host):
            # With HA, who lost the others resets itself: two hosts must not run one VM.
            self._end(host, State.OFF, streams=True)
        if was_master and not await self._lose_master(protected):
            return
        self._set_live(host, live=False)
        if protected:
            reset_guests(self._pool, host)
            await restart_protected(pool)

    async def _lose_master(self, protected: bool) -> bool:
        """Let the members do without their master; say whether there is a new one."""
        pool = self._pool
        others = [
            ref
            for ref in pool.db.refs("host")
            if ref != pool.master and self.has_power(ref) and ref not in self._isolated
        ]
        if protected and others:
            await self.seize(others[0])
            await self.recover_members()
            return True
        for host in others:
            if self.state(host) is State.UP:
                self._end(host, State.BOOTING, streams=False)
                await self._open(host)
                pool.spawn(self._rejoin(host), "rejoin")
        return False
