"""What a single path of the job stands for: a file, a directory, a glob, a URI, or a data set of `datasets`."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from batchnlp.data.remote import filesystem, is_remote, reason
from batchnlp.data.sources.storage import stamp
from batchnlp.data.store import CONTROL
from batchnlp.errors import MissingExtraError, SourceError
from batchnlp.words import nearest

DATASETS = "datasets://"


class Found(NamedTuple):
    """A file that is there."""

    path: str
    size: int
    version: str


class Place(NamedTuple):
    """The files that a path stands for."""

    files: list[Found]
    exact: bool = False  # the path named one file, so leaving it out would be wrong
    format: str | None = None  # known without a look at the names


def find(path: str, split: str | None) -> Place:
    """What is at `path`."""
    if path.startswith(DATASETS):
        return _data_set(path, split)
    return _remote(path) if is_remote(path.removeprefix("file://")) else _local(path, split)


def local(path: str) -> str:
    """The absolute path of a local one."""
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def _local(path: str, split: str | None) -> Place:
    full = local(path)
    if os.path.isfile(full) or (os.path.islink(full) and not os.path.isdir(full)):
        return Place([_stat(full)], exact=True)
    if os.path.isdir(full):
        saved = _saved(full, split)
        return Place(_stats(saved), format="arrow") if saved is not None else Place(_stats(_walk(full)))
    if glob.has_magic(path):
        files = _matching(full)
        if files:
            return Place(_stats(files))
        hint = "check the pattern, and quote it, so that the shell leaves it alone; outputs of batchnlp must be named"
        raise SourceError(f"{path} matches no file", hint)
    raise SourceError(f"{path} does not exist", _hint(full))


def _hint(full: str) -> str:
    """The nearest name beside the missing one; higher up when the directory is missing too."""
    parent, name = os.path.split(full)
    if not os.path.isdir(parent):
        return f"there is no directory {parent}"
    try:
        near = nearest(name, sorted(os.listdir(parent)))
    except OSError as error:
        return f"{parent} cannot be listed: {error.strerror}"
    return f"did you mean {os.path.join(parent, near)}?" if near else f"nothing in {parent} has a name like it"


def _matching(pattern: str) -> list[str]:
    """What a pattern matches, directories with all that is in them. It finds its way into an output of batchnlp only
    where it names the level that the output's files are on: not by `**`, and not as a directory."""
    _refuse_unlisted(pattern)
    fixed = os.path.dirname(pattern[: re.search(r"[*?[]", pattern).start()])  # type: ignore[union-attr]
    files: list[str] = []
    for match in sorted(glob.glob(pattern, recursive=True)):
        folders = match[len(fixed) :].strip(os.sep).split(os.sep)
        above = [os.path.join(fixed, *folders[: i + 1]) for i in range(len(folders))]
        walked = above if "**" in pattern else above[-1:]
        if CONTROL not in folders and not any(os.path.isdir(os.path.join(folder, CONTROL)) for folder in walked):
            files += _walk(match) if os.path.isdir(match) else [match]
    return files


def _refuse_unlisted(pattern: str) -> None:
    """A pattern passes over directories that cannot be listed, and what is in them would be lost in silence."""
    folder = os.path.dirname(pattern)
    for found in glob.glob(os.path.join(folder, ""), recursive=True):
        if not os.access(found, os.R_OK | os.X_OK):
            _unlisted(PermissionError(errno.EACCES, os.strerror(errno.EACCES), found.rstrip(os.sep)))
    if glob.has_magic(folder):
        _refuse_unlisted(folder)


def _walk(top: str) -> list[str]:
    """Files below `top`, but nothing hidden (`.`), nothing that is not data by convention (`_`), and no output of
    batchnlp unless it is `top` itself. Links are followed, and a directory counts once."""
    found: list[str] = []
    seen: set[str] = set()
    for directory, inner, names in os.walk(top, onerror=_unlisted, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen or (directory != top and os.path.isdir(os.path.join(directory, CONTROL))):
            inner.clear()
            continue
        seen.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith(("_", ".")))
        found += [os.path.join(directory, name) for name in names if not name.startswith(("_", "."))]
    return sorted(found)


