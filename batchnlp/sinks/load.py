"""Load what a warehouse lacks of an output's finished runs.

What is loaded is decided by the manifests on one side and by the warehouse's own account on the other, so the same
command can be given at any time, and after any crash. Runs that were appended are loaded one after the other; with
`replace_partition` all of them together, because one would take the other's rows away.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import pyarrow as pa

from batchnlp import registry
from batchnlp.data.parts import is_log
from batchnlp.data.results import Finished, batches, finished, schema_of
from batchnlp.errors import BatchnlpError, CorruptError, SinkError, SpecError
from batchnlp.job.sinks import SinkSpec
from batchnlp.sinks.base import Held, Load, Mode, Sink
from batchnlp.sinks.columns import fit, fit_schema
from batchnlp.sinks.gone import Gone
from batchnlp.sinks.shapes import Shape, shapes
from batchnlp.types import PartFile


@dataclass(slots=True)
class Loaded:
    """What a sink did. Filled by `load`."""

    kind: str
    table: str
    runs: list[str] = field(default_factory=list)  # that the table, or one of an unnested column, did not hold before
    rows: int = 0  # documents loaded now
    deleted: int = 0  # documents that a log of changes takes away
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Unit:
    """Files that go into a table together."""

    runs: list[Finished]
    files: list[tuple[Finished, tuple[PartFile, ...]]]
    partition_by: tuple[str, ...]

    def rows(self, *kinds: str) -> int:
        return sum(file.rows for _, files in self.files for file in files if file.kind in kinds)

    def paths(self, *kinds: str) -> list[str]:
        return [path for run, files in self.files for path in run.paths([f for f in files if f.kind in kinds])]

    @property
    def schema(self) -> pa.Schema:
        return schema_of(self.runs)


def load(root: str, spec: SinkSpec) -> Loaded:
    """Load the output `root`. Raises OutputError where it is not finished, SinkError where the warehouse refuses."""
    began, runs = time.monotonic(), finished(root)
    for run in runs:
        check(spec, run.schema, run.partition_by)
    sink: Sink = make(spec)
    loaded, runs_now = Loaded(spec.kind, spec.table), dict[str, None]()
    problems: list[BatchnlpError] = []
    answers: tuple[type[Exception], ...] = (*sink.errors, OSError)
    try:
        with closing(sink):
            sink.start()
            for unit, shape in _missing(sink, spec, runs):
                sink.write(_load(sink, spec, unit, shape, problems))
                loaded.rows += unit.rows("rows") if shape.main else 0
                loaded.deleted += unit.rows("delete") if shape.main else 0
                runs_now.update((run.run, None) for run in unit.runs)
            sink.finalize()
    except answers as error:
        if problems:  # the driver only passes on what it was told
            raise problems[0] from None
        what = " ".join(str(error).split()) or type(error).__name__
        raise SinkError(f"{spec.kind}, table {spec.table}: {what}", "the same command loads what is missing") from error
    loaded.runs = list(runs_now)
    loaded.seconds = round(time.monotonic() - began, 3)
    return loaded


def make(spec: SinkSpec) -> Sink:
    """The sink, with its driver imported; MissingExtraError where that is not installed."""
    sink: Sink = registry.load(registry.SINKS, spec.kind)(spec)
    return sink


def check(spec: SinkSpec, schema: pa.Schema, partition_by: Sequence[str]) -> None:
    """Refuse what cannot work, before anything is computed or loaded. Imports the driver, connects to nothing."""
    make(spec)
    columns = _partition_by(spec, partition_by)
    if spec.mode == "replace_partition" and not columns and spec.partition_by is None:
        hint = "name them in sinks.partition_by or output.partition_by; [] there means the whole table"
        raise SpecError("sinks.write: replace_partition needs partition columns", hint)
    if is_log(schema):
        _check_log(spec)
    shapes(spec, schema, columns)


def _check_log(spec: SinkSpec) -> None:
    """A log of changes says of a row that goes no more than its id."""
    if spec.mode == "replace_partition":
        raise SpecError("sinks.write: replace_partition cannot follow a log of changes", "use upsert, or append")
    if spec.mode == "upsert" and spec.keys != ["id"]:
        raise SpecError(f"sinks.key is {', '.join(spec.keys)}, but a log of changes deletes by id", "use key: id")
    if spec.mode == "append" and spec.unnest:
        raise SpecError("sinks.unnest: in an appended log nobody could tell old entries from new", "use write: upsert")


def _partition_by(spec: SinkSpec, output: Sequence[str]) -> tuple[str, ...]:
    return tuple(output if spec.partition_by is None else spec.partition_by)


def _missing(sink: Sink, spec: SinkSpec, runs: list[Finished]) -> Iterator[tuple[_Unit, Shape]]:
    """What is to be written, in order: tables of unnested columns before the main one."""
    newest = runs[-1]
    partition_by = _partition_by(spec, newest.partition_by)
    for shape in shapes(spec, newest.schema, partition_by):
        held = sink.held(shape.table, [(run.job, run.run) for run in runs])
        for some in _units(spec, runs, held):
            unit = _Unit(some, [(run, _files(spec, run, held)) for run in some], partition_by)
            own = next(s for s in shapes(spec, unit.schema, partition_by) if s.table == shape.table)
            yield unit, own


def _units(spec: SinkSpec, runs: list[Finished], held: Held) -> list[list[Finished]]:
    lacking = [run for run in runs if held.get((run.job, run.run), -1) < run.generation]
    if spec.mode == "replace_partition":
        return [runs] if lacking else []
    return [[run] for run in lacking]


def _files(spec: SinkSpec, run: Finished, held: Held) -> tuple[PartFile, ...]:
    return run.files if spec.mode == "replace_partition" else run.since(held.get((run.job, run.run)))


def _load(sink: Sink, spec: SinkSpec, unit: _Unit, shape: Shape, problems: list[BatchnlpError]) -> Load:
    kinds = ("rows", "delete") if spec.mode == "append" else ("rows",)
    paths = unit.paths(*kinds)
    schema = fit_schema(shape.schema, sink.types)
    mode, by = _mode(spec, unit, shape)
    gone = Gone(spec, by, paths, unit.paths("delete"), unit.schema, sink.types)

    def rows() -> Iterator[pa.RecordBatch]:
        try:
            with gone.checked():
                for batch in batches(paths, unit.schema, shape.columns):
                    yield fit(shape.make(batch), schema, sink.types)
        except (OSError, pa.ArrowException) as error:
            root = unit.runs[0].ledger.store.root
            problem = CorruptError(f"a part of {root} is damaged: {error}", f"batchnlp verify {root} tells which")
            problems.append(problem)
            raise problem from None
        except SpecError as error:  # bad keys
            problems.append(error)
            raise

    def files() -> list[str]:
        for run, own in unit.files:
            run.compare(own)
        return paths

    as_they_are = shape.main and schema == shape.schema and all(run.schema == unit.schema for run in unit.runs)
    about, count = {(run.job, run.run): run.generation for run in unit.runs}, unit.rows(*kinds)
    partition_by = tuple(name for name in unit.partition_by if name in schema.names)
    return Load(shape.table, about, mode, schema, by, gone, partition_by, count, rows, files if as_they_are else None)


def _mode(spec: SinkSpec, unit: _Unit, shape: Shape) -> tuple[Mode, tuple[str, ...]]:
    """(how a table is written; the columns by which rows make way)."""
    if spec.mode == "append":
        return "append", ()
    if spec.mode == "replace_partition":
        return "replace", unit.partition_by
    return "upsert" if shape.main else "replace", tuple(spec.keys)
