"""What a VDI costs on an SR of logical volumes (LVM), where space is taken in extents of 4 MiB.

    leaf, thick          virtual size + room for the metadata of a 2 TiB VHD + a page per 2 MiB
    snapshot, or thin    its VHD file, at least the metadata
    base copy            its VHD file: the volume was deflated to it when the snapshot was taken
    raw                  virtual size

Sources: sm: libs/sm/lvhdutil.py (calcSizeVHDLV), libs/sm/vhdutil.py (calcOverheadEmpty,
calcOverheadBitmap), libs/sm/drivers/LVHDSR.py (create, resize, _snapshot).
"""

from typing import Final

EXTENT: Final = 4 << 20
JOURNALS: Final = 2 * EXTENT
"""A snapshot needs two of them while it is taken."""
_BLOCK: Final = 2 << 20
_LARGEST: Final = 2 << 40
"""Metadata is made for a disk of this size, so that it can grow."""


def in_extents(size: int) -> int:
    """Round up to whole extents."""
    return -(-size // EXTENT) * EXTENT


def _metadata(virtual_size: int) -> int:
    blocks = virtual_size // _BLOCK
    front_and_table = -(-(3072 + 4 * blocks) // 512) * 512
    return -(-(front_and_table + blocks // 8) // 4096) * 4096


THIN: Final = in_extents(_metadata(_LARGEST))
"""The least that a VHD in a volume takes."""


def thick(virtual_size: int) -> int:
    """Return what a VHD takes whose space is all there."""
    bitmaps = -(-virtual_size // _BLOCK) * 4096
    return in_extents(virtual_size + _metadata(_LARGEST) + bitmaps)


def thin(file_size: int) -> int:
    """Return what a VHD takes that grows with what is written."""
    return max(THIN, in_extents(file_size))


def needed_for_split(
    virtual_size: int, present: int, file_size: int, grown: bool, clone_grown: bool
) -> int:
    """Return what must be free to put two leaves on a VHD.

    Args:
        virtual_size: Of the VDI.
        present: What its volume takes now.
        file_size: Of its VHD, to which the volume is deflated as a base copy.
        grown: Whether the VDI itself stays thick.
        clone_grown: Whether the new leaf is thick too, as clones on a thick SR are.
    """
    leaves = sum(thick(virtual_size) if each else THIN for each in (grown, clone_grown))
    return leaves + JOURNALS - (present - in_extents(file_size))
