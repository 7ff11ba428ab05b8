"""The built-in transport: reader and writer in this process, one piece at a time.

It takes a piece from the reader when the writer has room. So back-pressure reaches the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from xorepd.data.reader import Reader
from xorepd.transports.base import API, Surroundings, Target


class Direct:
    async def carry(self, reader: Reader, target: Target) -> None:
        async with (
            target.open(reader.virtual_size, reader.extents) as writer,
            aclosing(reader.pieces()) as pieces,
        ):
            async for offset, data in pieces:
                await writer.write(offset, data)
            await writer.finish()


class DirectFactory:
    name = "direct"
    api = API

    def open(self, options: Mapping[str, Any], surroundings: Surroundings) -> Direct:
        if options:
            raise ValueError(f"transport direct has no options, remove {', '.join(options)}")
        return Direct()


transport = DirectFactory()
