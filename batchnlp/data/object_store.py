"""An output on an object store, through fsspec: S3, and by the same interface Google Cloud Storage, Azure and others.

Objects appear whole, so there are no temporary files. What is not as on a disk:

- requests fail now and then, and are made again, with growing pauses of random length;
- an answer may get lost after the request was carried out: whoever is then told that a name exists looks whether it is
  his own object that stands there;
- whether a name can be made exclusively (`If-None-Match: *`) is up to the store, and some take the condition and ignore it.
  So it is tried out before anything else. Where it cannot be done, only one run may write at a time, and that is said.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar

from batchnlp.data.remote import filesystem, reason
from batchnlp.data.store import CONTROL, explain_full
from batchnlp.errors import OutputError, StoppedError
from batchnlp.types import many

Result = TypeVar("Result")

TRIES = 8  # of a request, which with the pauses takes about a minute
PAUSE, LONGEST = 0.25, 20.0  # seconds: the first pause at the most, and any
PROBE, UPLOAD = ".probe-", "?uploadId="
READ = 8 << 20  # bytes that are read at a time
CONDITIONAL = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")  # where fsspec hands the condition on
BUSY = (0, 408, 409, 425, 429)  # HTTP status of what may go well later; 0 is none
S3 = ("botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError", "aiohttp.ClientError")
AZURE = ("azure.core.exceptions.AzureError",)
GOOGLE = ("gcsfs.retry.HttpError", "google.auth.exceptions.GoogleAuthError", "aiohttp.ClientError")
ERRORS = {"s3": S3, "s3a": S3, "gs": GOOGLE, "gcs": GOOGLE, "az": AZURE, "abfs": AZURE, "abfss": AZURE}
MEANT = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ParamValidationError")


class ObjectStore:
    """Objects below a prefix."""

    def __init__(self, fs: Any, prefix: str, root: str) -> None:
        self.root = root
        self._fs, self._prefix = fs, prefix.rstrip("/")
        protocols = (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
        self._conditional = any(name in CONDITIONAL for name in protocols)
        self._errors: tuple[type[Exception], ...] = (OSError, *_errors(protocols))
        self._exclusive: bool | None = None  # not known before it was tried
        self._sizes: dict[str, int] | None = None  # while a snapshot lasts
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def at(cls, uri: str) -> ObjectStore:
        """The store of a URI. OutputError or MissingExtraError where there is none."""
        fs, prefix = filesystem(uri, OutputError, cached=False)
        return cls(fs, prefix, uri.rstrip("/"))

    def path(self, name: str) -> str:
        """The URI."""
        return f"{self.root}/{name}" if name else self.root

    # --- writing

    def check(self) -> str:
        """Write a name twice; of two exclusive writers one must lose."""
        name, self._exclusive = f"{CONTROL}/{PROBE}{uuid.uuid4().hex}", self._conditional
        try:
            won = [self._create(name, data) for data in (b"first", b"second")]
            self._exclusive = self._exclusive and won == [True, False] and self.read(name) == b"first"
            self.remove(name)
        except FileNotFoundError:
            raise OutputError(f"{self.root} cannot be written", "there is no such bucket; create it first") from None
        except StoppedError as error:
            raise OutputError(error.message, "check address and credentials") from None
        if self._exclusive:
            return ""
        what = f"{self.root} does not keep two runs from writing at once"
        return f"{what}, as its store makes no names exclusively: see to it that only one does"

    def create(self, name: str, data: bytes) -> bool:
        """Exclusive where the store can; an object of the same content is ours, and its answer got lost."""
        if self._exclusive is None:
            self.check()
        return self._create(name, data)

    def _create(self, name: str, data: bytes) -> bool:
        if not self._exclusive and self.size(name) is not None:
            return False
        try:
            mode = {"mode": "create"} if self._exclusive else {}
            self._again(lambda: self._fs.pipe_file(self._inner(name), data, **mode))
        except FileExistsError:
            return self.read(name) == data
        except NotImplementedError:
            self._exclusive = False
            return self._create(name, data)
        return True

    def replace(self, name: str, data: bytes | Iterable[bytes]) -> None:
        """One request, or the parts of an upload that counts when it is complete."""
        if isinstance(data, bytes):
            self._again(lambda: self._fs.pipe_file(self._inner(name), data))
            return
        with self.writing(name) as path, open(path, "wb") as handle:
            handle.writelines(data)

    @contextmanager
    def writing(self, name: str, *, private: bool = False) -> Iterator[str]:
        """A temporary file, which is uploaded; who may read the object is up to the bucket."""
        handle, path = tempfile.mkstemp(prefix="batchnlp-")
        os.close(handle)
        try:
            with explain_full(os.path.dirname(path)):
                yield path
            self._again(lambda: self._fs.put_file(path, self._inner(name)))
            if self._sizes is not None:
                self._sizes[name] = os.path.getsize(path)
        finally:
            os.unlink(path)

    def publish(self, source: str, name: str) -> None:
        """A copy inside the store. Done again it does no harm: the source never changes."""
        self._again(lambda: self._fs.cp_file(self._inner(source), self._inner(name)))
        if self._sizes is not None and source in self._sizes:
            self._sizes[name] = self._sizes[source]

    # --- reading

    def read(self, name: str) -> bytes | None:
        """The whole object."""
        with suppress(FileNotFoundError):
            return bytes(self._again(lambda: self._fs.cat_file(self._inner(name))))
        return None

    def open(self, name: str) -> io.BufferedReader:
        """Read in blocks, each of which is asked for again where it fails."""
        size = self.size(name)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path(name))
        inner = self._inner(name)
        raw = _Reader(lambda a, b: bytes(self._again(lambda: self._fs.cat_file(inner, start=a, end=b))), size)
        return io.BufferedReader(raw, READ)

    def local(self, name: str) -> str:
        """A copy on this host, until the process ends."""
        path = os.path.join(self.scratch(os.path.dirname(name)), os.path.basename(name))
        if not os.path.exists(path):
            with self.open(name) as source, explain_full(os.path.dirname(path)), open(f"{path}.part", "wb") as target:
                shutil.copyfileobj(source, target, READ)
            os.replace(f"{path}.part", path)
        return path

    def size(self, name: str) -> int | None:
        """By its listing. What a snapshot does not know is looked for, unless it is in staging: there most is gone."""
        if self._sizes is not None and (name in self._sizes or "/staging/" in name):
            return self._sizes.get(name)
        info = self._info(name)
        return None if info is None else int(info["size"])

    def modified(self, name: str) -> float | None:
        """By its listing."""
        info = self._info(name)
        if info is None:
            return None
        with suppress(FileNotFoundError):
            return float(self._again(lambda: self._fs.modified(self._inner(name))).timestamp())
        return None

    def names(self, folder: str) -> list[str]:
        """Sorted."""
        try:
            found = self._again(lambda: self._fs.ls(self._inner(folder), detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        inside = (path.rstrip("/").removeprefix(f"{self._inner(folder)}/") for path in found)
        return sorted(name for name in inside if name and "/" not in name)

    def walk(self, enter: Callable[[str, str], bool]) -> Iterator[tuple[str, list[str]]]:
        """From one listing of all there is."""
        folders: dict[str, list[str]] = {}
        for name in self._list(""):
            folder, _, last = name.rpartition("/")
            folders.setdefault(folder, []).append(last)
        for folder, names in sorted(folders.items()):
            steps = folder.split("/") if folder else []
            if all(enter("/".join(steps[:i]), step) for i, step in enumerate(steps)):
                yield folder, names

    def guard(self, name: str) -> AbstractContextManager[None]:
        """There is nothing to hold on to."""
        return nullcontext()

    def scratch(self, name: str) -> str:
        """On this host, until the process ends."""
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="batchnlp-")
        path = os.path.join(self._scratch.name, name)
        os.makedirs(path, exist_ok=True)
        return path

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One listing instead of a request a file; this store's own changes are followed."""
        if self._sizes is not None:
            yield
            return
        self._sizes = self._list("")
        try:
            yield
        finally:
            self._sizes = None

    # --- removing

    def set_aside(self, folder: str, name: str) -> bool:
        """Objects have no folders."""
        return False

    def remove(self, name: str) -> None:
        """The object, and all below it; bulk deletes keep quiet about what they leave, so it is looked for again."""
        for _ in range(TRIES):
            left = self._list(name)
            if left:
                with suppress(FileNotFoundError):
                    self._again(lambda left=left: self._fs.rm([self._inner(one) for one in left]))  # type: ignore[misc]
            if self._sizes is not None:
                self._sizes = {known: size for known, size in self._sizes.items() if known not in left}
            if len(left) < 2:
                return
        raise StoppedError(f"{self.path(name)} cannot be removed", "may these credentials delete?")

    def prune(self, folder: str) -> None:
        """Objects have no folders."""

    def now(self) -> float:
        """By an object that is written now."""
        name = f"{CONTROL}/{PROBE}{uuid.uuid4().hex}"
        self.replace(name, b"")
        now = self.modified(name)
        self.remove(name)
        return time.time() if now is None else now

    def unfinished(self, seconds: float) -> list[str]:
        """Probes that came late; uploads in parts on S3, of which other stores let go by themselves."""
        now = self.now()
        probes = (f"{CONTROL}/{name}" for name in self.names(CONTROL) if name.startswith(PROBE))
        found = [name for name in probes if now - (self.modified(name) or now) > seconds]
        return [*found, *self._uploads(now - seconds)] if hasattr(self._fs, "call_s3") else found

    def _uploads(self, before: float) -> Iterator[str]:
        bucket, _, prefix = self._prefix.partition("/")
        marker: dict[str, str] = {}
        while True:
            asked = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", **marker}
            answer = self._again(lambda asked=asked: self._fs.call_s3("list_multipart_uploads", **asked))  # type: ignore[misc]
            for upload in answer.get("Uploads", []):
                if upload["Initiated"].timestamp() < before:
                    yield f"{upload['Key'].removeprefix(asked['Prefix'])}{UPLOAD}{upload['UploadId']}"
            if not answer.get("IsTruncated"):
                return
            marker = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def abandon(self, name: str) -> None:
        """Abort the upload."""
        if UPLOAD not in name:
            return self.remove(name)
        name, _, upload = name.rpartition(UPLOAD)
        bucket, _, key = self._inner(name).partition("/")
        with suppress(FileNotFoundError):
            named = {"Bucket": bucket, "Key": key, "UploadId": upload}
            self._again(lambda: self._fs.call_s3("abort_multipart_upload", **named))
        return None

    # --- requests

    def _inner(self, name: str) -> str:
        return f"{self._prefix}/{name}" if name else self._prefix

    def _info(self, name: str) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            info: dict[str, Any] = self._again(lambda: self._fs.info(self._inner(name)))
            return info if info["type"] == "file" else None
        return None

    def _list(self, name: str) -> dict[str, int]:
        """The sizes of all objects below `name`, or of the object `name`."""
        try:
            found = self._again(lambda: self._fs.find(self._inner(name), detail=True))
        except FileNotFoundError:
            return {}
        below, exact = f"{self._inner(name)}/", self._inner(name)
        ours = ((path, info) for path, info in found.items() if path == exact or path.startswith(below))
        return {path[len(self._prefix) + 1 :]: int(info.get("size") or 0) for path, info in ours}

    def _again(self, call: Callable[[], Result]) -> Result:
        """Carry out a request, again as long as it may help; FileExistsError and FileNotFoundError are answers."""
        for tried in range(1, TRIES + 1):
            try:
                return call()
            except self._errors as error:
                if answer := _answer(error, self.root):
                    raise answer from error
                if tried == TRIES:
                    what = f"{self.root} does not answer, {many(TRIES, 'time')} in a row: {reason(error)}"
                    raise StoppedError(what, "the same command resumes when it does") from error
            time.sleep(random.uniform(0, min(PAUSE * 2**tried, LONGEST)))
        raise AssertionError


