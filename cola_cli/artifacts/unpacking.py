"""Reading .gz and .zst a little at a time, so that a small file cannot fill the memory."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import PurePosixPath
from typing import Any, BinaryIO

READ_BYTES = 1 << 20
# Packed zstd data is read in pieces of this size: it can grow 32,768-fold, and comes out all at once.
ZSTD_BYTES = 1 << 10


# what reading raises of a file that is cut off or damaged
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


def unpacked(name: object, raw: BinaryIO) -> BinaryIO:
    """The content of a .gz or .zst file, other files as they are."""
    match PurePosixPath(str(name)).suffix.lower():
        case ".gz":
            return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
        case ".zst":
            return io.BufferedReader(ZstdStream(raw), READ_BYTES)
    return raw


class ZstdStream(io.RawIOBase):
    """Decompressed bytes of a .zst file; unlike zstandard's own reader it notices truncation."""

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._raw = raw
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame: Any = None
        self._packed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._ready:
            if not self._packed:
                self._packed = self._raw.read(ZSTD_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the compressed data ends too early")
                return 0
            if self._frame is None:
                self._frame = self._new_frame()
            try:
                self._ready = self._frame.decompress(self._packed)
            except zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            self._packed = b""
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count
