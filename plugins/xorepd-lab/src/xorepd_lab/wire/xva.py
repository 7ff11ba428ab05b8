"""The XVA: VMs with their disks in one tar archive, written and read as a stream.

    ova.xml | Ref:7/00000000 | Ref:7/00000000.xxhash | Ref:7/00000003 | … | two blocks of zeroes
                └ 1 MiB of data   └ XXH64, or .checksum: SHA-1

`ova.xml` describes all objects, see `xva_manifest`. Disks come one after another, ordered by their
identifiers as strings. Chunks of zeroes are left out, but never a disk's first and last one. A gap
of n numbers stands for n times the size of the *archive's* first chunk.

Headers are those of tars before POSIX (no magic, mode 0400, no owner); readers take them and newer
ones. The whole may be compressed with gzip or zstd, told by trying: what does not begin with a
header of `ova.xml` is taken for compressed.

Source: xapi: ocaml/xapi/stream_vdi.ml, import.ml (with_open_archive), importexport.ml; ocaml-tar:
lib/tar.ml.
"""

import hashlib
import zlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import xxhash
import zstandard

from xorepd_lab.model.failures import ApiError
from xorepd_lab.wire.xmlrpc import Malformed, decode_value, encode_value

CHUNK: Final = 1 << 20
OVA_XML: Final = "ova.xml"
EXPORT_VERSION: Final = 2
"""Since version 1 every chunk has its checksum behind it; before 2 all stand at the end as well."""
BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
XXHASH, SHA1 = ".xxhash", ".checksum"

LONGEST_MANIFEST: Final = 16 << 20
"""Bytes of an ova.xml; that of a VM has some 30 KiB."""
_LONGEST_CHECKSUM: Final = 1024
_LONGEST_EXTENSION: Final = 64 << 10
"""Bytes of a pax header, which other tars may write before a member."""
_MODE: Final = 0o400
_STEP: Final = 1 << 20
_ZSTD_SLICE: Final = 512
"""Compressed bytes at a time: zstd packs up to 128 KiB into four, and does not stop half-way."""
_ZSTD_WINDOW: Final = 1 << 27
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC: Final = b"\x1f\x8b"

Receive = Callable[[], Awaitable[bytes]]
Write = Callable[[int, bytes], Awaitable[None]]


def import_error(text: str) -> ApiError:
    """Return what an importer says to whatever it has no word of its own for."""
    return ApiError("IMPORT_ERROR", f"INTERNAL_ERROR: [ {text} ]")


def premature_end() -> ApiError:
    return ApiError("IMPORT_ERROR_PREMATURE_EOF")


# -- writing --------------------------------------------------------------------------------------


def member(name: str, content: bytes, time: int = 0) -> bytes:
    """Return a file of the archive: header, content, padding."""
    header = bytearray(BLOCK)
    header[0 : len(name)] = name.encode()
    header[100:108] = b"%07o\0" % _MODE
    header[108:116] = header[116:124] = b"%07o\0" % 0
    header[124:136] = b"%011o\0" % len(content)
    header[136:148] = b"%011o\0" % time
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return b"".join((header, content, bytes(-len(content) % BLOCK)))


def chunk(disk: str, number: int, data: bytes) -> bytes:
    """Return the two files of one chunk of a disk, for instance of `Ref:7`."""
    name = f"{disk}/{number:08}"
    checksum = xxhash.xxh64_hexdigest(data).upper().encode()
    return member(name, data) + member(name + XXHASH, checksum)


class Compressor(Protocol):
    """What zlib and zstandard have in common."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class Plain:
    """Leaves everything as it is."""

    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compressor(kind: str | None) -> Compressor:
    """Return a new compressor for what a client wants: `gzip`, `zstd`, or None for nothing."""
    if kind == "gzip":
        return zlib.compressobj(level=1, wbits=31)
    if kind == "zstd":
        return zstandard.ZstdCompressor(level=1).compressobj()
    return Plain()


# -- the manifest ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Described:
    """One object: its class, its identifier in this archive, and its record as it was decoded."""

    cls: str
    id: str
    snapshot: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an ova.xml says."""

    version: dict[str, Any]
    objects: tuple[Described, ...]

    def number(self, name: str) -> int:
        """Return a number of the version."""
        try:
            return int(self.version[name])
        except (KeyError, TypeError, ValueError):
            if name == "export_vsn":
                return 0
            raise import_error(
                f"Importexport.Failure(\"Failed to find key '{name}' in version data\")"
            ) from None

    def encode(self) -> bytes:
        objects = [{"class": o.cls, "id": o.id, "snapshot": o.snapshot} for o in self.objects]
        return encode_value({"version": self.version, "objects": objects}).encode()


