"""Parquet: a directory a table, with key=value folders in it, for readers that need no warehouse.

Directories have no transactions, so a load is written beside the tables first. Then one file says what is to be moved in and
what removed: that is the commit. Whoever comes next completes what a crash leaves half done. A reader in that moment
may see rows twice that are being replaced.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from batchnlp.data.parts import ROW_GROUP, partition_folders
from batchnlp.data.store import LocalStore, fsync, to_json
from batchnlp.errors import SpecError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.base import Held, Load
from batchnlp.sinks.columns import Types, new_columns, spelling
from batchnlp.sinks.rewrite import Matcher, rewritten

ACCOUNT = "_batchnlp_loads.json"  # by table: its schema, and the runs it holds
JOURNAL = "_batchnlp_journal.json"  # a load that is committed and not yet moved in
STAGING = "_batchnlp_staging"
LOCK = "_batchnlp.lock"
FILE_BYTES, GROUP_BYTES = 128 << 20, 16 << 20  # of rows in memory; in a file they take a fraction
HIDDEN = ("_", ".")  # what readers of directories pass over begins so


class Parquet:
    """Upsert and replaced partitions are copy on write: files with such rows are written anew without them."""

    types = Types(fixed_lists=True)
    errors: tuple[type[Exception], ...] = (pa.ArrowException,)

    def __init__(self, spec: SinkSpec) -> None:
        if "://" in spec.database:
            raise SpecError(f"sinks.database: {spec.database} is a URI", "kind: parquet writes to local directories")
        self._store = LocalStore(spec.database)
        self._lock: IO[str] | None = None
        self._account: dict[str, Any] = {}
        self._added: list[str] = []
        self._removed: list[str] = []

    def start(self) -> None:
        """Wait for another load into this directory; complete one that a crash cut short."""
        os.makedirs(self._store.root, exist_ok=True)
        self._lock = open(self._store.path(LOCK), "w")  # noqa: SIM115 - held until close
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        if journal := self._store.read(JOURNAL):
            self._apply(json.loads(journal))
        self._store.remove(STAGING)
        self._account = json.loads(self._store.read(ACCOUNT) or b"{}")

    def held(self, table: str, runs: Sequence[tuple[str, str]]) -> Held:
        """From the account; nothing where the directory was removed."""
        if not os.path.isdir(self._store.path(table)):
            self._account.pop(table, None)
        noted = self._account.get(table, {}).get("runs", {})
        return {run: noted["/".join(run)] for run in runs if "/".join(run) in noted}

    def write(self, load: Load) -> None:
        """Write the rows beside the table, and find what they replace."""
        noted = self._account.setdefault(load.table, {"runs": {}})
        noted["schema"] = _stored(_widened(noted, load))
        os.makedirs(self._store.path(load.table), exist_ok=True)  # without it the table would count as dropped
        files = [] if load.mode == "append" else self._files(load.table)
        if load.partition_by:
            self._stage_partitions(load)
        else:
            self._stage_whole(load)
        if load.mode != "append":
            for name, left in rewritten(files, self._read(load), Matcher(load.gone())):
                self._remove(name)
                if left is not None:
                    self._stage(os.path.dirname(name), left)
        noted["runs"] |= {"/".join(run): generation for run, generation in load.runs.items()}

    def finalize(self) -> None:
        """Commit, then move in and remove."""
        journal = {"added": self._added, "removed": self._removed, "account": self._account}
        self._store.replace(JOURNAL, to_json(journal))
        self._apply(journal)

    def close(self) -> None:
        """Let the next load begin."""
        if self._lock is not None:
            self._lock.close()

    def _apply(self, journal: dict[str, Any]) -> None:
        """Can be done again from any point in it."""
        for name in journal["added"]:
            target, staged = self._store.path(name), self._store.path(f"{STAGING}/{name}")
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.exists(staged):
                os.replace(staged, target)
            fsync(os.path.dirname(target))
        for name in journal["removed"]:
            self._store.remove(name)
        self._store.replace(ACCOUNT, to_json(journal["account"]))
        self._store.remove(JOURNAL)
        self._store.remove(STAGING)

    def _stage_partitions(self, load: Load) -> None:
        """A file for each partition in each portion of the rows: there may be more of them than files can be open."""
        for table in load.tables(FILE_BYTES):
            folders = pa.array(partition_folders(table, list(load.partition_by))).dictionary_encode()
            for i, folder in enumerate(folders.dictionary.to_pylist()):
                self._stage(f"{load.table}/{folder}", table.filter(pc.equal(folders.indices, i)))

    def _stage_whole(self, load: Load) -> None:
        """Row group after row group, while the next one is read."""
        tables = load.tables(GROUP_BYTES)
        while (table := next(tables, None)) is not None:
            with self._staged(load.table, load.schema) as writer:
                written = 0
                while table is not None:
                    writer.write_table(table)
                    written += table.nbytes
                    table = next(tables, None) if written < FILE_BYTES else None

    def _stage(self, folder: str, rows: pa.Table) -> None:
        with self._staged(folder, rows.schema) as writer:
            writer.write_table(rows, row_group_size=ROW_GROUP)

    @contextmanager
    def _staged(self, folder: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
        name = f"{folder}/part-{uuid.uuid4().hex[:16]}.parquet"
        path = self._store.path(f"{STAGING}/{name}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
            yield writer
        fsync(path)
        fsync(os.path.dirname(path))
        self._added.append(name)

    def _remove(self, name: str) -> None:
        if name in self._added:
            self._added.remove(name)
            self._store.remove(f"{STAGING}/{name}")
        else:
            self._removed.append(name)

    def _path(self, name: str) -> str:
        return self._store.path(f"{STAGING}/{name}" if name in self._added else name)

    def _files(self, table: str) -> list[tuple[str, int]]:
        """The files that a reader of the table would see after this load, as far as it has come, and their rows."""
        names = [name for name in self._added if name.startswith(f"{table}/")]
        for folder, folders, files in os.walk(self._store.path(table)):
            folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
            shown = (name for name in sorted(files) if name.endswith(".parquet") and not name.startswith(HIDDEN))
            names += [os.path.relpath(os.path.join(folder, name), self._store.root) for name in shown]
        return [(name, pq.read_metadata(self._path(name)).num_rows) for name in names if name not in self._removed]

    def _read(self, load: Load) -> Callable[[str, Sequence[str] | None], pa.Table]:
        def read(name: str, columns: Sequence[str] | None) -> pa.Table:
            if columns is None:
                with pq.ParquetFile(self._path(name)) as parquet:
                    return parquet.read()
            return ds.dataset([self._path(name)], load.gone().schema, "parquet").to_table(list(columns))

        return read


def _widened(noted: dict[str, Any], load: Load) -> pa.Schema:
    """The table's schema with the columns of the load."""
    if "schema" not in noted:
        return load.schema
    held = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(noted["schema"])))
    wanted = {field.name: spelling(field.type) for field in load.schema}
    for name in new_columns({field.name: spelling(field.type) for field in held}, wanted, load.table):
        held = held.append(load.schema.field(name))
    return held


def _stored(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode()
