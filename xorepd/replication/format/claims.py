"""Which daemon may replicate a VM to an SR: claims in the SR's `other_config`. Pure.

XAPI cannot compare and swap, but adding a key that exists fails. So a daemon never changes or
removes a key that another one may rely on: each taking and each renewal adds a key of its own,

    XenCenter.CustomFields.xorepd-lease/<source pool>/<VM>/<epoch>.<n>

A daemon that has added a key reads again before it relies on it: of two that add, the later one
sees the earlier one. The epoch grows with each taking, `n` with each renewal.

    taking     no live claim of others ─► add <epoch>.0 ─► read: still none of others ─► held
    renewal    add <epoch>.<n+1> ─► read: none of a higher epoch ─► remove <epoch>.<n>
    release    remove <epoch>.<n>

The prefix is XenCenter's, because XAPI lets every account from vm-operator up write such keys of an
SR, and other keys only from pool-operator up (xapi: ocaml/idl/datamodel.ml, map_keys_roles).

A claim ends by the clock of the pool. That clock may be set, or another host may become master. So
a daemon that wants to take over must also see the claim unchanged, by its own clock, for as long as
the claim is good for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from xorepd.replication.format.marks import ReplicaKey

PREFIX = "XenCenter.CustomFields.xorepd-lease/"
VERSION = 1

LONGEST_S = 3600.0
"""No claim is good for longer, whatever it says. Claims that cannot be read are good for this."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A daemon that holds a claim."""

    id: str
    """Kept in the state directory, so that a daemon which crashed knows its own claims."""
    host: str
    """Where it runs, for people."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One key, as it was read."""

    key: str
    epoch: int
    number: int
    owner: str
    """Empty where the claim cannot be read."""
    host: str
    run: str
    until: datetime | None
    """By the clock of the target pool; None where the claim cannot be read."""
    good_for: float
    """Seconds from its writing to its end."""

    def ends_by(self, now: datetime) -> bool:
        """Return whether the pool's clock says that it has ended.

        One that lasts longer than it can was written before that clock was set back.
        """
        if self.until is None:
            return False
        left = (self.until - now).total_seconds()
        return left <= 0 or left > self.good_for + 1  # XAPI tells whole seconds


@dataclass(frozen=True, slots=True)
class Free:
    """No other daemon holds it: take it with this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Another daemon holds it."""

    by: Claim


@dataclass(frozen=True, slots=True)
class Ending:
    """It has ended by the pool's clock, but has not been watched for long enough."""

    claim: Claim
    left_s: float


def key_of(stream: ReplicaKey, epoch: int, number: int) -> str:
    return f"{_prefix(stream)}{epoch}.{number}"


def encode(owner: Owner, run: str, now: datetime, good_for: float) -> str:
    """Return the value of a claim that begins now."""
    plain = {
        "v": VERSION,
        "owner": owner.id,
        "host": owner.host,
        "run": run,
        "until": (now + timedelta(seconds=good_for)).isoformat(),
        "for": good_for,
    }
    return json.dumps(plain, separators=(",", ":"))


def claims_on(other_config: Mapping[str, str], stream: ReplicaKey) -> tuple[Claim, ...]:
    """Return the claims to a stream, the newest first, those that cannot be read included."""
    prefix = _prefix(stream)
    found = [
        _decode(key, key.removeprefix(prefix), value)
        for key, value in other_config.items()
        if key.startswith(prefix)
    ]
    return tuple(sorted(found, key=lambda claim: (claim.epoch, claim.number), reverse=True))


def decide(
    claims: Iterable[Claim], owner: Owner, now: datetime, watched_s: Mapping[str, float]
) -> Free | Taken | Ending:
    """Return whether a stream can be taken.

    Args:
        claims: as `claims_on` returns them.
        owner: the daemon that wants it. Its own claims are left over from a run that did not
            end properly: the lock of the state directory keeps a second process from having the
            same id.
        now: by the clock of the target pool.
        watched_s: for how long we have seen each key, by a clock of our own.
    """
    claims = list(claims)
    rivals = [claim for claim in claims if claim.owner != owner.id]
    for rival in rivals:
        if rival.until is None and watched_s.get(rival.key, 0.0) >= LONGEST_S:
            continue
        if not rival.ends_by(now):
            return Taken(rival)
    for rival in rivals:
        left = rival.good_for - watched_s.get(rival.key, 0.0)
        if left > 0:
            return Ending(rival, left)
    # Counted in seconds of the pool's clock, it grows even when nothing is left of the last one.
    return Free(max([int(now.timestamp()), *(claim.epoch + 1 for claim in claims)]))


def rival_of(
    claims: Iterable[Claim], mine: Claim | None, epoch: int, owner: Owner, beaten: Iterable[str]
) -> Claim | None:
    """Return the claim that comes before a claim that was just written, if there is one.

    Args:
        claims: read after the writing.
        mine: the claim that the new one renews; None for a taking. While it stood without a break,
            a claim of a lower epoch came later; its daemon sees ours and withdraws.
        epoch: of the new claim.
        owner: the daemon that wrote it.
        beaten: keys of claims that were found ended before.
    """
    claims, known = list(claims), set(beaten)
    unbroken = mine is not None and any(claim.key == mine.key for claim in claims)
    for claim in claims:
        if claim.owner == owner.id and claim.epoch <= epoch:
            continue
        if claim.key in known or (unbroken and claim.epoch < epoch):
            continue
        return claim
    return None


def _prefix(stream: ReplicaKey) -> str:
    return f"{PREFIX}{stream.pool}/{stream.vm}/"


def _decode(key: str, numbers: str, value: str) -> Claim:
    epoch, _, number = numbers.partition(".")
    try:
        plain = json.loads(value)
        if plain["v"] != VERSION:
            raise ValueError(plain["v"])
        until = datetime.fromisoformat(plain["until"])
        good_for = float(plain["for"])
        if until.tzinfo is None or not 0 <= good_for <= LONGEST_S:
            raise ValueError(value)
        owner, host, run = str(plain["owner"]), str(plain["host"]), str(plain["run"])
        return Claim(key, int(epoch), int(number), owner, host, run, until, good_for)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return Claim(key, _number(epoch), 0, "", "?", "", None, LONGEST_S)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
