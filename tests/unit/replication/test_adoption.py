"""Which plans a base of others may change."""

from __future__ import annotations

from typing import Any, cast

from tests.unit.replication.builders import SourceWorld
from xorepd.replication.deciding.plan import Full, FullReason
from xorepd.replication.deciding.resume import Begun
from xorepd.replication.transfer.foreign_base import adopt
from xorepd.replication.transfer.staging import DiskPlan


async def test_a_full_that_was_begun_is_ended_as_one() -> None:
    world = SourceWorld()
    begun = DiskPlan(
        source=cast(Any, None),
        how=Full(FullReason.FIRST_RUN),
        bootable=False,
        mode="RW",
        begun=cast(Begun, object()),
    )
    nothing_to_ask = cast(Any, None)

    assert await adopt(nothing_to_ask, await world.read(), [begun]) == [begun]
