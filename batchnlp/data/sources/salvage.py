"""Compressed streams that are cut off or damaged: all that is before the damage, and then an error."""

from __future__ import annotations

import io
import zlib
from typing import IO, Any

import pyarrow as pa
import zstandard

STEP = 512  # bytes given to the decompressor at a time: what one call made before it met the damage is lost


class Damaged(OSError):
    """Here the damage begins."""


class Salvaged(io.RawIOBase):
    """The decompressed bytes of a gzip or Zstandard file, of one stream or several."""

    def __init__(self, source: IO[bytes] | pa.NativeFile, compression: str) -> None:
        self._source, self._compression = source, compression
        self._work: Any = None
        self._input = self._output = b""
        self._damage: Damaged | None = None
        self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As `read`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """As many bytes as asked for, unless the end or the damage comes first; `Damaged` once there are none left."""
        pieces, have = [self._output], len(self._output)
        while (size < 0 or have < size) and not self._ended and self._damage is None:
            pieces.append(self._more())
            have += len(pieces[-1])
        data = b"".join(pieces)
        size = len(data) if size < 0 else size
        data, self._output = data[:size], data[size:]
        if not data and size and self._damage is not None:
            raise self._damage
        return data

    def close(self) -> None:
        """The file below too."""
        self._source.close()
        super().close()

    def _more(self) -> bytes:
        """What the next bytes of the file become."""
        self._input = self._input or bytes(self._source.read(1 << 16))
        if not self._input:
            whole = self._work is not None and self._work.eof
            self._ended = whole
            self._damage = None if whole else Damaged("it ends in the middle of its compressed data")
            return b""
        if self._work is None or self._work.eof:
            gzip = self._compression == "gz"
            self._work = zlib.decompressobj(31) if gzip else zstandard.ZstdDecompressor().decompressobj()
        step, self._input = self._input[:STEP], self._input[STEP:]
        try:
            data = bytes(self._work.decompress(step))
        except (zlib.error, zstandard.ZstdError) as error:
            self._damage = Damaged(f"its compressed data is damaged: {error}")
            return b""
        self._input = self._work.unused_data + self._input if self._work.eof else self._input
        return data
