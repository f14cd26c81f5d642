"""Generation on OpenVINO: the torch model converted in memory, with paged attention; on CPUs.

Which rows are in flight, how tokens are chosen, what happens when a row fails: all that is `in_flight` as on torch. Only
the call is another one (see `paged`). A model that it does not run, or not as transformers does, is run on torch, and
`note` says so.
"""

from __future__ import annotations

from typing import Any

from batchnlp.backends.canary import compare
from batchnlp.backends.fallback import fast_or_plain
from batchnlp.backends.in_flight import ROWS, InFlight
from batchnlp.backends.openvino_library import load_openvino
from batchnlp.backends.packed_attention import Unsupported
from batchnlp.backends.paged import PagedModel
from batchnlp.backends.paged_seq2seq import PagedSeq2Seq
from batchnlp.backends.torch_generator import TorchGenerator
from batchnlp.types import Decoding, ModelFiles, Resolved


def make(
    model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None
) -> TorchGenerator:
    """The generator on OpenVINO; where it does not do this model justice, on torch."""
    openvino = load_openvino()
    return fast_or_plain(
        lambda: OpenVinoGenerator(openvino, model, resolved, kind, threads, decoding),
        lambda: TorchGenerator(model, resolved, kind, threads, decoding),
        "on torch, because OpenVINO does not run this model",
    )


class OpenVinoGenerator(TorchGenerator):
    """One model on the CPU."""

    def __init__(
        self, openvino: Any, model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None
    ) -> None:
        self._openvino, self._precision, self._threads = openvino, resolved.dtype, threads
        super().__init__(model, resolved, kind, threads, decoding, dtype="float32")

    def _in_flight(self) -> InFlight:
        if (self._chooser.config.num_beams or 1) > 1:
            raise Unsupported("it is to search with beams")
        rows = ROWS["cpu"]
        budget = min(self._budget, rows * self._positions)
        room = budget + 2 * self._positions  # beside the rows: what their prompts begin with, and the one before
        kind = PagedSeq2Seq if self._seq2seq else PagedModel
        paged = kind(self._openvino, self._model, self._precision, self._threads, rows, room)
        compare(paged, self._begin)
        paged.clear()
        self._model.to("meta")  # OpenVINO has the weights; the config and the processors are what is still asked for
        return InFlight(paged, self._chooser, self._begin, budget, self.tokens_per_batch)