def read_manifest(content: bytes) -> Manifest:
    """Return what an ova.xml says; IMPORT_ERROR when it is none."""
    try:
        value = decode_value(content)
        objects = tuple(
            Described(_text(each["class"]), _text(each["id"]), _struct(each["snapshot"]))
            for each in value["objects"]
        )
        return Manifest(_struct(value["version"]), objects)
    except (Malformed, TypeError, KeyError) as error:
        raise import_error(f'Failure("{error}")') from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a string")
    return value


def _struct(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("expected a struct")
    return value


# -- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """A file of the archive. `size` in bytes; nobody has looked whether as many follow."""

    name: str
    size: int
    kind: bytes = b"0"


def read_header(block: bytes) -> Member | None:
    """Return the member that 512 bytes announce, None when they announce nothing."""
    if len(block) < BLOCK:
        return None
    try:
        checksum = int(block[148:156].strip(b" \0"), 8)
        size = int(block[124:136].strip(b" \0"), 8)
        name = block[:100].partition(b"\0")[0].decode()
        if block[257:262] == b"ustar" and block[345]:
            name = f"{block[345:500].partition(bytes(1))[0].decode()}/{name}"
    except ValueError:
        return None
    if checksum != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]) or size < 0:
        return None
    return Member(name, size, block[156:157].replace(b"\0", b"0"))


class _Decoder(Protocol):
    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield what data of the stream unpacks to, a little at a time."""


class _Verbatim:
    def pieces(self, data: bytes) -> Iterator[bytes]:
        yield data


class _Gzip:
    """One gzip file behind another; what does not begin like one ends it, as garbage does."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inner.eof:
                if not data.startswith(_GZIP_MAGIC):
                    return
                self._inner = zlib.decompressobj(wbits=31)
            yield self._inner.decompress(data, _STEP)
            data = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail


class _Zstd:
    def __init__(self) -> None:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._inner = unpacker.decompressobj(read_across_frames=True)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_SLICE):
            yield self._inner.decompress(data[start : start + _ZSTD_SLICE])


class Archive:
    """The members of an archive that arrives, one after another, in bounded memory.

    Args:
        receive: Gives the next bytes as they come, b"" at the end.
        offload: Runs a function, elsewhere when it is slow.
    """

    def __init__(self, receive: Receive, offload: Callable[..., Awaitable[Any]]) -> None:
        self._receive = receive
        self._offload = offload
        self._decoder: _Decoder = _Verbatim()
        self._pieces: Iterator[bytes] = iter(())
        self._held = bytearray()
        self._left = 0
        """What was not read yet of the present member."""
        self._padding = 0

    async def manifest(self) -> Manifest:
        """Read the first member.

        Raises:
            ApiError: IMPORT_ERROR_PREMATURE_EOF when this is no archive at all.
        """
        await self._fill(BLOCK)
        first = read_header(bytes(self._held[:BLOCK]))
        if first is None or first.name != OVA_XML:
            beginning, self._held = bytes(self._held), bytearray()
            self._decoder = _Zstd() if beginning.startswith(_ZSTD_MAGIC) else _Gzip()
            self._pieces = self._decoder.pieces(beginning)
        found = await self.next()
        if found.name != OVA_XML:
            raise ApiError("IMPORT_ERROR_UNEXPECTED_FILE", OVA_XML, found.name)
        return read_manifest(await self.content(LONGEST_MANIFEST))

    async def next(self) -> Member:
        """Go on to the next member, over what was not read of this one.

        Raises:
            ApiError: IMPORT_ERROR_PREMATURE_EOF when there is none.
        """
        while True:
            while await self.read():
                pass
            found = await self._next_header()
            self._left, self._padding = found.size, -found.size % BLOCK
            if found.kind == b"0":
                return found
            if found.kind not in b"xg" or found.size > _LONGEST_EXTENSION:
                raise import_error("Tar.Header.Unsupported_link_indicator")

    async def read(self, limit: int = CHUNK) -> bytes:
        """Return the next bytes of this member, b"" at its end."""
        size = min(limit, self._left)
        if not size:
            await self._take(self._padding)
            self._padding = 0
            return b""
        self._left -= size
        return await self._take(size)

    async def content(self, limit: int) -> bytes:
        """Return all of this member; IMPORT_ERROR when it is longer than the limit."""
        if self._left > limit:
            raise import_error("Out of memory")
        parts = bytearray()
        while piece := await self.read():
            parts += piece
        return bytes(parts)

    async def _next_header(self) -> Member:
        block = await self._take(BLOCK)
        if block.count(0) == BLOCK:
            block = await self._take(BLOCK)
            if block.count(0) == BLOCK:
                raise premature_end()
        found = read_header(block)
        if found is None:
            raise import_error("Tar.Header.Checksum_mismatch")
        return found

    async def _take(self, size: int) -> bytes:
        await self._fill(size)
        if len(self._held) < size:
            raise premature_end()
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken

    async def _fill(self, size: int) -> None:
        """Hold at least that many bytes, if there are as many."""
        while len(self._held) < size:
            try:
                piece = await self._offload(next, self._pieces, None)
            except (zlib.error, zstandard.ZstdError):
                return  # the unpacker dies, and its reader sees an end
            if piece is None:
                arrived = await self._receive()
                if not arrived:
                    return
                self._pieces = self._decoder.pieces(arrived)
            else:
                self._held += piece


