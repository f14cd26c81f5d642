"""Bytes: opening files, local or through fsspec, compressed or not, and noticing that they changed or broke."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from batchnlp.data.remote import filesystem, is_remote, reason
from batchnlp.data.sources.base import BLOCK
from batchnlp.data.sources.salvage import Damaged, Salvaged
from batchnlp.data.store import explain_full
from batchnlp.errors import BatchnlpError, CorruptError, SourceError
from batchnlp.types import InputFile

CODECS = {"gz": "gzip", "zst": "zstd"}
BOMB_BYTES, BOMB_RATIO = 1 << 30, 1000  # text does not shrink that much
STAMPS = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")


def stamp(info: dict[str, Any]) -> str:
    """What changes in a remote file's listing when its content does."""
    value = next((info[key] for key in STAMPS if info.get(key)), "")
    return str(
        value.timestamp() if isinstance(value, datetime) else value
    )  # some listings say it one way, some another


@contextmanager
def broken(what: str, kind: type[BatchnlpError] = SourceError) -> Iterator[None]:
    """Turns whatever a damaged file makes pyarrow raise into an error that names it; network errors pass."""
    try:
        yield
    except (ConnectionError, TimeoutError):
        raise
    except (OSError, EOFError, pa.ArrowException) as error:
        hint = "make it readable" if isinstance(error, PermissionError) else "create the file again"
        raise kind(f"{what} cannot be read: {reason(error)}", f"{hint}, or leave it out") from error


def is_damage(error: BaseException | None) -> bool:
    """Whether the bytes are to blame, and not whoever could not bring them."""
    return isinstance(error, pa.ArrowException | EOFError | Damaged) or (type(error) is OSError and error.errno is None)


@dataclass(slots=True)
class _Held:
    """A compressed stream, kept so that the next range does not begin at the start again."""

    file: InputFile
    stream: pa.NativeFile | Salvaged
    at: int


class Store:
    """Opens the files of a corpus. With a spool directory, decompressed copies are used where they are there.

    `salvage`: compressed files give all that is before their damage, and then `Damaged`.
    """

    def __init__(self, spool: str | None = None, *, salvage: bool = False) -> None:
        self.spool, self.salvage = spool, salvage
        self._held: _Held | None = None
        self._lock = Lock()

    def check(self, file: InputFile) -> None:
        """Fails when `file` is not the one that was planned with."""
        try:
            size, version = self._state(file.path)
        except FileNotFoundError:
            raise CorruptError(f"{file.name} is gone since the plan", "restore it and run again") from None
        if (size, version) != (file.size, file.version):
            raise CorruptError(f"{file.name} changed since the plan", "restore it, or start a new run")

    def open(self, file: InputFile) -> pa.NativeFile:
        """The bytes as stored, seekable."""
        if not is_remote(file.path):
            return pa.memory_map(file.path) if file.size else pa.OSFile(file.path)
        fs, path = filesystem(file.path, SourceError)
        return pafs.PyFileSystem(pafs.FSSpecHandler(fs)).open_input_file(path)

    def plain(self, file: InputFile) -> pa.NativeFile | None:
        """The decompressed bytes, seekable; None when they would have to be made first."""
        if file.compression is None:
            return self.open(file)
        copy = self._copy(file)
        return pa.memory_map(copy) if copy and os.path.exists(copy) and os.path.getsize(copy) else None

    def stream(self, file: InputFile) -> pa.NativeFile | Salvaged:
        """The decompressed bytes, from the start."""
        plain = self.plain(file)
        if plain is not None:
            return plain
        if self.salvage:
            return Salvaged(self.open(file), str(file.compression))
        return pa.CompressedInputStream(self.open(file), CODECS[str(file.compression)])

    def bytes_at(self, file: InputFile, offset: int, length: int) -> bytes:
        """A range of the decompressed bytes; shorter at the end of the file."""
        plain = self.plain(file)
        if plain is not None:
            with plain:
                plain.seek(offset)
                return bytes(plain.read(length))
        with self._lock:  # files are inspected in threads
            held, self._held = self._held, None
        if held is None or held.file != file or held.at > offset:
            held = _Held(file, self.stream(file), 0)
        while held.at < offset and (skipped := held.stream.read(min(offset - held.at, BLOCK))):
            held.at += len(skipped)
        raw = bytes(held.stream.read(length))
        held.at += len(raw)
        self._held = held
        return raw

    def decompress(self, file: InputFile) -> None:
        """Puts a decompressed copy into the spool, once and atomically."""
        copy = self._copy(file)
        if file.compression is None or copy is None or os.path.exists(copy):
            return
        folder, temporary = os.path.dirname(copy), f"{copy}.{os.getpid()}.tmp"
        try:
            with explain_full(folder):
                os.makedirs(folder, exist_ok=True)
                with open(temporary, "wb") as out:
                    out.writelines(self._blocks(file))
                os.replace(temporary, copy)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def _blocks(self, file: InputFile) -> Iterator[bytes]:
        """The decompressed bytes; what fails here is about the input, never about the disk that they go to."""
        done = 0
        with broken(file.name, CorruptError), self.stream(file) as stream:
            while block := self._block(stream):
                if (done := done + len(block)) > max(BOMB_BYTES, BOMB_RATIO * file.size):
                    message = f"{file.name} grows more than {BOMB_RATIO:,} times when it is decompressed"
                    raise CorruptError(
                        message, "it looks like a decompression bomb; leave it out, or decompress it first"
                    )
                yield block

    def _block(self, stream: pa.NativeFile | Salvaged) -> bytes:
        try:
            return bytes(stream.read(BLOCK))
        except Damaged:
            return b""  # the scan has told of it

    def _copy(self, file: InputFile) -> str | None:
        if self.spool is None:
            return None
        key = hashlib.sha256(f"{file.path}\n{file.size}\n{file.version}".encode()).hexdigest()
        return os.path.join(self.spool, key[:32])

    def _state(self, path: str) -> tuple[int, str]:
        if not is_remote(path):
            stat = os.stat(path)
            return stat.st_size, str(stat.st_mtime_ns)
        fs, inner = filesystem(path, SourceError)
        info = fs.info(inner)
        return int(info.get("size") or 0), stamp(info)
