"""From what the user wrote to the files of the corpus, each once, with the names that ids are made of."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from itertools import takewhile

from batchnlp.data.remote import below, is_remote
from batchnlp.data.sources import partitions
from batchnlp.data.sources.places import Found, find, local
from batchnlp.data.store import CONTROL
from batchnlp.errors import SourceError
from batchnlp.types import InputFile, SourceConfig

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "text": (".txt", ".text", ".md"),
}
LINES = ("jsonl", "csv", "text")
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}


def split_suffix(path: str) -> tuple[str | None, str | None]:
    """Format and compression by the file's name; no format where it says none."""
    stem, suffix = os.path.splitext(path.lower())
    compression = COMPRESSIONS.get(suffix)
    if compression:
        suffix = os.path.splitext(stem)[1]
    found = next((name for name, suffixes in FORMATS.items() if suffix in suffixes), None)
    return (None, None) if compression and found and found not in LINES else (found, compression)


def list_files(config: SourceConfig, output: str | None = None) -> tuple[InputFile, ...]:
    """All files of the corpus, in the order of the paths, sorted inside each; without those that `output` holds."""
    if not all(path.strip() for path in config.paths) or not config.paths:
        raise SourceError("source.path is empty", "name a file, a directory, a glob or a URI")
    if config.format is not None and config.format not in FORMATS:
        raise SourceError(f"source.format {config.format!r} is unknown", f"one of {', '.join(FORMATS)}")
    found: dict[str, InputFile] = {}
    for path in config.paths:
        _refuse_results(path, output)
        for file in _listed(path, config, output):
            found.setdefault(_identity(file.path), file)
    return _named(found.values())


def _identity(path: str) -> str:
    """The same for a file that is reached in two ways, one of them through links.

    But a cache of the hub names files by their content: two links to one blob are two files that are alike.
    """
    real = path if is_remote(path) else os.path.realpath(path)
    return path if os.path.basename(os.path.dirname(real)) == "blobs" else real


def _refuse_results(path: str, output: str | None) -> None:
    """Results as their own input would make another corpus of it each time; control files are no corpus at all."""
    full = path.rstrip("/") if is_remote(path.removeprefix("file://")) else local(path)
    if CONTROL in full.split("/" if is_remote(full) else os.sep):
        raise SourceError(f"{path} is among the control files of a run", "its results are beside them")
    if output and _below(full, output):
        hint = "choose an output.path beside the source, or below it"
        raise SourceError(f"{path} lies in the output of this job, {output}", hint)


def _below(path: str, top: str) -> bool:
    if is_remote(path) or is_remote(top):
        return is_remote(path) and is_remote(top) and below(path, top)
    real, above = os.path.realpath(path), os.path.realpath(top)
    return real == above or real.startswith(os.path.join(above, ""))


def _listed(path: str, config: SourceConfig, output: str | None) -> list[InputFile]:
    place = find(path, config.split)
    entries = [entry for entry in place.files if not output or not _below(entry.path, output)]
    files = [file for entry in entries if (file := _input(entry, place.format or config.format)) is not None]
    if files:
        return files
    if place.exact:
        raise SourceError(f"{path}: the name does not say its format", f"set source.format to {' or '.join(FORMATS)}")
    suffixes = " ".join(suffix for known in FORMATS.values() for suffix in known)
    raise SourceError(f"{path} holds no readable file", f"known are {suffixes} and .gz .zst; or set source.format")


def _input(entry: Found, forced: str | None) -> InputFile | None:
    by_name, compression = split_suffix(entry.path)
    form = forced or by_name
    if form is None:
        return None
    if forced and by_name is None and form in LINES:
        compression = COMPRESSIONS.get(os.path.splitext(entry.path.lower())[1])
    return InputFile(
        path=entry.path,
        name="",
        size=entry.size,
        version=entry.version,
        format=form,
        compression=compression if form in LINES else None,
        partitions=partitions.of_path(entry.path),
    )


def _named(files: Iterable[InputFile]) -> tuple[InputFile, ...]:
    """With names relative to the directory that all have in common."""
    listed = list(files)
    parts = [_absolute(file.path).split("/") for file in listed]
    levels = zip(*(part[:-1] for part in parts), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    names = ["/".join(part[common:]).lstrip("/") for part in parts]
    return tuple(dataclasses.replace(file, name=name) for file, name in zip(listed, names, strict=True))


def _absolute(path: str) -> str:
    return path if is_remote(path) else path.replace(os.sep, "/")
