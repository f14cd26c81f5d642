"""Ray Data: read_parquet, map_batches with a pipeline held by an actor, write_parquet. Start-up is part of it."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import pyarrow.parquet as pq
import ray
import torch
from harness.contender import Facts, Settings, serve


class Classify:
    """What Ray holds in its actor."""

    def __init__(self, model: str, dtype: str, threads: int) -> None:
        from transformers import pipeline

        torch.set_num_threads(threads)
        self._run = pipeline("text-classification", model=model, device="cpu", dtype=getattr(torch, dtype))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The labels of a batch."""
        found = self._run(batch["text"].tolist(), batch_size=len(batch["text"]), truncation=True)
        return {"package": batch["package"], "label": [answer["label"] for answer in found]}


class RayData:
    """A cluster of this process' own for each pass."""

    def __init__(self, setup: Facts) -> None:
        self._setup = setup

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """Parquet in to Parquet out."""
        work, threads = self._setup["work"], self._setup["threads"]
        path, out = work["sample" if sample else "corpus"], tempfile.mkdtemp(prefix="bench-ray-")
        ray.init(address="local", num_cpus=threads + 1, include_dashboard=False, log_to_driver=False,
                 object_store_memory=1 << 30, _node_ip_address="127.0.0.1")  # fmt: skip
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            rows = ray.data.read_parquet(path, columns=["package", "text"])
            rows = rows.map_batches(
                Classify, fn_constructor_args=(work["task"]["model"], self._setup["dtype"], threads),
                batch_size=settings["batch"], concurrency=1, num_cpus=threads,
            )  # fmt: skip
            rows.write_parquet(out)
        finally:
            ray.shutdown()
        try:
            return {"units": pq.read_table(out).num_rows}
        finally:
            shutil.rmtree(out)


if __name__ == "__main__":
    serve(RayData)
