"""Blocks of a disk as frames: compressed, and taken apart again within fixed bounds."""

from __future__ import annotations

import hashlib

import xxhash
import zstandard

from xorepd.relay.protocol.frames import WireError
from xorepd.relay.protocol.messages import HASH, ZEROES, Data, Encoding


def hash_of(unit: memoryview | bytes) -> bytes:
    """Return what stands for a unit in an offer; for zeroes use `wire.ZEROES` instead."""
    found = hashlib.sha256(unit).digest()[:HASH]
    # Never all zeroes: that means something else, and one in 2^128 is not never.
    return found if found != ZEROES else b"\1" * HASH


def pack_block(offset: int, block: memoryview, compressor: zstandard.ZstdCompressor | None) -> Data:
    """Return a block of at most 1 MiB as a frame; raw where compressing does not shorten it.

    Args:
        compressor: one of this thread's; None sends the block as it is. A raw frame refers to
            `block` and does not copy it.
    """
    checksum = xxhash.xxh3_64_intdigest(block)
    if compressor is not None:
        packed = compressor.compress(block)
        if len(packed) < len(block):
            return Data(offset, len(block), Encoding.ZSTD, checksum, packed)
    return Data(offset, len(block), Encoding.RAW, checksum, block)


def unpack_block(data: Data) -> memoryview:
    """Return the bytes of disk that a frame stands for.

    A compressed block says how long it becomes. That is compared with what the frame announced
    before anything is allocated, so that no block can grow beyond it.

    Raises:
        WireError: it is no zstd, becomes longer or shorter, or is not what was sent.
    """
    block = memoryview(data.payload)
    if data.encoding is Encoding.ZSTD:
        try:
            said = zstandard.get_frame_parameters(data.payload)
            if said.content_size != data.length:
                raise WireError(
                    f"a compressed block says that it becomes {said.content_size} bytes "
                    f"where {data.length} were announced"
                )
            decompressor = zstandard.ZstdDecompressor()
            block = memoryview(
                decompressor.decompress(
                    data.payload, max_output_size=data.length, allow_extra_data=False
                )
            )
        except zstandard.ZstdError as error:
            raise WireError(f"a compressed block cannot be read ({error})") from error
        if len(block) != data.length:
            raise WireError(f"a compressed block became {len(block)} bytes, not {data.length}")
    if xxhash.xxh3_64_intdigest(block) != data.checksum:
        raise WireError(f"the block at {data.offset} is not what its checksum says")
    return block
