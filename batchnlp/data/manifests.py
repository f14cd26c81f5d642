"""manifest.json: what a run came to, and its files. Written and, but for the files, read without holding a million of them.

One JSON object, `files` last and a line each, so that all that is before them can be read alone.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

from batchnlp.data.store import Store, explain_full

FILES = b'"files": ['


class Writer:
    """Takes the files one after the other and the rest at the end; they wait in a temporary file."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        folder = store.scratch(os.path.dirname(name))
        with explain_full(folder):
            self._lines: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._any = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lines.close()

    def add(self, files: Iterable[dict[str, Any]]) -> None:
        """Some more files."""
        with explain_full(self._store.root):
            for file in files:
                self._lines.write((b",\n" if self._any else b"") + json.dumps(file, sort_keys=True).encode())
                self._any = True

    def close(self, head: dict[str, Any]) -> None:
        """Write the manifest, in the place of an older one."""
        with explain_full(self._store.root):
            self._lines.flush()
        self._store.replace(self._name, self._pieces(head))

    def _pieces(self, head: dict[str, Any]) -> Iterator[bytes]:
        for key in sorted(head):
            yield (b"{" if key == min(head) else b"") + f"{json.dumps(key)}: ".encode()
            yield json.dumps(head[key], sort_keys=True, default=str).encode() + b",\n"
        yield FILES + b"\n"
        self._lines.seek(0)
        while block := self._lines.read(1 << 20):
            yield block
        yield b"\n]}\n"


def read(store: Store, name: str) -> dict[str, Any] | None:
    """All of it, None where there is none. Raises ValueError, LookupError or TypeError where it is damaged."""
    data = store.read(name)
    if data is None:
        return None
    tree = dict(json.loads(data))
    return {**_checked(tree), "files": [dict(file) for file in tree["files"]]}


def head(store: Store, name: str) -> dict[str, Any] | None:
    """All but the files; None and errors as above."""
    try:
        with store.open(name) as handle:
            lines: list[bytes] = []
            for line in handle:
                if line.startswith(FILES):
                    return _checked(dict(json.loads(b"".join(lines).rstrip(b",\n") + b"}")))
                lines.append(line)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _checked(dict(json.loads(b"".join(lines))))  # laid out otherwise: read whole


def _checked(tree: dict[str, Any]) -> dict[str, Any]:
    sums = {key: int(tree[key]) for key in ("rows", "ok", "dead")}
    return {**tree, **sums, "success": bool(tree["success"])}
