"""A training from beginning to end: check, read, split, encode, learn, publish. The same command resumes it.

OUT/config.json, model.safetensors, tokenizer...   what `batchnlp run` takes
OUT/training.json                                  where it came from and how good it is; written last: then it is done
OUT/curves.jsonl                                   loss and metrics by step
OUT/split.parquet                                  which row is in which part, by id, without texts
OUT/_batchnlp/train/                               checkpoints, while it is under way
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batchnlp import __version__
from batchnlp.data.lock import locked
from batchnlp.data.store import LocalStore, explain_full, sha256_of, to_json
from batchnlp.errors import MissingExtraError, OutputError
from batchnlp.job.identity import differences, digest, listing
from batchnlp.job.train import MEMBERSHIP, MODELS, RECORD, TEST, TRAIN, VALIDATION, TrainSpec
from batchnlp.train.card import write_card
from batchnlp.train.checkpoints import last
from batchnlp.train.corpus import Composition, Rows, open_source, read_rows, split
from batchnlp.train.examples import Examples

SEMANTICS = 1  # raise it when the same training comes to learn from other rows, or otherwise
WORK, PLAN = "_batchnlp/train", "_batchnlp/train/plan.json"
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "pyarrow", "rensa")
KINDS = {
    "classify": "batchnlp.train.classify:Classify",
    "ner": "batchnlp.train.ner:Ner",
    "seq2seq": "batchnlp.train.seq2seq:Seq2Seq",
    "embed": "batchnlp.train.embed:Embed",
    "lm": "batchnlp.train.lm:LanguageModel",
    "tokenizer": "batchnlp.train.tokenizer:NewTokenizer",
}
# What does not change what is learnt beyond rounding.
ELSEWHERE: dict[str, Any] = {"output": True, "workers": True, "device": True, "max_failed": True,
                             "source": {"path", "rows_per_shard"}}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a training went. `record` is what stands in training.json."""

    status: str  # done
    output: str
    record: dict[str, Any]
    already: bool = False  # whether all was done before
    notes: list[str] = field(default_factory=list)


def train(spec: TrainSpec, listener: Any = None) -> TrainResult:
    """Train, or go on, or tell that all is done. UsageError before anything is started; see `batchnlp.errors`."""
    if spec.kind in MODELS and find_spec("accelerate") is None:
        raise MissingExtraError.of("accelerate", "train")
    kind = _kind(spec)
    source = open_source(spec, kind.columns)
    kind.check(source.schema)
    facts = {
        "semantics": SEMANTICS, "start": kind.start.about if kind.start else None,
        "tokenizer": _tokenizer_hash(spec), "files": listing(source.files),
        "spec": spec.model_dump(mode="json", exclude=_elsewhere(spec)),
    }  # fmt: skip
    store = LocalStore(spec.output.path)
    if record := _done(store, facts):
        return TrainResult("done", spec.output.path, record, already=True)
    with locked(store):
        began = time.monotonic()
        rows, counts = read_rows(source, spec, kind.judge)
        parts, counts = split(rows, spec.split, counts)
        kind.settle(parts)
        _begin(store, facts)
        kind.ready(Path(store.path(WORK)) / "tokenizer")
        fitted = _learn(kind, parts, store, listener)
        record = _record(spec, facts, counts, kind, fitted, time.monotonic() - began)
        with explain_full(store.root):
            _publish(store, spec, parts, record)
    return TrainResult("done", spec.output.path, record)


def _elsewhere(spec: TrainSpec) -> dict[str, Any]:
    """Keys that came later count where they change something, so that older trainings stay what they are."""
    return ELSEWHERE | ({"dropout": True} if spec.dropout is None else {})


def _kind(spec: TrainSpec) -> Any:
    module, _, name = KINDS[spec.kind].partition(":")
    return getattr(import_module(module), name)(spec)


def _tokenizer_hash(spec: TrainSpec) -> str | None:
    """Of the tokenizer of a model from scratch; that of another model is told by its revision and weights."""
    return _sha256(Path(spec.tokenizer).expanduser() / "tokenizer.json") if spec.tokenizer else None


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return sha256_of(handle)


def _done(store: LocalStore, facts: dict[str, Any]) -> dict[str, Any] | None:
    """What is recorded, where this very training is done; OutputError where another one is."""
    content = store.read(RECORD)
    if content is None:
        if any(name.endswith(".safetensors") or name == "config.json" for name in store.names("")) and not store.read(
            PLAN
        ):
            raise OutputError(f"{store.root} holds a model already", "choose another output.path, or remove it")
        return None
    record: dict[str, Any] = json.loads(content)
    if record["fingerprint"] != digest(facts):
        _refuse(store, record["facts"], facts)
    return record


