"""A small ISO 9660 image: one directory with a few text files, for the CD drives of guests.

    sector 16       17          18            19            20     21 …
    | descriptor | terminator | path table | path table | root | files
    |            |            | (little)   | (big)      |      |

Source: ECMA-119, 3rd edition, sections 7 to 9.
"""

import struct
from collections.abc import Mapping
from typing import Final

SECTOR: Final = 2048
_ROOT: Final = 20
_FIRST_FILE: Final = 21


def _both(number: int, size: int = 4) -> bytes:
    """Write a number twice, little-endian first."""
    return number.to_bytes(size, "little") + number.to_bytes(size, "big")


def _entry(name: bytes, sector: int, length: int, directory: bool) -> bytes:
    """Return one directory record (9.1), without a date."""
    flags = 2 if directory else 0
    fixed = _both(sector) + _both(length) + bytes(7) + bytes([flags, 0, 0]) + _both(1, 2)
    record = bytes([0]) + fixed + bytes([len(name)]) + name
    record += bytes((len(record) + 1) % 2)
    return bytes([len(record) + 1]) + record


def _padded(data: bytes, to: int = SECTOR) -> bytes:
    return data + bytes(-len(data) % to)


def make_iso(label: str, files: Mapping[str, bytes], size: int) -> bytes:
    """Return an image, padded with zeroes to `size` bytes.

    Args:
        label: Of the volume.
        files: By names in capitals, such as `README.TXT`; at most a few dozen.
        size: A multiple of 2048 that has room for it all.
    """
    sector, entries, contents = _FIRST_FILE, [], []
    for name in sorted(files):
        data = files[name]
        entries.append(_entry(f"{name};1".encode(), sector, len(data), directory=False))
        contents.append(_padded(data))
        sector += len(contents[-1]) // SECTOR
    own = _entry(b"\0", _ROOT, SECTOR, directory=True)
    root = own + _entry(b"\1", _ROOT, SECTOR, directory=True) + b"".join(entries)
    tables = (struct.pack(f"{order}BBIH2s", 1, 0, _ROOT, 1, b"\0\0") for order in "<>")
    table_size = 10
    descriptor = b"".join(
        (
            b"\1CD001\1\0",
            b" " * 32,
            label.upper().ljust(32).encode(),
            bytes(8),
            _both(size // SECTOR),
            bytes(32),
            _both(1, 2) * 2,
            _both(SECTOR, 2),
            _both(table_size),
            struct.pack("<II", 18, 0),
            struct.pack(">II", 19, 0),
            own,
            b" " * (4 * 128 + 3 * 37),
            (b"0" * 16 + b"\0") * 4,
            b"\1",
        )
    )
    head = _padded(descriptor) + _padded(b"\xffCD001\1")
    image = bytes(16 * SECTOR) + head + b"".join(map(_padded, tables)) + _padded(root)
    return _padded(image + b"".join(contents), size)
