"""Does batching change answers? Ours against the reference, on real documents; what is told is differences, not speed.

embed, on_long: truncate   against SentenceTransformer.encode: fp32, and bf16 by its cosine to fp32
classify, random head      against the model called on one document at a time, fp32, windows merged by hand
"""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness.contender import Facts, Settings, serve
from harness.work import MINILM, minilm
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import batchnlp
from batchnlp.data.collect import tables


class Equality:
    """All comparisons, once."""

    def __init__(self, setup: Facts) -> None:
        self._work, self._threads = setup["work"], setup["threads"]

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """Every document."""
        work, embed = self._work, {"kind": "embed", "model": MINILM, "on_long": "truncate"}
        corpus = work["sample" if sample else "corpus"]
        texts = pq.read_table(corpus)["text"].to_pylist()
        fp32, bf16 = (ours(corpus, embed, dtype) for dtype in ("float32", "bfloat16"))
        reference = SentenceTransformer(minilm(), device="cpu").encode(texts, batch_size=32)
        labels = ours(corpus, {**work["task"], "scores": True}, "float32")
        scores = np.stack([np.asarray(c) for c in labels["scores"].combine_chunks().flatten()], axis=1)
        expected = alone(work["path"], texts, self._threads)
        cosines = (matrix(bf16) * reference).sum(1) / np.linalg.norm(matrix(bf16), axis=1)
        return {
            "units": len(texts), "in_order": int(fp32["id"].to_pylist() == pq.read_table(corpus)["package"].to_pylist()),
            "truncated": int(np.sum(fp32["truncated"].to_numpy())),
            "windowed": int(np.sum(labels["n_windows"].to_numpy() > 1)),
            "embed_fp32_max_difference": float(np.abs(matrix(fp32) - reference).max()),
            "embed_bf16_min_cosine": float(cosines.min()),
            "classify_fp32_max_difference": float(np.abs(scores - expected).max()),
        }  # fmt: skip


def ours(corpus: str, task: Facts, dtype: str) -> pa.Table:
    """A whole run, inline, Parquet to Parquet."""
    out = tempfile.mkdtemp(prefix="bench-")
    try:
        result = batchnlp.run({
            "source": {"path": corpus, "id": "package"}, "task": task,
            "engine": {"runner": "inline", "dtype": dtype}, "output": {"path": out},
        })  # fmt: skip
        table = pa.concat_tables(tables(out))
    finally:
        shutil.rmtree(out)
    if result.rows != len(table) + result.dead:
        raise RuntimeError(f"{result.rows} rows in, {len(table)} results and {result.dead} dead letters out")
    return table


def matrix(table: pa.Table) -> np.ndarray[Any, Any]:
    """The embeddings as [rows, dim]."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)


def alone(path: str | Path, texts: list[str], processes: int) -> np.ndarray[Any, Any]:
    """[rows, labels] probabilities of the model called on one document at a time; a thread to each process."""
    slices = np.array_split(np.arange(len(texts)), processes)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        answers = pool.map(one_by_one, [path] * processes, [[texts[i] for i in some] for some in slices])
        return np.concatenate([some for some in answers if len(some)])


def one_by_one(path: str | Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """A document's windows one after the other, weighted by the tokens each has."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    answers = []
    with torch.inference_mode():
        for text in texts:
            parts = tokenizer(text, truncation=True, max_length=512, return_overflowing_tokens=True)
            windows = [torch.softmax(model(torch.tensor([ids])).logits[0], -1).numpy() for ids in parts["input_ids"]]
            answers.append(np.average(windows, axis=0, weights=[len(ids) - 2 for ids in parts["input_ids"]]))
    return np.array(answers)


if __name__ == "__main__":
    serve(Equality)
