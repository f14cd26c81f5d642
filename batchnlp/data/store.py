"""Where the ledger and the results live: a few operations with the guarantees the commit protocol stands on.

`create` is exclusive: of several writers one wins, and a reader never sees half a file. On a local file system that is
a temporary file, fsync, and `os.link`, which fails when the name exists (a rename would overwrite in silence). An
object store (`data/object_store.py`) does the same with `If-None-Match: *`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from io import BufferedReader
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

    root: str  # as a user knows it

    def path(self, name: str) -> str:
        """What a user knows the file by: an absolute path, or a URI."""

    def check(self) -> str:
        """Before anything else is written: raise OutputError where nothing can be; what to warn of, or nothing."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file, whole or not at all; False when the name exists already."""

    def replace(self, name: str, data: bytes | Iterable[bytes]) -> None:
        """Write a file, whole or not at all, whatever was there before."""

    def writing(self, name: str, *, private: bool = False) -> AbstractContextManager[str]:
        """A local path to write a file at, which is in the store when this ends. `private`: for its owner alone."""

    def read(self, name: str) -> bytes | None:
        """The content, or None where there is no such file."""

    def open(self, name: str) -> BufferedReader:
        """The file, to read in it; FileNotFoundError where there is none."""

    def local(self, name: str) -> str:
        """Where other libraries can read the file on this host; FileNotFoundError where there is none."""

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is no such file."""

    def modified(self, name: str) -> float | None:
        """When the file was written, in seconds on the store's own clock; None where there is no such file."""

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in `folder`, sorted."""

    def walk(self, enter: Callable[[str, str], bool]) -> Iterator[tuple[str, list[str]]]:
        """(folder, names of its files) below the root, of the folders that `enter(folder, name)` lets in."""

    def guard(self, name: str) -> AbstractContextManager[None]:
        """Between processes of this host, as far as the store can: whoever is inside is alone."""

    def scratch(self, name: str) -> str:
        """A local directory for files that need not last; where there is a choice, one that all hosts see."""

    def snapshot(self) -> AbstractContextManager[None]:
        """For as long as this lasts, sizes may be those of its beginning, where asking one by one is slow."""

    def publish(self, source: str, name: str) -> None:
        """Make the file `source` appear as `name` too; nothing happens when it is there."""

    def set_aside(self, folder: str, name: str) -> bool:
        """Give a folder another name at one blow; False where the store cannot."""

    def remove(self, name: str) -> None:
        """Remove a file or a whole folder; nothing happens when it is not there."""

    def prune(self, folder: str) -> None:
        """Remove a folder and those above it as far as they are empty."""

    def now(self) -> float:
        """The time on the clock that `modified` goes by."""

    def unfinished(self, seconds: float) -> list[str]:
        """What writers left that died in the middle of it more than so many seconds ago, to be given to `abandon`."""

    def abandon(self, name: str) -> None:
        """Remove what `unfinished` found."""


def open_store(root: str | os.PathLike[str]) -> Store:
    """The store at a directory or a URI. OutputError or MissingExtraError where there can be none."""
    text = os.fspath(root).removeprefix("file://")
    if "://" not in text:
        return LocalStore(text)
    from batchnlp.data.object_store import ObjectStore

    return ObjectStore.at(text)


class LocalStore:
    """A directory of a POSIX file system."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.path.abspath(root)

    def path(self, name: str) -> str:
        """Absolute path of `name`."""
        return os.path.join(self.root, name)

    def check(self) -> str:
        """The first file that is written tells all there is to know."""
        return ""

    def create(self, name: str, data: bytes) -> bool:
        """Exclusive: temporary file, fsync, link."""
        with self._filled(name, [data]) as temporary:
            try:
                _link(temporary, self.path(name))
            except FileExistsError:
                return False
        fsync(os.path.dirname(self.path(name)))
        return True

    def replace(self, name: str, data: bytes | Iterable[bytes]) -> None:
        """Temporary file, fsync, rename."""
        with self._filled(name, [data] if isinstance(data, bytes) else data) as temporary:
            os.replace(temporary, self.path(name))
        fsync(os.path.dirname(self.path(name)))

    @contextmanager
    def writing(self, name: str, *, private: bool = False) -> Iterator[str]:
        """Temporary file, fsync, rename."""
        with explain_full(self.root), self._temporary(name) as temporary:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
            yield temporary
            fsync(temporary)
            os.replace(temporary, self.path(name))
        fsync(os.path.dirname(self.path(name)))

    def read(self, name: str) -> bytes | None:
        """The file's bytes."""
        with _unreadable(self.path(name)), suppress(FileNotFoundError, NotADirectoryError):
            return Path(self.path(name)).read_bytes()
        return None

    def open(self, name: str) -> BufferedReader:
        """A file object."""
        return open(self.path(name), "rb")

    def local(self, name: str) -> str:
        """It is here."""
        return self.path(name)

    def size(self, name: str) -> int | None:
        """By stat."""
        found = self._stat(name)
        return None if found is None else found.st_size

    def modified(self, name: str) -> float | None:
        """By stat."""
        found = self._stat(name)
        return None if found is None else found.st_mtime

    def names(self, folder: str) -> list[str]:
        """Sorted, temporary files left out."""
        with _unreadable(self.path(folder)), suppress(FileNotFoundError, NotADirectoryError):
            return sorted(n for n in os.listdir(self.path(folder)) if not n.startswith(TEMPORARY))
        return []

    def walk(self, enter: Callable[[str, str], bool]) -> Iterator[tuple[str, list[str]]]:
        """As os.walk."""
        for directory, inner, names in os.walk(self.root):
            folder = os.path.relpath(directory, self.root)
            folder = "" if folder == "." else folder
            inner[:] = [name for name in inner if enter(folder, name)]
            yield folder, names

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """By flock."""
        path = self.path(f"{name}.guard")
        with explain_full(self.root):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle = open(path, "a")  # noqa: SIM115 - closed right below; only the opening is explained
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                    raise  # a file system without flock: then two that look at the same moment both find it free
            yield

    def scratch(self, name: str) -> str:
        """In the output itself."""
        with explain_full(self.root):
            os.makedirs(self.path(name), exist_ok=True)
        return self.path(name)

    def snapshot(self) -> AbstractContextManager[None]:
        """A stat costs nothing."""
        return nullcontext()

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

    def set_aside(self, folder: str, name: str) -> bool:
        """By a rename."""
        if os.path.isdir(self.path(folder)):
            os.rename(self.path(folder), self.path(name))
        return True

    def remove(self, name: str) -> None:
        """Files and folders alike."""
        path = self.path(name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def prune(self, folder: str) -> None:
        """The root stays."""
        while folder and os.path.isdir(self.path(folder)) and not os.listdir(self.path(folder)):
            os.rmdir(self.path(folder))
            folder = os.path.dirname(folder)

    def unfinished(self, seconds: float) -> list[str]:
        """Temporary files."""
        now, found = self.now(), []
        for folder, names in self.walk(published_or_control):
            for name in (os.path.join(folder, name) for name in names if name.startswith(TEMPORARY)):
                at = self.modified(name)
                if at is not None and now - at > seconds:
                    found.append(name)
        return found

    def abandon(self, name: str) -> None:
        """A file like any other."""
        self.remove(name)

    def now(self) -> float:
        """By a file that is written now."""
        with self._filled(f"{CONTROL}/now", []) as temporary:
            return os.stat(temporary).st_mtime

    def _stat(self, name: str) -> os.stat_result | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(self.path(name))
            return found if stat.S_ISREG(found.st_mode) else None
        return None

    @contextmanager
    def _filled(self, name: str, data: Iterable[bytes]) -> Iterator[str]:
        """A new file beside `name` with this in it, on disk; it goes when this ends, unless it was renamed."""
        with self._temporary(name) as temporary:
            with explain_full(os.path.dirname(temporary)), open(temporary, "xb") as handle:
                handle.writelines(data)
                handle.flush()
                os.fsync(handle.fileno())
            yield temporary

    @contextmanager
    def _temporary(self, name: str) -> Iterator[str]:
        """Where to make that file."""
        folder = os.path.dirname(self.path(name))
        temporary = temporary_in(folder)
        with explain_full(folder):
            os.makedirs(folder, exist_ok=True)
        try:
            yield temporary
        finally:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(temporary)


def published_or_control(folder: str, name: str) -> bool:
    """Whether to look for our files in the folder `name` of `folder`: where results are published, and control files."""
    if folder.split("/")[0] == CONTROL:
        return name != "staging"
    return "=" in name or name == CONTROL


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


def sha256_of(handle: BufferedReader) -> str:
    """sha256 of what is left in an open file, in hex."""
    return hashlib.file_digest(handle, "sha256").hexdigest()


def to_json(value: Any) -> bytes:
    """JSON that people can read and diff."""
    return json.dumps(value, indent=1, sort_keys=True, default=str).encode() + b"\n"
