"""Another library's forward pass, fed the very batches that ours are: sorted, tokenised beforehand, nothing else to do.

library: openvino   the torch model converted in memory, one stream a thread, as many batches in flight
library: onnx       exported by torch, run by ONNX Runtime (it has no bf16 on a CPU: float32)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.contender import Facts, Settings, serve
from transformers import AutoModelForSequenceClassification

NAMES = ("input_ids", "attention_mask")


class Logits(torch.nn.Module):
    """The model with two inputs and one output."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        """[B, labels]."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


class ForwardOnly:
    """The batches of the work's file, and something that calls a library."""

    def __init__(self, setup: Facts) -> None:
        work, threads = setup["work"], setup["threads"]
        self._batches = {False: list(padded(work["batches"])), True: list(padded(work["sample_batches"]))}
        self._rows = {False: work["rows"], True: work["sample_rows"]}
        make = {"openvino": openvino_call, "onnx": onnx_call}[setup["settings"]["library"]]
        self._call = make(Logits(work["path"]), setup["dtype"], threads)

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """All batches."""
        self._call(self._batches[sample])
        return {"units": self._rows[sample]}


def padded(path: str) -> Iterator[tuple[Any, Any]]:
    """(ids, mask), [B, L] int64, of each batch of a file that harness/work.py wrote."""
    file = np.load(path)
    ids, starts, index, ends, lengths = (file[k] for k in ("ids", "starts", "index", "ends", "lengths"))
    for rows, length in zip(np.split(index, ends[:-1]), lengths, strict=True):
        size = (starts[rows + 1] - starts[rows])[:, None]
        mask = np.arange(length) < size
        table = np.zeros(mask.shape, np.int64)
        table[mask] = np.concatenate([ids[starts[row] : starts[row + 1]] for row in rows])
        yield table, mask.astype(np.int64)


def openvino_call(model: Logits, dtype: str, threads: int) -> Any:
    """Asynchronous, as OpenVINO's own throughput mode does it."""
    import openvino as ov

    example = {name: torch.ones(2, 9, dtype=torch.int64) for name in NAMES}
    with torch.no_grad():
        converted = ov.convert_model(model, example_input=example)
    compiled = ov.Core().compile_model(converted, "CPU", {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32", "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
    })  # fmt: skip
    queue = ov.AsyncInferQueue(compiled, threads + 1)
    ports = [next(i for i, name in enumerate(NAMES) if name in port.get_names()) for port in compiled.inputs]

    def call(batches: list[tuple[Any, Any]]) -> None:
        for batch in batches:
            queue.start_async([batch[i] for i in ports])
        queue.wait_all()

    return call


def onnx_call(model: Logits, dtype: str, threads: int) -> Any:
    """One session over all threads."""
    import onnxruntime

    path = Path(tempfile.mkdtemp(prefix="bench-onnx-")) / "model.onnx"
    example = {name: torch.ones(2, 9, dtype=torch.int64) for name in NAMES}
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length", max=512)
    torch.onnx.export(
        model, (), path, kwargs=example, dynamo=True, dynamic_shapes={n: {0: rows, 1: length} for n in NAMES}
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(batches: list[tuple[Any, Any]]) -> None:
        for batch in batches:
            session.run(None, dict(zip(NAMES, batch, strict=True)))

    return call


if __name__ == "__main__":
    serve(ForwardOnly)
