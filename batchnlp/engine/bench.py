"""The best settings for a job, and how near it then comes to what the machine can do: short runs over a sample.

    1  forward alone    every backend, dtype and batch size that may be chosen, on the same pieces, some seconds each
    2  whole runs       the sample from Parquet to Parquet with the best of them; on Ray with more and fewer replicas
    3  the limit        of the same sample: forward alone, tokenizer alone

Nothing is written but into a temporary directory. On a CPU forward and tokenizer share the cores, so their times add up;
beside a GPU the slower of the two is the limit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchnlp import registry
from batchnlp.backends import device as devices
from batchnlp.engine.computing import RunResult
from batchnlp.engine.driver import run_job
from batchnlp.engine.estimate import take
from batchnlp.engine.planner import Prepared
from batchnlp.errors import SourceError, UsageError
from batchnlp.job.spec import JobSpec, LimitsSpec, OutputSpec, SourceSpec
from batchnlp.types import Docs, Encoded, Pieces, Resolved

SAMPLE = 4_000  # documents at most
FEWEST = 64  # documents of a whole run, however slow the model
SECONDS = 3.0  # of a measurement of forward alone
RUN_SECONDS = 20.0  # of a whole run
CPU_TOKENS = (512, 1024, 2048, 4096, 8192)
LOCAL = ("torch", "openvino")  # backends whose speed is this machine's

Listener = Callable[[str], None]


@dataclass(slots=True)
class Trial:
    """Settings that were measured, forward alone."""

    backend: str
    dtype: str
    tokens_per_batch: int
    docs_per_second: float
    note: str = ""


@dataclass(slots=True)
class Benchmark:
    """What `bench` shows. Rates are documents a second."""

    job: str
    sampled: int  # documents of the whole runs
    trials: list[Trial]
    settings: dict[str, Any]  # the best, as keys of the engine section
    docs_per_second: float
    tokens_per_second: float  # real ones
    padding: float
    device_busy: float
    forward: float  # alone
    tokenizer: float  # alone
    limit: float
    share_of_limit: float
    replicas: dict[int, float] = field(default_factory=dict)  # of those that were tried


def bench(prepared: Prepared, *, any_dtype: bool = False, tell: Listener = lambda line: None) -> Benchmark:
    """Search and measure; `any_dtype` lets `engine.dtype: auto` become the one that is faster, whatever its rounding."""
    if prepared.spec.engine.backend == "http":
        hint = "run the job: it finds by itself how many requests at once pay"
        raise UsageError("bench measures this machine, and engine.backend=http computes on a server", hint)
    hardware = devices.probe_hardware()
    docs = prepared.source.sample(SAMPLE)
    encoded = prepared.task.encode(docs)
    if not len(encoded.pieces):
        raise SourceError("the sample holds no document that the model could read", "batchnlp plan tells why")
    docs_per_piece = len(docs) / len(encoded.pieces)
    trials: list[Trial] = []
    best: Resolved | None = None
    for resolved in _choices(prepared, hardware, any_dtype):
        found = _try(prepared, resolved, encoded.pieces, docs_per_piece, hardware.cpus)
        for trial in found:
            tell(
                f"{trial.backend} {trial.dtype} {trial.tokens_per_batch:,}: {trial.docs_per_second:,.1f} docs/s {trial.note}"
            )
        trials += found
        fastest = max(found, key=lambda trial: trial.docs_per_second)
        if fastest.docs_per_second and fastest.docs_per_second >= max(t.docs_per_second for t in trials):
            best = _with(resolved, fastest.tokens_per_batch)
    if best is None:
        raise UsageError(f"nothing runs this model: {trials[0].note}", "batchnlp plan --probe may tell more")
    rate = max(trial.docs_per_second for trial in trials)
    docs, encoded = _first(prepared, docs, min(len(docs), max(int(rate * RUN_SECONDS), FEWEST)))
    runs: dict[int, RunResult] = {}
    for replicas in _replicas(prepared.spec, hardware, best.device):
        runs[replicas] = result = _whole(prepared, docs, best, replicas)
        tell(f"whole run, {replicas} x {best.device}: {result.docs_per_second:,.1f} docs/s")
    replicas = max(runs, key=lambda n: runs[n].docs_per_second)
    return _summary(prepared, docs, encoded, best, runs, replicas, trials, hardware.cpus)


def _choices(prepared: Prepared, hardware: devices.Hardware, any_dtype: bool) -> Iterator[Resolved]:
    """What every `auto` of backend and dtype may become here; what is asked for stays as it is."""
    engine, needs = prepared.spec.engine, prepared.task.needs
    backends = [engine.backend] if engine.backend != "auto" else [b for b in LOCAL if needs in registry.BACKENDS[b]]
    dtypes = ["float32", "bfloat16"] if engine.dtype == "auto" and any_dtype else [engine.dtype]
    for backend in backends:
        for dtype in dtypes:
            asked = engine.model_copy(update={"backend": backend, "dtype": dtype})
            try:
                yield devices.resolve(asked, prepared.model, hardware, needs)
            except UsageError:  # not installed, or not for this device: then auto would not choose it either
                if engine.backend != "auto":
                    raise


def _sizes(prepared: Prepared, resolved: Resolved) -> tuple[int, ...]:
    """Batch sizes to try; generation takes its rows by memory and is fed whole."""
    if prepared.spec.engine.tokens_per_batch != "auto" or prepared.task.needs == "completions":
        return (resolved.tokens_per_batch,)
    if resolved.device == "cpu":
        return CPU_TOKENS
    return tuple(resolved.tokens_per_batch * 2**i // 4 for i in range(4))


def _try(
    prepared: Prepared, resolved: Resolved, pieces: Pieces, docs_per_piece: float, threads: int
) -> list[Trial]:  # fmt: skip
    """Every batch size with this backend and dtype, on the same pieces."""
    found: list[Trial] = []
    try:
        backend = registry.backend(prepared.model, resolved, prepared.task, threads)
        chosen = _spread(backend, pieces)
        for tokens in _sizes(prepared, resolved):
            backend.tokens_per_batch = tokens
            backend.forward(take(chosen, np.arange(min(len(chosen), 4))))  # pays for allocations
            seconds = backend.forward(chosen).seconds
            found.append(
                Trial(resolved.backend, resolved.dtype, tokens, len(chosen) * docs_per_piece / seconds, backend.note)
            )
    except Exception as error:  # noqa: BLE001 - a library that does not run this model is a trial that is lost
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        found.append(Trial(resolved.backend, resolved.dtype, resolved.tokens_per_batch, 0.0, reason))
    return found


def _spread(backend: Any, pieces: Pieces) -> Pieces:
    """As many pieces as take some seconds, spread over all lengths."""
    order = np.argsort(-pieces.lengths, kind="stable")
    few = order[:: max(len(order) // 16, 1)]
    backend.forward(take(pieces, few))
    seconds = backend.forward(take(pieces, few)).seconds
    many = min(max(int(len(few) * SECONDS / max(seconds, 1e-6)), len(few)), len(order))
    return take(pieces, np.sort(order[np.linspace(0, len(order) - 1, many).astype(np.int64)]))


def _first(prepared: Prepared, docs: Docs, rows: int) -> tuple[Docs, Encoded]:
    """`rows` documents spread over the sample."""
    index = np.linspace(0, len(docs) - 1, rows).astype(np.int64)
    where = pa.array(index)
    table = docs.columns.take(where) if docs.columns.num_columns else None
    chosen = Docs.of(docs.text.take(where), table)
    return chosen, prepared.task.encode(chosen)


def _replicas(spec: JobSpec, hardware: devices.Hardware, device: str) -> list[int]:
    """How many model copies to try: inline there is one; on Ray what auto says, and twice as many of half the cores."""
    auto, _ = devices.share(hardware, device, spec.engine.replicas)
    if spec.engine.runner == "inline":
        return [1]
    more = device == "cpu" and spec.engine.replicas == "auto" and 2 * auto <= hardware.cpus
    return [auto, 2 * auto] if more else [auto]


def _whole(prepared: Prepared, docs: Docs, best: Resolved, replicas: int) -> RunResult:
    """A run over the sample, from a Parquet file into a temporary directory; nobody is told of it, and no warehouse gets it."""
    spec = prepared.spec
    with tempfile.TemporaryDirectory(prefix="batchnlp-bench-") as folder:
        columns = {name: docs.columns[name] for name in docs.columns.column_names} | {spec.source.text: docs.text}
        pq.write_table(pa.table(columns), Path(folder, "sample.parquet"))
        shard = -(-len(docs) // replicas) if replicas > 1 else None  # else one of them would have them all
        source = SourceSpec(path=[str(Path(folder, "sample.parquet"))], text=spec.source.text, rows_per_shard=shard)
        engine = spec.engine.model_copy(update={**_settings(best), "replicas": replicas, "device": best.device})
        output, limits = OutputSpec(path=str(Path(folder, "out"))), LimitsSpec(max_failed="100%")
        return run_job(JobSpec(source=source, task=spec.task, engine=engine, output=output, limits=limits))


def _summary(
    prepared: Prepared, docs: Docs, encoded: Encoded, best: Resolved, runs: dict[int, RunResult], replicas: int,
    trials: list[Trial], threads: int,
) -> Benchmark:  # fmt: skip
    began = perf_counter()
    prepared.task.encode(docs)
    tokenizer = len(docs) / (perf_counter() - began)
    backend = registry.backend(prepared.model, best, prepared.task, threads)
    backend.forward(take(encoded.pieces, np.arange(min(len(encoded.pieces), 4))))
    copies = replicas if best.device.startswith("cuda") else 1
    forward = copies * len(docs) / backend.forward(encoded.pieces).seconds
    limit = 1 / (1 / forward + 1 / tokenizer) if best.device == "cpu" else min(forward, tokenizer)
    result = runs[replicas]
    return Benchmark(
        job=prepared.about["job"], sampled=len(docs), trials=trials,
        settings=_settings(best) | ({"replicas": replicas} if prepared.spec.engine.runner == "ray" else {}),
        docs_per_second=result.docs_per_second, tokens_per_second=result.tokens_per_second, padding=result.padding,
        device_busy=result.device_busy, forward=round(forward, 2), tokenizer=round(tokenizer, 2), limit=round(limit, 2),
        share_of_limit=round(result.docs_per_second / limit, 4),
        replicas={n: found.docs_per_second for n, found in runs.items()},
    )  # fmt: skip


def _settings(best: Resolved) -> dict[str, Any]:
    """The engine's keys that were searched."""
    return {"backend": best.backend, "dtype": best.dtype, "tokens_per_batch": best.tokens_per_batch}


def _with(resolved: Resolved, tokens: int) -> Resolved:
    return Resolved(resolved.device, resolved.dtype, resolved.backend, tokens, resolved.why)
