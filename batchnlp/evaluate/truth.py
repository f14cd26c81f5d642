"""The labels that results are held against, and the join: every row with a result and a label, and how many have one only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.dataset as ds
import pyarrow.types as pt

from batchnlp.data.sources.columns import is_string, plain
from batchnlp.data.sources.listing import split_suffix
from batchnlp.errors import SourceError, SpecError
from batchnlp.evaluate.outputs import Output, column
from batchnlp.job.evaluate import EvaluateSpec

NO_GROUP = "(none)"  # of a row whose group is null
FORMATS = {"parquet": "parquet", "arrow": "ipc", "jsonl": "json"}


@dataclass(frozen=True, slots=True)
class Joined:
    """What is judged: one entry for each result that has a label (each result, where none are asked for)."""

    results: pa.Table  # id, and the columns of the task
    truth: pa.Array | None
    groups: dict[str, list[str]] = field(default_factory=dict)
    rows: int = 0  # results in all
    without_label: int = 0
    without_result: int = 0

    def take(self, chosen: Sequence[int]) -> Joined:
        """Some of them."""
        at = pa.array(chosen, pa.int64())
        groups = {name: [values[i] for i in chosen] for name, values in self.groups.items()}
        truth = None if self.truth is None else self.truth.take(at)
        return Joined(self.results.take(at), truth, groups, self.rows, self.without_label, self.without_result)


@dataclass(frozen=True, slots=True)
class Where:
    """Where the labels and the groups are. Filled from the job, checked against the schemas."""

    file: str  # "" where the results carry the labels
    column: str  # "" where there are none
    kind: pa.DataType
    id: str
    groups: tuple[str, ...]  # in the results
    file_groups: tuple[str, ...]  # in the file

    @classmethod
    def of(cls, ask: EvaluateSpec, schema: pa.Schema, id_column: str) -> Where:
        """SourceError where a column is not there. Reads the file's schema, no rows."""
        file, name = _split(ask.labels, schema)
        if not file:
            kind = schema.field(column(schema.names, name, "the results")).type if name else pa.null()
            groups = tuple(column(schema.names, group, "the results") for group in ask.groups)
            return cls("", name, plain(kind), "id", groups, ())
        names = _open(file, (name, id_column, "id", *ask.groups)).schema
        id_ = id_column if id_column in names.names else column(names.names, "id", file)
        kind = names.field(column(names.names, name, file)).type
        own = tuple(group for group in ask.groups if group in schema.names)
        theirs = tuple(
            column([*names.names, *schema.names], g, f"{file} or the results") for g in ask.groups if g not in own
        )
        return cls(file, name, plain(kind), id_, own, theirs)

    def join(self, output: Output, columns: Sequence[str]) -> Joined:
        """The results with their labels."""
        own = [*self.groups, *([self.column] if self.column and not self.file else [])]
        table = output.read([*columns, *own])
        if not self.file:
            truth = _flat(table[self.column]) if self.column else None
            return _labelled(table, truth, {g: _strings(table[g]) for g in self.groups}, len(table), 0)
        labels = self._labels()
        at = pc.index_in(table["id"].combine_chunks(), labels["id"].combine_chunks())
        here = _flat(labels[self.column])
        known = labels["id"].filter(pc.is_valid(here))
        lost = len(known) - pc.sum(pc.is_in(known, table["id"].combine_chunks())).as_py() if len(known) else 0
        groups = {g: _strings(table[g]) for g in self.groups}
        groups |= {g: _strings(labels[g].take(at)) for g in self.file_groups}
        return _labelled(table, here.take(at), groups, len(table), lost)

    def _labels(self) -> pa.Table:
        names = list(dict.fromkeys([self.id, self.column, *self.file_groups]))
        try:
            table = _open(self.file, names).to_table(columns=names)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.file} cannot be read: {_line(error)}", "mend the file") from None
        ids = table[self.id].cast(pa.string())
        counts = pc.value_counts(ids.drop_null())
        twice = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            hint = "give each document one label; several references are a list"
            raise SourceError(f"{self.file}: the id {twice[0]['values'].as_py()!r} is there twice", hint)
        return table.set_column(table.column_names.index(self.id), "id", ids)


