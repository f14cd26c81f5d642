"""The finished runs of an output, for those who load them elsewhere. Their files are those of the manifest, never a glob."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchnlp.data.ledger import SUCCESS, Ledger, open_ledgers
from batchnlp.data.parts import is_log
from batchnlp.data.store import sha256_of
from batchnlp.errors import CorruptError, OutputError
from batchnlp.types import PartFile

READAHEAD = 4  # files, and batches of each, that are read before they are asked for; a part is 64 MB at the most
GENERATION = re.compile(r"-r(\d+)$")


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that is complete and within its limit. Filled from its plan and its manifest."""

    ledger: Ledger
    job: str
    run: str  # without the generation
    generation: int  # 0, or how often dead letters were tried again
    schema: pa.Schema  # of the results, without metadata
    partition_by: tuple[str, ...]
    files: tuple[PartFile, ...]  # those with results, and that of a log with deletes

    @property
    def log(self) -> bool:
        """Whether it is a part of a log of changes."""
        return is_log(self.schema)

    @classmethod
    def of(cls, ledger: Ledger) -> Finished:
        """Raises OutputError where the run is not complete, or over its limit."""
        manifest = ledger.manifest()
        if manifest is None or not manifest["success"]:
            gates = (manifest or {}).get("gates")
            failed = f"below its gates: {gates}" if gates else "over its limit of dead letters"
            state = "not complete" if manifest is None else failed
            raise OutputError(f"run {ledger.run} in {ledger.store.root} is {state}", "run the job again, then load")
        tree, (plan, _) = ledger.plan_tree() or {}, ledger.plan()
        job = manifest.get("job") or tree.get("job") or ledger.store.root
        partition_by = tuple(tree.get("facts", {}).get("partition_by") or ())
        schema = plan.schema.remove_metadata()
        return cls(ledger, job, ledger.run, _generation(manifest), schema, partition_by, _files(manifest))

    def since(self, generation: int | None) -> tuple[PartFile, ...]:
        """The files that a warehouse lacks which holds that generation of the run, or nothing of it."""
        if generation is None:
            return self.files
        before = {file.name for file in self.at(generation)}
        return tuple(file for file in self.files if file.name not in before)

    def at(self, generation: int) -> tuple[PartFile, ...]:
        """The files of an earlier generation, or of this one."""
        if generation >= self.generation:
            return self.files
        name = f"{self.ledger.control}/manifest-{generation}.json"
        earlier = self.ledger.manifest(name)
        if earlier is None:
            path = self.ledger.store.path(name)
            raise CorruptError(f"{path} is gone, so nobody knows what was loaded before", "load into a new table")
        return _files(earlier)

    def paths(self, files: Sequence[PartFile]) -> list[str]:
        """Where the files are on this host; CorruptError where one is not as it was committed."""
        return [self._whole(file) for file in files]

    def compare(self, files: Sequence[PartFile]) -> None:
        """For readers that do not check pages: CorruptError where a file is not byte by byte what was committed."""
        for file in files:
            path = self.ledger.store.path(file.name)
            with self.ledger.store.open(file.name) as handle:
                whole = sha256_of(handle) == file.sha256
            if not whole:
                hint = f"batchnlp verify {self.ledger.store.root} tells what else is"
                raise CorruptError(f"{path} is damaged: its checksum differs", hint)

    def _whole(self, file: PartFile) -> str:
        path = self.ledger.store.path(file.name)
        hint = f"batchnlp verify {self.ledger.store.root} tells what is damaged"
        try:
            local = self.ledger.store.local(file.name)
            with pq.ParquetFile(local) as parquet:
                rows = parquet.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            raise CorruptError(f"{path} cannot be read: {' '.join(str(error).split())}", hint) from None
        if rows != file.rows:
            raise CorruptError(f"{path} has {rows:,} rows instead of {file.rows:,}", hint)
        return local


def finished(root: str) -> list[Finished]:
    """The live runs of an output, oldest first; OutputError unless all of them are complete and within their limits."""
    ledgers = open_ledgers(root)
    runs = [Finished.of(ledger) for ledger in ledgers]
    if ledgers[0].store.read(SUCCESS) is None:
        raise OutputError(f"{root} has no {SUCCESS}", "run the job again, then load")
    return runs


def schema_of(runs: Sequence[Finished]) -> pa.Schema:
    """All columns of some runs; OutputError where one has another type in another run."""
    try:
        return pa.unify_schemas([run.schema for run in runs])
    except pa.ArrowException as error:
        root, reason = runs[0].ledger.store.root, " ".join(str(error).split())
        raise OutputError(
            f"the runs in {root} do not go together: {reason}", "load them from outputs of their own"
        ) from None


def batches(paths: Sequence[str], schema: pa.Schema, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of some files, in their order; columns that a file lacks are null."""
    if not paths:
        return
    # Not as a partitioned data set: the key=value folders are columns in the file already.
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    files = ds.dataset(list(paths), schema, ds.ParquetFileFormat(default_fragment_scan_options=options))
    readahead: dict[str, Any] = {"batch_readahead": READAHEAD, "fragment_readahead": READAHEAD}
    yield from (batch for batch in files.to_batches(list(columns), **readahead) if len(batch))


def _generation(manifest: dict[str, Any]) -> int:
    found = GENERATION.search(str(manifest.get("run", "")))
    return int(found[1]) if found else 0


def _files(manifest: dict[str, Any]) -> tuple[PartFile, ...]:
    fields = PartFile.__dataclass_fields__
    files = [PartFile(**{name: tree[name] for name in fields}) for tree in manifest["files"]]
    return tuple(file for file in files if file.kind in ("rows", "delete") and file.rows)
