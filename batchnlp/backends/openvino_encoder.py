"""Encoders on OpenVINO: the torch model, pooling included, converted in memory; for CPUs, where its fused kernels are
ahead of eager torch.

Everything but the call is the torch encoder's: batches, halving, order. As many streams as threads, one core each, so that
no batch waits for the slowest of several cores; one more batch is ready, so that no stream waits for Python.

A model that cannot be converted, or answers otherwise than torch does on a canary, is run on torch, and `note` says so.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnlp.backends.answer import Answer
from batchnlp.backends.canary import check_close, padded, sequences, unpadded
from batchnlp.backends.device import probe_hardware
from batchnlp.backends.fallback import fast_or_plain
from batchnlp.backends.int8 import GROUP, quantize
from batchnlp.backends.openvino_library import load_openvino
from batchnlp.backends.packed_attention import Unsupported
from batchnlp.backends.token_heads import BY_TOKEN
from batchnlp.backends.torch_encoder import TorchEncoder, _Flight
from batchnlp.types import Batch, Decoding, ModelFiles, Pieces, Resolved

SHORT = 512  # tokens, a model's limit; steps win over texts of mixed lengths, fused attention where nearly all are above 300
IN_STEPS = {"SNIPPETS_MODE": "DISABLE"}  # no public option, so a version may not know it


def make(
    model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None
) -> TorchEncoder:
    """The encoder on OpenVINO; where it does not do this model justice, on torch, which has no int8."""
    openvino = load_openvino()
    plainly = replace(resolved, dtype="float32") if resolved.dtype == "int8" else resolved
    return fast_or_plain(
        lambda: OpenVinoEncoder(openvino, model, resolved, kind, threads),
        lambda: TorchEncoder(model, plainly, kind, threads),
        "on torch, because OpenVINO does not run this model",
    )


class _Whole(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """What becomes the graph: the model and its pooling, without what is left to torch."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """See `Answer.whole`."""
        return self.answer.whole(input_ids, attention_mask, token_type_ids)


class OpenVinoEncoder(TorchEncoder):
    """One model on the CPU, in one stream a thread."""

    def __init__(self, openvino: Any, model: ModelFiles, resolved: Resolved, kind: str, threads: int) -> None:
        super().__init__(model, resolved, kind, threads, dtype="float32")
        self._openvino = openvino
        self._typed = "token_type_ids" in inspect.signature(self._model.forward).parameters
        rows = sequences(self._model.config, model.max_length)
        example, part = self._example(rows), self._example([row[-9:] for row in rows[:2]])
        with torch.inference_mode():
            wanted = self._answer.whole(**example)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, about shapes it takes for constants: the canary has others
            converted = openvino.convert_model(_Whole(self._answer), example_input=part)
        in_8_bits = resolved.dtype == "int8"
        if in_8_bits and not quantize(converted):
            raise Unsupported("it has no products with weights that are constants")
        half = probe_hardware().fast_bfloat16 if in_8_bits else resolved.dtype == "bfloat16"
        compiled = _compile(openvino, converted, model.max_length <= SHORT, {
            "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP if in_8_bits else "0",
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads, "EXECUTION_MODE_HINT": "PERFORMANCE",
            "ENABLE_CPU_PINNING": False,  # the replicas of a machine would all be pinned to the same cores
        })  # fmt: skip
        self._columns = wanted.shape[-1]
        self._names = [next(name for name in example if name in port.get_names()) for port in compiled.inputs]
        self._ahead = threads
        self._idle = [compiled.create_infer_request() for _ in range(threads + 1)]
        got = self._start(Batch(np.arange(len(rows)), max(map(len, rows))), example)
        got.wait()
        check_close(unpadded(got.host, rows), unpadded(wanted, rows), resolved.dtype)
        self._model = self._answer.model = None  # OpenVINO has the weights

    def _example(self, rows: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        ids, mask = padded(rows, self._pad)
        return self._complete({"input_ids": ids, "attention_mask": mask})

    def _complete(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The graph has no optional inputs."""
        ids = inputs["input_ids"]
        inputs.setdefault("attention_mask", torch.ones_like(ids))
        if self._typed:
            inputs.setdefault("token_type_ids", torch.zeros_like(ids))
        return inputs

    def _launch(self, pieces: Pieces, batch: Batch, lengths: Any) -> _Flight:
        inputs = self._inputs(pieces, batch, lengths)
        word = inputs.pop("word", None)
        flight = self._start(batch, self._complete(inputs))
        if self.kind not in BY_TOKEN:
            return flight
        answer = torch.empty(*flight.host.shape[:2], self.width)

        def wait() -> None:
            flight.wait()
            answer.copy_(self._answer.reduced(flight.host, word))

        return _Flight(batch, answer, wait)

    def _start(self, batch: Batch, inputs: dict[str, torch.Tensor]) -> _Flight:
        request = self._idle[-1]
        rows, length = inputs["input_ids"].shape
        host = torch.empty(*((rows, length) if self.kind in BY_TOKEN else (rows,)), self._columns)
        tensor = self._openvino.Tensor
        arrays = {name: inputs[name].numpy() for name in self._names}
        request.set_tensors({name: tensor(array, shared_memory=True) for name, array in arrays.items()})
        request.set_output_tensor(tensor(host.numpy(), shared_memory=True))
        request.start_async()
        self._idle.remove(request)

        def wait() -> None:
            try:
                request.wait()
            finally:
                self._idle.append(request)
                arrays.clear()  # they had to live until now

        return _Flight(batch, host, wait)


def _compile(openvino: Any, graph: Any, short: bool, options: dict[str, Any]) -> Any:
    """The graph for the CPU. Fused attention is slow for lengths just below a multiple of 16, as most batches have."""
    core = openvino.Core()
    if short:
        with suppress(RuntimeError):
            return core.compile_model(graph, "CPU", options | IN_STEPS)
    return core.compile_model(graph, "CPU", options)
