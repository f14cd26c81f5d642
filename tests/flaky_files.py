"""An object store in memory with all the bad habits of a real one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from batchnlp.data.object_store import ObjectStore


class FlakyFiles:
    """What `ObjectStore` needs of fsspec. Errors come before a request is carried out, or after: a lost answer. Writes
    may be delayed: they time out, and come through at some later request, in any order."""

    protocol = ("az",)  # a store that knows conditions

    def __init__(self, seed: int = 0, errors: float = 0.0) -> None:
        self.objects: dict[str, bytes] = {}
        self.random, self.errors = Random(seed), errors
        self.asked = self.failed = self.lost = self.delayed = 0
        self._late: list[Callable[[], None]] = []

    def store(self, root: str = "mem://out") -> ObjectStore:
        """A store of its own over these files: another process, as it were."""
        return ObjectStore(self, "out", root)

    def settle(self) -> None:
        """All that was delayed comes through."""
        while self._late:
            self._late.pop(self.random.randrange(len(self._late)))()

    def _request(self, act: Callable[[], Any], *, write: bool = False) -> Any:
        self.asked += 1
        if self._late and self.random.random() < 0.5:
            self._late.pop(self.random.randrange(len(self._late)))()
        drawn = self.random.random() / self.errors if self.errors else 1.0
        if drawn >= 1:
            return act()
        self.failed += 1
        if drawn < 0.35:
            raise OSError(errno.EBUSY, self.random.choice(["503 Slow Down", "409 ConditionalRequestConflict"]))
        if drawn < 0.7 or not write:
            self.lost += 1
            _quietly(act)
            raise ConnectionError("the connection was reset")
        self.delayed += 1
        self._late.append(lambda: _quietly(act))
        raise TimeoutError("no answer in time")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite") -> None:
        def act() -> None:
            if mode == "create" and path in self.objects:
                raise FileExistsError(errno.EEXIST, "412 Precondition Failed")
            self.objects[path] = bytes(value)

        self._request(act, write=True)

    def put_file(self, local: str, path: str) -> None:
        with open(local, "rb") as handle:
            data = handle.read()
        self.pipe_file(path, data)

    def cp_file(self, one: str, two: str) -> None:
        def act() -> None:
            if one not in self.objects:
                raise _missing(one)
            self.objects[two] = self.objects[one]

        self._request(act, write=True)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        def act() -> bytes:
            if path not in self.objects:
                raise _missing(path)
            return self.objects[path][start:end]

        return bytes(self._request(act))

    def info(self, path: str) -> dict[str, Any]:
        def act() -> dict[str, Any]:
            if path in self.objects:
                return {"name": path, "size": len(self.objects[path]), "type": "file"}
            raise _missing(path)

        return dict(self._request(act))

    def modified(self, path: str) -> Any:
        from datetime import UTC, datetime

        return self._request(lambda: datetime.now(UTC))

    def ls(self, path: str, detail: bool = False) -> list[str]:
        def act() -> list[str]:
            below = [name[len(path) + 1 :] for name in self.objects if name.startswith(f"{path}/")]
            if not below:
                raise _missing(path)
            return sorted({f"{path}/{name.partition('/')[0]}" for name in below})

        return list(self._request(act))

    def find(self, path: str, detail: bool = True) -> dict[str, Any]:
        def act() -> dict[str, Any]:
            names = [name for name in self.objects if name == path or name.startswith(f"{path}/")]
            return {name: {"name": name, "size": len(self.objects[name])} for name in names}

        return dict(self._request(act))

    def rm(self, paths: list[str]) -> None:
        def act() -> None:
            for path in paths:
                self.objects.pop(path, None)

        self._request(act, write=True)


def _missing(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _quietly(act: Callable[[], Any]) -> None:
    with suppress(OSError):
        act()