def _split(labels: str | None, schema: pa.Schema) -> tuple[str, str]:
    """(file, column) of FILE:COLUMN or COLUMN."""
    if labels is not None and labels not in schema.names and os.path.isfile(os.path.expanduser(labels)):
        raise SpecError(f"evaluate.labels {labels} names no column", f"write {labels}:COLUMN")
    if labels is None or labels in schema.names or ":" not in labels:
        return "", labels or ""
    file, _, name = labels.rpartition(":")
    if not name or "/" in name:
        raise SpecError(f"evaluate.labels {labels} names no column", "write FILE:COLUMN")
    return os.path.expanduser(file), name


def _open(file: str, strings: Sequence[str]) -> ds.Dataset:
    """The file as a data set; in a CSV the columns `strings` are text whatever they look like."""
    format_ = "parquet" if os.path.isdir(file) else split_suffix(file)[0]
    if format_ not in (*FORMATS, "csv"):
        raise SourceError(f"{file} is no table of labels", "use Parquet, JSONL, CSV or Arrow")
    options: str | ds.FileFormat = FORMATS.get(format_, "")
    if format_ == "csv":
        parse = pacsv.ParseOptions(delimiter="\t" if ".tsv" in file.lower() else ",", newlines_in_values=True)
        convert = pacsv.ConvertOptions(column_types=dict.fromkeys(strings, pa.string()))
        options = ds.CsvFileFormat(parse_options=parse, convert_options=convert)
    try:
        return ds.dataset(file, format=options)
    except FileNotFoundError:
        raise SourceError(f"no file {file}", "evaluate.labels is FILE:COLUMN, or a column of the results") from None
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{file} cannot be read: {_line(error)}", "is it what its name says?") from None


def _labelled(table: pa.Table, truth: pa.Array | None, groups: dict[str, list[str]], rows: int, lost: int) -> Joined:
    """Without the rows that have no label: null, or a blank text."""
    every = Joined(table, truth, groups, rows, 0, lost)
    if truth is None:
        return every
    there = pc.is_valid(truth)
    chosen = pc.indices_nonzero(there).to_pylist()
    found = every.take(chosen)
    return Joined(found.results, found.truth, found.groups, rows, rows - len(chosen), lost)


def _flat(values: pa.ChunkedArray) -> pa.Array:
    flat = values.combine_chunks()
    kind = plain(flat.type)
    return flat if kind == flat.type else flat.cast(kind)


def _strings(values: pa.ChunkedArray) -> list[str]:
    try:
        return list(pc.fill_null(values.cast(pa.string()), NO_GROUP).to_pylist())
    except pa.ArrowException:
        hint = "group by strings, numbers, booleans or dates"
        raise SourceError(f"the groups are {values.type}, which has no short names", hint) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


# --- types


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists."""
    return bool(pt.is_list(kind) or pt.is_large_list(kind))


def is_name(kind: pa.DataType) -> bool:
    """Whether values of this type name a class."""
    return bool(is_string(kind) or pt.is_integer(kind) or pt.is_boolean(kind))


def check_type(task: str, kind: pa.DataType, multi: bool, where: str) -> None:
    """SourceError where labels of this type say nothing about results of the task."""
    inner = kind.value_type if is_list(kind) else kind
    if task in ("classify", "zero-shot"):
        if is_list(kind) and not multi:
            raise SourceError(f"{where} holds lists, and the job gives one label a document", "give one label a row")
        good, wanted = is_name(inner), "labels: strings or whole numbers" + (", or lists of them" if multi else "")
    elif task == "ner":
        names = [f.name for f in inner] if pt.is_struct(inner) else []
        good = is_list(kind) and {"label", "start", "end"} <= set(names)
        wanted = "entities: lists of {label, start, end}"
    elif task == "embed":
        good, wanted = is_name(inner), "labels, or lists of the ids that are relevant"
    else:
        good, wanted = is_string(inner), "texts, or lists of them"
    if not good:
        raise SourceError(f"{where} is {kind}, which is not what {task} gives", f"it takes {wanted}")
