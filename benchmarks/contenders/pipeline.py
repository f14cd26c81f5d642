"""transformers' pipeline for text classification: `batch` documents at a time, in file order or `sorted` by length."""

from __future__ import annotations

import pyarrow.parquet as pq
import torch
from harness.contender import Facts, Settings, serve
from transformers import pipeline


class Pipeline:
    """As its documentation shows it."""

    def __init__(self, setup: Facts) -> None:
        torch.set_num_threads(setup["threads"])
        work = setup["work"]
        self._texts = pq.read_table(work["corpus"])["text"].to_pylist()
        self._sample = pq.read_table(work["sample"])["text"].to_pylist()
        dtype = getattr(torch, setup["dtype"])
        self._run = pipeline(
            "text-classification", model=work["task"]["model"], device=setup.get("device", "cpu"), dtype=dtype
        )

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """Documents, each cut to the model's limit."""
        texts = self._sample if sample else self._texts
        if settings.get("sorted"):
            texts = sorted(texts, key=len, reverse=True)
        found = self._run(texts, batch_size=settings["batch"], truncation=True)
        return {"units": len(found)}


if __name__ == "__main__":
    serve(Pipeline)
