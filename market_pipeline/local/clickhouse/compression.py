"""The content encodings of ClickHouse's HTTP interface: lz4 (frames), zstd, br, gzip and deflate."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Protocol

import brotli
import lz4.frame
from backports import zstd

from market_pipeline.local.clickhouse.errors import ClickHouseError, Code


class Decompressor(Protocol):
    """Undo a content encoding piece by piece."""

    def feed(self, data: bytes, limit: int) -> bytes:
        """Return what the next piece yields; raise OverLimit where that is more than `limit` bytes."""

    @property
    def complete(self) -> bool:
        """Say whether what was fed so far is whole: an encoded body cut short must not pass for a short one."""


class Compressor(Protocol):
    """Apply a content encoding piece by piece."""

    def compress(self, data: bytes) -> bytes:
        """Return the encoded bytes that are ready."""

    def flush(self) -> bytes:
        """Return the rest."""


class OverLimit(ValueError):
    """A piece inflates to more than its reader accepts."""


class _Frames:
    """Read one frame after another (lz4, zstd, gzip members): a client may send each block as a frame of its own."""

    def __init__(self, new: Callable[[], Any]) -> None:
        self._new = new
        self._frame = new()
        self._fed = False

    @property
    def complete(self) -> bool:
        return not self._fed or bool(self._frame.eof)

    def feed(self, data: bytes, limit: int) -> bytes:
        pieces: list[bytes] = []
        total = 0
        self._fed = self._fed or bool(data)
        while True:
            if self._frame.eof:
                if not data:
                    break
                self._frame = self._new()
            piece = self._frame.decompress(data, max_length=limit - total + 1)
            data = b""
            pieces.append(piece)
            total += len(piece)
            if total > limit:
                raise OverLimit
            if self._frame.eof:
                data = self._frame.unused_data or b""
            elif self._frame.needs_input or not piece:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Zlib:
    """Give zlib's object the face of the others: `max_length`, `needs_input`, input kept inside."""

    def __init__(self, wbits: int) -> None:
        self._object = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._object.decompress(self._object.unconsumed_tail + data, max_length)
        self.needs_input = not self._object.unconsumed_tail
        return piece


class _Brotli:
    def __init__(self) -> None:
        self._object = brotli.Decompressor()
        self._fed = False

    @property
    def complete(self) -> bool:
        return not self._fed or bool(self._object.is_finished())

    def feed(self, data: bytes, limit: int) -> bytes:
        self._fed = self._fed or bool(data)
        piece: bytes = self._object.process(data, output_buffer_limit=limit + 1)
        if len(piece) > limit or not self._object.can_accept_more_data():
            raise OverLimit
        return piece


_DECOMPRESSORS: dict[str, Callable[[], Decompressor]] = {
    "lz4": lambda: _Frames(lz4.frame.LZ4FrameDecompressor),
    "zstd": lambda: _Frames(zstd.ZstdDecompressor),
    "gzip": lambda: _Frames(lambda: _Zlib(31)),
    "deflate": lambda: _Frames(lambda: _Zlib(15)),
    "br": _Brotli,
}


def decompressor(encoding: str) -> Decompressor | None:
    """Return what undoes a `Content-Encoding`, None for an unencoded body.

    Raises ClickHouseError (UNKNOWN_COMPRESSION_METHOD) for an encoding that ClickHouse's interface lacks.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _DECOMPRESSORS:
        raise ClickHouseError(f"Unknown compression method: {encoding}", Code.UNKNOWN_COMPRESSION_METHOD)
    return _DECOMPRESSORS[encoding]()


class _Lz4Compressor:
    def __init__(self) -> None:
        self._object = lz4.frame.LZ4FrameCompressor()
        self._head: bytes = self._object.begin()

    def compress(self, data: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + bytes(self._object.compress(data))

    def flush(self) -> bytes:
        return self._head + bytes(self._object.flush())


class _BrotliCompressor:
    def __init__(self) -> None:
        self._object = brotli.Compressor(quality=4)

    def compress(self, data: bytes) -> bytes:
        return bytes(self._object.process(data))

    def flush(self) -> bytes:
        return bytes(self._object.finish())


_COMPRESSORS: dict[str, Callable[[], Compressor]] = {
    "lz4": _Lz4Compressor,
    "zstd": lambda: zstd.ZstdCompressor(level=1),
    "br": _BrotliCompressor,
    "gzip": lambda: zlib.compressobj(level=3, wbits=31),
    "deflate": lambda: zlib.compressobj(level=3),
}


def accepted_encoding(header: str) -> str | None:
    """Return the first encoding of an `Accept-Encoding` header that this server can apply."""
    for choice in header.split(","):
        name, _, quality = choice.partition(";")
        if name.strip().lower() in _COMPRESSORS and quality.replace(" ", "") not in ("q=0", "q=0.0"):
            return name.strip().lower()
    return None


def compressor(encoding: str) -> Compressor:
    """Return what applies one of the encodings of `accepted_encoding`."""
    return _COMPRESSORS[encoding]()
