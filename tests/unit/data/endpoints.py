"""The HTTP side of a pool that is one scripted server, and what its tasks say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

from yarl import URL

from xorepd.data.http.endpoint import Keeper
from xorepd.errors import Remedy, XapiError
from xorepd.ids import Ref, VdiUuid
from xorepd.stream import ByteStream
from xorepd.xapi.rpc.explained import explain


@dataclass
class ScriptedKeeper:
    """Implements `data.endpoint.Keeper`."""

    is_settled: bool = False
    error: XapiError | None = None
    """What setting the content id fails with."""

    async def settle(self) -> None:
        if self.error is not None:
            raise self.error
        self.is_settled = True

    async def settle_attached(self) -> None:
        await self.settle()


class ScriptedDoor:
    """Implements `data.endpoint.Endpoint`.

    Args:
        outcomes: how tasks end, in their order: nothing, an error, or None for never. What comes
            after the last of them succeeds.
    """

    pool = "lab"

    def __init__(self, port: int, outcomes: Sequence[Sequence[str] | None] = ()) -> None:
        self._port, self._outcomes = port, list(outcomes)
        self._numbers = count()
        self.begun: list[Ref] = []
        self.discarded: list[Ref] = []
        self.renewed = 0
        self.keeper = ScriptedKeeper()
        self.kept: list[tuple[VdiUuid, str]] = []
        """Disks whose content ids were to be kept, and these."""

    @asynccontextmanager
    async def keeping(self, vdi: VdiUuid, content: str, task: Ref) -> AsyncIterator[Keeper]:
        self.kept.append((vdi, content))
        yield self.keeper

    async def connect(self, url: URL, stall: float) -> ByteStream:
        return await ByteStream.connect("127.0.0.1", self._port, stall=stall)

    def url(self, path: str, query: Mapping[str, str]) -> URL:
        return URL(f"http://127.0.0.1:{self._port}").with_path(path).with_query(query)

    def redirected(self, location: str, asked: URL) -> URL:
        return URL(location).with_path(asked.path).with_query(asked.query)

    async def renew(self) -> None:
        self.renewed += 1

    async def begin(self, label: str) -> Ref:
        self.begun.append(Ref(f"task{next(self._numbers)}"))
        return self.begun[-1]

    async def outcome(self, task_ref: Ref, timeout: float) -> Sequence[str]:
        number = self.begun.index(task_ref)
        told = self._outcomes[number] if number < len(self._outcomes) else ()
        if told is None:
            await asyncio.sleep(min(timeout, 0.01))
            raise TimeoutError
        return told

    async def discard(self, task_ref: Ref) -> None:
        self.discarded.append(task_ref)

    def explain(self, code: str, params: Sequence[str]) -> tuple[str, Remedy]:
        told = explain(code, params)
        return told.text, told.remedy