def _begin(store: LocalStore, facts: dict[str, Any]) -> None:
    """Write down what is learnt here, or see that it is the same as before; what has learnt nothing is no loss."""
    content = store.read(PLAN)
    same = content is not None and json.loads(content) == json.loads(to_json(facts))
    if content is not None and not same and last(Path(store.path(WORK))):
        _refuse(store, json.loads(content), facts)
    if not same:
        shutil.rmtree(store.path(WORK), ignore_errors=True)
        store.replace(PLAN, to_json(facts))


def _refuse(store: LocalStore, old: dict[str, Any], new: dict[str, Any]) -> None:
    changed = differences(old, json.loads(to_json(new)))
    message = f"{store.root} holds another training ({', '.join(changed[:5])} changed)"
    raise OutputError(message, "choose another output.path, or remove it")


def _learn(kind: Any, parts: dict[str, Rows], store: LocalStore, listener: Any) -> dict[str, Any]:
    """What the kind has to tell of its result, which is in the folder `final` of the work."""
    work = Path(store.path(WORK))
    if kind.spec.kind not in MODELS:
        told: dict[str, Any] = kind.learn(parts, work / "final")
        return told
    examples = {name: kind.encode(rows, train=name == TRAIN) for name, rows in parts.items() if len(rows)}
    if kind.spec.workers > 1:
        from batchnlp.train.ray_workers import fit_on_ray

        fitted = fit_on_ray(kind, examples, work)
    else:
        from batchnlp.train.fit import fit

        fitted = fit(kind, examples, work, listener)
    judged = TEST if TEST in examples else VALIDATION
    baselines = kind.compare(examples[TRAIN], examples[judged]) if judged in examples else {}
    return {**asdict(fitted), "examples": _examples(examples), **({"baselines": baselines} if baselines else {})}


def _examples(examples: dict[str, Examples]) -> dict[str, Any]:
    return {
        name: {
            "examples": len(some),
            "tokens": int(some.inputs.starts[-1]),
            "truncated": some.truncated,
            **dict(some.counts),
        }
        for name, some in examples.items()
    }


def _record(
    spec: TrainSpec, facts: dict[str, Any], counts: Composition, kind: Any, told: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """training.json: where the model came from, in which steps, and how good it is."""
    known = json.loads(to_json(facts))
    return {
        "kind": spec.kind, "version": __version__, "fingerprint": digest(facts), "facts": known,
        "spec": spec.model_dump(mode="json"), "composition": asdict(counts), "labels": list(kind.labels),
        "result": told, "seconds": round(seconds, 1), "libraries": dict(_versions(LIBRARIES)),
        "python": platform.python_version(), "machine": {"cpus": os.cpu_count(), "arch": platform.machine()},
    }  # fmt: skip


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _publish(store: LocalStore, spec: TrainSpec, parts: dict[str, Rows], record: dict[str, Any]) -> None:
    """Move the result to where it is looked for: the config last of the model, the record last of all."""
    final = Path(store.path(WORK)) / "final"
    files = sorted((p for p in final.rglob("*") if p.is_file()), key=lambda p: (p.name == "config.json", p.name))
    record["files"] = {p.relative_to(final).as_posix(): _sha256(p) for p in files}
    curves = final.parent / "curves.jsonl"
    if curves.is_file():
        store.publish(str(curves), "curves.jsonl")
    _write(_membership(parts), Path(store.path(MEMBERSHIP)))
    if spec.output.held_out:
        _write(_texts(parts[TEST], spec), Path(spec.output.held_out))
    for path in files:
        store.publish(str(path), path.relative_to(final).as_posix())
    write_card(store.root, spec, record)
    store.replace(RECORD, to_json(record))
    shutil.rmtree(store.path(WORK), ignore_errors=True)


def _membership(parts: dict[str, Rows]) -> pa.Table:
    tables = [
        pa.table({"id": rows.ids, "part": pa.array([name] * len(rows), pa.string())}) for name, rows in parts.items()
    ]
    return pa.concat_tables(tables)


def _texts(rows: Rows, spec: TrainSpec) -> pa.Table:
    """The test rows under the names that the source has for their columns, so that a job reads them like the source."""
    columns = {spec.source.id or "id": rows.ids, spec.source.text: rows.text}
    table = pa.table(columns)
    for name in rows.columns.column_names:
        if name not in columns:
            table = table.append_column(rows.columns.schema.field(name), rows.columns.column(name))
    return table


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    temporary.replace(path)
