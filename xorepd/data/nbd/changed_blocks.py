"""The bitmap of changed-block tracking: one bit for 64 KiB of disk, base64 on the wire.

    byte     0                1
    bit      7 6 5 4 3 2 1 0  7 6 …        most significant first
    block    0 1 2 3 4 5 6 7  8 9 …

Source: sm: libs/sm/cbtutil.py, VDI.py (list_changed_blocks).
"""

from __future__ import annotations

import base64
import binascii

from xorepd.data.blocks import BlockMap
from xorepd.units import KiB

BLOCK = 64 * KiB

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def parse_changes(text: str, virtual_size: int) -> BlockMap:
    """Return the blocks that changed, from what `VDI.list_changed_blocks` answered.

    Args:
        virtual_size: of the newer disk, in bytes.

    Raises:
        ValueError: it is no bitmap of a disk of that size.
    """
    try:
        bitmap = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the bitmap of changed blocks is not base64: {error}") from error
    blocks = -(-virtual_size // BLOCK)
    wanted = -(-blocks // 8)
    if len(bitmap) != wanted:
        raise ValueError(
            f"the bitmap of changed blocks has {len(bitmap)} bytes, "
            f"a disk of {virtual_size} bytes has {wanted}"
        )
    surplus = wanted * 8 - blocks
    if bitmap and bitmap[-1] & ((1 << surplus) - 1):
        raise ValueError("the bitmap of changed blocks names blocks beyond the end of the disk")
    return BlockMap.of_bits(virtual_size, BLOCK, bitmap.translate(_REVERSED))
