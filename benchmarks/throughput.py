"""How much of the time goes into the model, and how that compares with a pipeline. Side by side, in one run.

    end to end     inline, Parquet in to Parquet out, start-up aside, from the first lease to the last commit
    forward only   a loop over the same pre-tokenised batches, nothing else: the limit
    pipeline       transformers' pipeline("text-classification", batch_size=32), fp32, its default dtype

python benchmarks/throughput.py CORPUS.parquet [--rows N] [--rounds 2] [--pipeline-rows 4000]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pyarrow.parquet as pq
from common import classifier, finish, take

import batchnlp
from batchnlp import registry
from batchnlp.backends.device import probe_hardware, resolve
from batchnlp.engine.planner import make_plan, prepare
from batchnlp.job.load import build_spec


def job(corpus: str, out: Path, model: str) -> dict[str, Any]:
    """Classification, inline, everything else as it comes."""
    return {
        "source": {"path": corpus, "id": "package"}, "task": {"kind": "classify", "model": model},
        "engine": {"runner": "inline"}, "output": {"path": str(out)},
    }  # fmt: skip


class ForwardOnly:
    """The same shards, already tokenised; the same model, batches and dtype."""

    def __init__(self, tree: dict[str, Any]) -> None:
        prepared = prepare(build_spec(tree))
        hardware = probe_hardware()
        resolved = resolve(prepared.spec.engine, prepared.model, hardware, prepared.task.needs)
        shards = make_plan(prepared, 1).shards
        self._pieces = [prepared.task.encode(prepared.source.read(shard)).pieces for shard in shards]
        self._rows = sum(shard.rows for shard in shards)
        self._backend = registry.backend(prepared.model, resolved, prepared.task, hardware.cpus)

    def docs_per_second(self) -> float:
        """One pass over everything."""
        began = perf_counter()
        for pieces in self._pieces:
            self._backend.forward(pieces)
        return self._rows / (perf_counter() - began)


def pipeline_docs_per_second(corpus: str, model: str) -> float:
    """The peer, as its documentation shows it."""
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    texts = pq.read_table(corpus)["text"].to_pylist()
    run = pipeline("text-classification", model=model, device="cpu", dtype="float32")
    run(texts[:64], batch_size=32, truncation=True)
    began = perf_counter()
    run(texts, batch_size=32, truncation=True)
    return len(texts) / (perf_counter() - began)


def main() -> None:
    """Alternate the contenders and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--rows", type=int, default=0, help="the first N documents; all without it")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pipeline-rows", type=int, default=4000, help="0 leaves the pipeline out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = classifier(work / "classifier")
        corpus = take(args.corpus, args.rows, work / "corpus.parquet") if args.rows else args.corpus
        oracle = ForwardOnly(job(corpus, work / "plan", model))
        whole, limit, paddings = [], [], []
        for i in range(args.rounds):
            result = batchnlp.run(job(corpus, work / f"out{i}", model))
            whole.append(result.docs_per_second)
            paddings.append(result.padding)
            limit.append(oracle.docs_per_second())
            print(f"round {i + 1}: end to end {whole[-1]:.1f} docs/s, forward only {limit[-1]:.1f}; {result.seconds}",
                  flush=True)  # fmt: skip
        found: dict[str, Any] = {
            "rows": result.rows, "backend": result.resolved["backend"], "dtype": result.resolved["dtype"],
            "end_to_end": median(whole),
            "forward_only": median(limit), "share_of_limit": median(whole) / median(limit), "padding": max(paddings),
        }  # fmt: skip
        floors = {"share_of_limit": (">=", 0.90), "padding": ("<=", 0.03)}
        if args.pipeline_rows:
            small = take(args.corpus, args.pipeline_rows, work / "small.parquet")
            first = batchnlp.run(job(small, work / "small0", model)).docs_per_second
            found["pipeline"] = pipeline_docs_per_second(small, model)
            second = batchnlp.run(job(small, work / "small1", model)).docs_per_second
            found["beside_pipeline"] = (first + second) / 2
            found["over_pipeline"] = found["beside_pipeline"] / found["pipeline"]
            floors["over_pipeline"] = (">=", 8.0)
    finish("throughput", found, floors)


if __name__ == "__main__":
    main()