class _Reader(io.RawIOBase):
    """An object as a file, read by ranges."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch, self._size, self._at = fetch, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._fetch(self._at, stop)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _errors(protocols: Iterable[str]) -> list[type[Exception]]:
    """What the libraries below fsspec raise that is no OSError, as far as they are installed."""
    found = []
    for dotted in {name for protocol in protocols for name in ERRORS.get(protocol, ())}:
        module, _, name = dotted.rpartition(".")
        with suppress(ImportError, AttributeError):
            found.append(getattr(importlib.import_module(module), name))
    return found


def _answer(error: Exception, root: str) -> Exception | None:
    """What is no mishap but an answer, as the exception to raise; None where the request may be made again."""
    status = _status(error)
    if isinstance(error, FileExistsError) or status == 412:
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return error
    if status == 501 or (isinstance(error, OSError) and error.errno == errno.ENOSYS):
        return NotImplementedError(reason(error))
    meant = isinstance(error, PermissionError) or type(error).__name__ in MEANT
    if meant or (status < 500 and status not in BUSY):
        hint = "check address and credentials; the same command resumes"
        return StoppedError(f"{root} refuses: {reason(error)}", hint)
    return None


def _status(error: BaseException | None) -> int:
    """The HTTP status of an answer, 0 where there is none; the libraries keep it in different places."""
    while error is not None:
        response = getattr(error, "response", None)
        found = response["ResponseMetadata"].get("HTTPStatusCode") if isinstance(response, dict) else None
        found = found or getattr(error, "status_code", None) or getattr(error, "code", None)
        if isinstance(found, int):
            return found
        error = error.__cause__
    return 0