def _unlisted(error: OSError) -> None:
    raise SourceError(f"{error.filename} cannot be listed: {error.strerror}", "make it readable, or leave it out")


def _stats(paths: Iterable[str]) -> list[Found]:
    """Files and what cannot be looked at, which fails; pipes and sockets are left out."""
    return [_stat(path) for path in paths if os.path.isfile(path) or not os.path.exists(path)]


def _stat(path: str) -> Found:
    try:
        state = os.stat(path)
    except OSError as error:
        what = "is a link to nothing" if os.path.islink(path) else f"cannot be read: {error.strerror}"
        raise SourceError(f"{path} {what}", "mend it, or leave it out") from None
    return Found(path, state.st_size, str(state.st_mtime_ns))


def _saved(directory: str, split: str | None) -> list[str] | None:
    """The files of a directory that `save_to_disk` wrote; None when it did not."""
    index = os.path.join(directory, "dataset_dict.json")
    if os.path.isfile(index):
        splits = _json(index).get("splits", [])
        return _saved(os.path.join(directory, _choose(directory, split, splits)), None)
    state = os.path.join(directory, "state.json")
    if not os.path.isfile(state) or "_data_files" not in (content := _json(state)):
        return None
    return [os.path.join(directory, entry["filename"]) for entry in content["_data_files"]]


def _choose(place: str, split: str | None, splits: list[str]) -> str:
    wanted = split or ("train" if len(splits) != 1 else splits[0])
    if wanted in splits:
        return wanted
    near = nearest(wanted, splits)
    hint = f"did you mean {near}?" if near else "set source.split"
    raise SourceError(f"{place} has no split {wanted!r}, only {', '.join(splits)}", hint)


def _json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {reason(error)}", "save the data set again") from error
    return content if isinstance(content, dict) else {}


def _remote(uri: str) -> Place:
    fs, path = filesystem(uri, SourceError)
    try:
        if glob.has_magic(path):
            details = _outside(fs, path, fs.glob(path, detail=True))
        elif fs.isdir(path):
            found = fs.find(path, detail=True)
            outputs = {name.partition(f"/{CONTROL}/")[0] for name in found if f"/{CONTROL}/" in name}
            outputs.discard(path.rstrip("/"))
            details = {n: info for n, info in found.items() if _visible(n, path) and not outputs & set(_folders(n))}
        elif fs.exists(path):
            return Place([_entry(fs, fs.info(path))], exact=True)
        else:
            details = {}
    except OSError as error:
        raise SourceError(f"{uri} cannot be listed: {reason(error)}", "check address and credentials") from error
    files = [_entry(fs, details[name]) for name in sorted(details) if details[name].get("type") != "directory"]
    if not files:
        raise SourceError(f"{uri} does not exist, or holds no file", "check the address")
    return Place(files)


def _outside(fs: Any, pattern: str, found: dict[str, Any]) -> dict[str, Any]:
    """What a pattern matches, less the control files of outputs of batchnlp, and less their results where `**` led."""
    found = {name: info for name, info in found.items() if CONTROL not in name.split("/")}
    if "**" not in pattern:
        return found
    folders = {folder for name in found for folder in _folders(name)}
    outputs = {folder for folder in folders if fs.isdir(f"{folder}/{CONTROL}")}
    return {name: info for name, info in found.items() if not outputs & set(_folders(name))}


def _folders(name: str) -> list[str]:
    """All folders that a file is in."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _visible(name: str, top: str) -> bool:
    inner = name[len(top) :] if name.startswith(top) else name
    return not any(part.startswith(("_", ".")) for part in inner.split("/"))


def _entry(fs: Any, info: dict[str, Any]) -> Found:
    return Found(fs.unstrip_protocol(info["name"]), int(info.get("size") or 0), stamp(info))


def _data_set(uri: str, split: str | None) -> Place:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("this needs the package datasets", "pip install datasets") from error
    name = uri.removeprefix(DATASETS)
    try:
        loaded = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise SourceError(f"{uri} cannot be loaded: {reason(error)}", "check its name, and source.split") from error
    return Place(_stats(entry["filename"] for entry in loaded.cache_files), format="arrow")
