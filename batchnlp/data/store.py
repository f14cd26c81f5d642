"""Where the ledger and the results live: a few operations with the guarantees the commit protocol stands on.

`create` is exclusive: of several writers one wins, and a reader never sees half a file. On a local file system that is
a temporary file, fsync, and `os.link`, which fails when the name exists (a rename would overwrite in silence). An
object store does the same with `If-None-Match: *`; it gets a class of its own beside this one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from batchnlp.errors import OutputError, StoppedError

CONTROL = "_batchnlp"  # the folder of control files; what an output of ours is known by
TEMPORARY = ".tmp-"
UNWRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT,
              errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)  # fmt: skip
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class Store(Protocol):
    """Files below one root, named by '/'-separated relative names."""

    root: str

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file, whole or not at all; False when the name exists already."""

    def replace(self, name: str, data: bytes | Iterable[bytes]) -> None:
        """Write a file, whole or not at all, whatever was there before."""

    def read(self, name: str) -> bytes | None:
        """The content, or None where there is no such file."""

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in `folder`, sorted."""

    def publish(self, source: str, name: str) -> None:
        """Make the file `source` appear as `name` too; nothing happens when it is there."""

    def path(self, name: str) -> str:
        """Where pyarrow can open the file."""

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder; nothing happens when it is not there."""


class LocalStore:
    """A directory of a POSIX file system."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)

    def path(self, name: str) -> str:
        """Absolute path of `name`."""
        return os.path.join(self.root, name)

    def create(self, name: str, data: bytes) -> bool:
        """Exclusive: temporary file, fsync, link."""
        with self._temporary(name, [data]) as temporary:
            try:
                _link(temporary, self.path(name))
            except FileExistsError:
                return False
        fsync(os.path.dirname(self.path(name)))
        return True

    def replace(self, name: str, data: bytes | Iterable[bytes]) -> None:
        """Temporary file, fsync, rename."""
        with self._temporary(name, [data] if isinstance(data, bytes) else data) as temporary:
            os.replace(temporary, self.path(name))
        fsync(os.path.dirname(self.path(name)))

    def read(self, name: str) -> bytes | None:
        """The file's bytes."""
        with _unreadable(self.path(name)), suppress(FileNotFoundError, NotADirectoryError):
            return Path(self.path(name)).read_bytes()
        return None

    def names(self, folder: str) -> list[str]:
        """Sorted, temporary files left out."""
        with _unreadable(self.path(folder)), suppress(FileNotFoundError, NotADirectoryError):
            return sorted(n for n in os.listdir(self.path(folder)) if not n.startswith(TEMPORARY))
        return []

    def publish(self, source: str, name: str) -> None:
        """A hard link: no copy, and the name appears only when the content is whole."""
        target = self.path(name)
        with explain_full(self.root):
            os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            _link(self.path(source), target)
        except FileExistsError:
            if not os.path.samefile(self.path(source), target):  # damaged, and now computed again
                temporary = temporary_in(os.path.dirname(target))
                _link(self.path(source), temporary)
                os.replace(temporary, target)
        fsync(os.path.dirname(target))

    def remove(self, name: str) -> None:
        """Files and folders alike."""
        path = self.path(name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)

    @contextmanager
    def _temporary(self, name: str, data: Iterable[bytes]) -> Iterator[str]:
        folder = os.path.dirname(self.path(name))
        temporary = temporary_in(folder)
        try:
            with explain_full(folder):
                os.makedirs(folder, exist_ok=True)
                with open(temporary, "xb") as handle:
                    handle.writelines(data)
                    handle.flush()
                    os.fsync(handle.fileno())
            yield temporary
        finally:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(temporary)


def temporary_in(folder: str) -> str:
    """The path of a file that is not yet to be seen; what a crash leaves of them is swept."""
    return os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")


def _link(source: str, target: str) -> None:
    """os.link: nothing else makes a name exclusively and with all its content. Whether the file system can is found out
    by the plan, the first thing that a run writes."""
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        raise
    except OSError as error:
        folder = os.path.dirname(target)
        if error.errno not in NO_LINKS:
            with explain_full(folder):
                raise
        what = f"the file system of {folder} makes no hard links: {error.strerror}"
        raise OutputError(what, "choose an output.path on one that does, and copy the results from there") from None


@contextmanager
def explain_full(where: str) -> Iterator[None]:
    """Turn the operating system's answer to a write into one a user can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "make room and run the same command again; it resumes"
            raise StoppedError(f"no space left below {where}", hint) from None
        if error.errno in UNWRITABLE:
            raise OutputError(f"cannot write below {where}: {error.strerror}", "choose another output.path") from None
        raise


@contextmanager
def _unreadable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}", "is it yours, and its disk well?") from None


def fsync(path: str) -> None:
    """Make a written file, or the names in a directory, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: str) -> str:
    """sha256 of a file, in hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def to_json(value: Any) -> bytes:
    """JSON that people can read and diff."""
    return json.dumps(value, indent=1, sort_keys=True, default=str).encode() + b"\n"