class Disks:
    """The disks of one archive, in the order in which they must come.

    Args:
        archive: Behind its manifest.
        inline: Whether a checksum follows each chunk.
        force: Go on after a wrong one.
    """

    def __init__(self, archive: Archive, inline: bool, force: bool) -> None:
        self._archive = archive
        self._inline = inline
        self._force = force
        self._first_length: int | None = None
        self.checksums: dict[str, str] = {}
        """By the chunk's name, for archives that tell them again at the end."""

    async def receive(
        self,
        disk: str,
        size: int,
        room: int,
        write: Write,
        progress: Callable[[int], Awaitable[None]],
    ) -> None:
        """Read one disk.

        Args:
            disk: Its identifier.
            size: Bytes to expect.
            room: Bytes that can be written.
            write: Called with offset and data; what lies between is zeroes.
            progress: Called with the bytes that every chunk took the disk further.

        Raises:
            ApiError: The chunks make no sense, are wrong, end early, or do not fit.
        """
        offset, last = 0, "-1"
        while offset < size:
            part = await self._archive.next()
            if self._first_length is None:
                self._first_length = part.size
            suffix = _suffix(disk, part.name, last)
            skipped = (int(suffix) - int(last) - 1) * self._first_length
            if offset + skipped + part.size > room:
                raise import_error('Unix.Unix_error(Unix.ENOSPC, "write", "")')
            sums = await self._chunk(offset + skipped, write)
            await self._check(part.name, sums)
            await progress(skipped + part.size)
            offset, last = offset + skipped + part.size, suffix

    async def check_table(self) -> None:
        """Compare with the table at the end of archives of the first versions."""
        await self._archive.next()
        content = await self._archive.content(LONGEST_MANIFEST)
        try:
            expected = _struct(decode_value(content))
        except (Malformed, TypeError) as error:
            raise import_error(f'Failure("{error}")') from error
        same = all(expected.get(name) == found for name, found in self.checksums.items())
        if not same and not self._force:
            raise ApiError("IMPORT_ERROR_SOME_CHECKSUMS_FAILED")

    async def _chunk(self, offset: int, write: Write) -> dict[str, str]:
        """Write a chunk as it comes; return its checksums by the kind of file they would be in."""
        quick, slow = xxhash.xxh64(), hashlib.sha1(usedforsecurity=False)
        while piece := await self._archive.read():
            quick.update(piece)
            slow.update(piece)
            await write(offset, piece)
            offset += len(piece)
        return {XXHASH: quick.hexdigest().upper(), SHA1: slow.hexdigest()}

    async def _check(self, name: str, sums: dict[str, str]) -> None:
        part = await self._archive.next()
        stem, dot, kind = part.name.rpartition(".")
        if f".{kind}" not in sums:
            raise import_error(
                f'Stream_vdi.Failure("Found unsupported checksum file: {part.name}")'
            )
        found = self.checksums[name] = sums[dot + kind]
        if not self._inline:
            return
        told = (await self._archive.content(_LONGEST_CHECKSUM)).decode("latin-1")
        if stem not in self.checksums:
            raise import_error("Not_found")
        found = self.checksums[stem]
        if told != found and not self._force:
            raise import_error(
                f'Stream_vdi.Invalid_checksum("Block {stem} checksum failed: original = {told};'
                f' recomputed = {found}")'
            )


def _suffix(disk: str, name: str, last: str) -> str:
    """Return the number in a chunk's name, which must belong to the disk and be a later one."""
    suffix = name.removeprefix(f"{disk}/")
    if suffix == name or suffix <= last:
        raise import_error('Stream_vdi.Failure("Invalid XVA file")')
    if not (suffix.isascii() and suffix.isdigit()):
        raise import_error('Failure("int_of_string")')
    return suffix
