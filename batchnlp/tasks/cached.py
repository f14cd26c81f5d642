"""A task that asks a cache first: it encodes only documents whose results nobody knows, and hands all results on.

The rows of `Encoded` are those of the shard, as from any task; the task inside sees the documents that are asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.data.cache import KEY, ResultCache
from batchnlp.data.hashing import hash_rows
from batchnlp.job.identity import digest, recipe_facts
from batchnlp.job.spec import JobSpec
from batchnlp.tasks.base import COUNT_FIELDS, Task, Vectorise, Verdict, result_table
from batchnlp.types import Counts, Decoding, Docs, Encoded, Failure, Int32, Int64, ModelFiles, Raw, Resolved


@dataclass(frozen=True, slots=True)
class _Known:
    """Which documents of a shard are known, and which are asked about."""

    keys: pa.Array  # [asked] what results are known by
    asked: Int64  # [asked] rows of the shard, in order
    known: Int64  # [known] the others
    results: pa.Table  # [known] their results and counts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked(Encoded):
    """What the task inside made of the documents that are asked about."""

    inner: Encoded
    cached: _Known


def with_cache(task: Task, spec: JobSpec, model: ModelFiles, resolved: Resolved) -> Task:
    """The task with the job's cache before it, where it has one."""
    if spec.cache is None:
        return task
    recipe = {**recipe_facts(spec, model), "dtype": resolved.dtype, "backend": resolved.backend}
    schema = pa.schema([*task.fields, *COUNT_FIELDS])
    cache = ResultCache(spec.cache.path, digest([recipe, str(schema)]), schema, spec.cache.max_bytes)
    return Cached(task, cache, by_id=spec.task.sample)


def cached_rows(encoded: Encoded) -> int:
    """Documents of a shard whose results were known."""
    return len(encoded.cached.known) if isinstance(encoded, _Asked) else 0


def cache_note(task: Task) -> str:
    """What a user should know of the task's cache; empty where nothing is odd, or there is none."""
    return task.cache_note if isinstance(task, Cached) else ""


class Cached:
    """Wraps a task; `fields` and all else that it says of itself are the task's own."""

    def __init__(self, task: Task, cache: ResultCache, *, by_id: bool = False) -> None:
        """`by_id`: whether a result depends on the document's id, as drawn answers do."""
        self._task, self._cache, self._by_id = task, cache, by_id
        self.needs, self.pieces_per_doc, self.token_bytes = task.needs, task.pieces_per_doc, task.token_bytes
        self.columns, self.turns, self.note = task.columns, task.turns, task.note

    @property
    def cache_note(self) -> str:
        """Why the cache takes no more results, once it does not."""
        return self._cache.note

    @property
    def decoding(self) -> Decoding | None:
        """The task's."""
        return self._task.decoding

    @property
    def fields(self) -> list[pa.Field]:
        """The task's."""
        return self._task.fields

    def check(self, schema: pa.Schema) -> None:
        """The task's."""
        self._task.check(schema)

    def prepare(self, forward: Vectorise) -> None:
        """The task's."""
        self._task.prepare(forward)

    def encode(self, docs: Docs) -> Encoded:
        """Look for all documents, encode the others."""
        by_id = [docs.ids.cast(pa.large_string())] if self._by_id else []
        keys = hash_rows([docs.text, *docs.columns.columns, *by_id], KEY)
        known, results = self._cache.find(keys)
        asked = np.setdiff1d(np.arange(len(docs)), known)
        inner = self._task.encode(docs.take(asked) if len(known) else docs)
        return _outer(inner, _Known(keys.take(pa.array(asked)), asked, known, results))

    def again(self, encoded: Encoded, raw: Raw) -> Encoded | None:
        """The task's, for the documents that are asked about."""
        mine = _of(encoded)
        more = self._task.again(mine.inner, _inward(mine, raw))
        return None if more is None else _outer(more, mine.cached)

    def decode(self, encoded: Encoded, raw: Raw) -> tuple[list[pa.Array], Verdict]:
        """All columns; what is new is remembered, unless it failed."""
        mine, inner = _of(encoded), _inward(_of(encoded), raw)
        asked, known = mine.cached.asked, mine.cached.known
        columns, verdict = self._task.decode(mine.inner, inner)
        counts = self._task.counts(mine.inner, inner)
        self._remember(mine, columns, counts, _good(verdict, [*mine.inner.failures, *inner.failures], len(asked)))
        order = pa.array(np.argsort(np.concatenate([asked, known])))
        together = [
            pa.chunked_array([column.cast(field.type), *mine.cached.results[field.name].chunks]).take(order)
            for field, column in zip(self.fields, columns, strict=True)
        ]
        arrays = [column.combine_chunks() for column in together]
        if not isinstance(verdict, np.ndarray):
            return arrays, _outward(asked, verdict)
        whole = np.ones(len(order), np.bool_)
        whole[asked] = verdict
        return arrays, whole

    def counts(self, encoded: Encoded, raw: Raw) -> Counts:
        """The task's, and those that are known."""
        mine = _of(encoded)
        return _spread(mine.cached, self._task.counts(mine.inner, _inward(mine, raw)))

    def _remember(self, mine: _Asked, columns: list[pa.Array], counts: Counts, good: npt.NDArray[np.bool_]) -> None:
        mask = pa.array(good)
        self._cache.add(mine.cached.keys.filter(mask), result_table(self.fields, columns, counts).filter(mask))


def _outer(inner: Encoded, known: _Known) -> _Asked:
    """The same with the rows of the shard in the place of those that are asked about."""
    pieces = replace(inner.pieces, doc=known.asked[inner.pieces.doc].astype(np.int32))
    failures = _outward(known.asked, inner.failures)
    return _Asked(pieces, _spread(known, inner.counts), failures, inner=inner, cached=known)


def _of(encoded: Encoded) -> _Asked:
    assert isinstance(encoded, _Asked)
    return encoded


def _outward(asked: Int64, failures: Sequence[Failure]) -> tuple[Failure, ...]:
    return tuple(replace(failure, doc=int(asked[failure.doc])) for failure in failures)


def _inward(mine: _Asked, raw: Raw) -> Raw:
    """The answer as it is for the task inside."""
    at = mine.cached.asked
    return replace(raw, failures=tuple(replace(f, doc=int(np.searchsorted(at, f.doc))) for f in raw.failures))


def _good(verdict: Verdict, failures: Sequence[Failure], rows: int) -> npt.NDArray[np.bool_]:
    """[asked] which documents have a result."""
    good = np.ones(rows, np.bool_)
    if isinstance(verdict, np.ndarray):
        good &= verdict
    else:
        failures = [*failures, *verdict]
    good[[failure.doc for failure in failures]] = False
    return good


def _spread(known: _Known, counts: Counts) -> Counts:
    """Counts of the documents that are asked about, and those that are known."""

    def both(values: Int32, name: str) -> Int32:
        out = np.zeros(len(known.asked) + len(known.known), np.int32)
        out[known.asked] = values
        out[known.known] = known.results[name].fill_null(-1).to_numpy()
        return out

    used = both(counts.n_tokens_used, "n_tokens_used")
    return Counts(both(counts.n_tokens, "n_tokens"), used, both(counts.n_windows, "n_windows"))
