"""SentenceTransformer.encode, which sorts by length itself; its torch backend, or its OpenVINO one."""

from __future__ import annotations

import pyarrow.parquet as pq
import torch
from harness.contender import Facts, Settings, serve
from sentence_transformers import SentenceTransformer


class Encode:
    """The model with the backend asked for."""

    def __init__(self, setup: Facts) -> None:
        torch.set_num_threads(setup["threads"])
        work, backend = setup["work"], setup["settings"].get("backend", "torch")
        self._texts = pq.read_table(work["corpus"])["text"].to_pylist()
        self._sample = pq.read_table(work["sample"])["text"].to_pylist()
        more = {"torch_dtype": getattr(torch, setup["dtype"])}
        if backend == "openvino":
            hint = "bf16" if setup["dtype"] == "bfloat16" else "f32"
            more = {"ov_config": {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": setup["threads"]}}
        self._model = SentenceTransformer(work["path"], device="cpu", backend=backend, model_kwargs=more)

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """Documents, each cut to the model's limit."""
        texts = self._sample if sample else self._texts
        return {"units": len(self._model.encode(texts, batch_size=settings["batch"]))}


if __name__ == "__main__":
    serve(Encode)
