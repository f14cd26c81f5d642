"""Does batching change answers? Ours against the reference, on real documents.

    embed, on_long: truncate   against SentenceTransformer.encode: fp32 to 1e-5, bf16 to a cosine of 0.999
    classify, random head      against the model called on one document at a time, fp32, to 1e-5

python benchmarks/equality.py CORPUS.parquet [--rows N]     every n-th document, so that all lengths are there
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import MINILM, classifier, finish, minilm_path, take

import batchnlp
from batchnlp.data.collect import tables


def ours(corpus: str, out: Path, task: dict[str, Any], dtype: str) -> pa.Table:
    """A whole run, inline, Parquet to Parquet."""
    result = batchnlp.run({
        "source": {"path": corpus, "id": "package"}, "task": task,
        "engine": {"runner": "inline", "dtype": dtype}, "output": {"path": str(out)},
    })  # fmt: skip
    table = pa.concat_tables(tables(str(out)))
    assert result.rows == len(table) + result.dead
    return table


def matrix(table: pa.Table) -> np.ndarray[Any, Any]:
    """The embeddings as [rows, dim]."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), -1)


def alone(model_path: str, texts: list[str]) -> np.ndarray[Any, Any]:
    """[rows, labels] probabilities of the model called on one document at a time, windows merged by hand."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_path, dtype=torch.float32).eval()
    answers = []
    with torch.inference_mode():
        for text in texts:
            parts = tokenizer(text, truncation=True, max_length=512, return_overflowing_tokens=True)
            windows = [torch.softmax(model(torch.tensor([ids])).logits[0], -1).numpy() for ids in parts["input_ids"]]
            weights = [len(ids) - 2 for ids in parts["input_ids"]]
            answers.append(np.average(windows, axis=0, weights=weights))
    return np.array(answers)


def main() -> None:
    """Run all comparisons."""
    from sentence_transformers import SentenceTransformer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--rows", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        corpus = take(args.corpus, args.rows, work / "corpus.parquet", spread=True)
        source = pq.read_table(corpus)
        texts = source["text"].to_pylist()
        embed = {"kind": "embed", "model": MINILM, "on_long": "truncate"}
        fp32 = ours(corpus, work / "fp32", embed, "float32")
        bf16 = ours(corpus, work / "bf16", embed, "bfloat16")
        reference = SentenceTransformer(minilm_path(), device="cpu").encode(texts, batch_size=32)
        model = classifier(work / "classifier")
        labels = ours(corpus, work / "labels", {"kind": "classify", "model": model, "scores": True}, "float32")
        scores = np.stack([np.asarray(c) for c in labels["scores"].combine_chunks().flatten()], axis=1)
        cosines = (matrix(bf16) * reference).sum(1) / np.linalg.norm(matrix(bf16), axis=1)
        result = {
            "rows": len(texts), "in_order": int(fp32["id"].to_pylist() == source["package"].to_pylist()),
            "truncated": int(np.sum(fp32["truncated"].to_numpy())),
            "windowed": int(np.sum(labels["n_windows"].to_numpy() > 1)),
            "embed_fp32_max_difference": float(np.abs(matrix(fp32) - reference).max()),
            "embed_bf16_min_cosine": float(cosines.min()),
            "classify_fp32_max_difference": float(np.abs(scores - alone(model, texts)).max()),
        }  # fmt: skip
    print(f"{result['rows']} documents, {result['truncated']} truncated, {result['windowed']} in several windows")
    finish("equality", result, {
        "embed_fp32_max_difference": ("<=", 1e-5), "embed_bf16_min_cosine": (">=", 0.999),
        "classify_fp32_max_difference": ("<=", 1e-5), "in_order": (">=", 1),
    })  # fmt: skip


if __name__ == "__main__":
    main()
