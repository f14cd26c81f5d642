"""Text generation on torch, for decoder-only and encoder-decoder models.

A static batch goes on until its longest answer is done, and most of what it computes is thrown away. Here rows are in
flight: each enters and leaves by itself (see `in_flight` and `slots`). Models that cannot be run so (a canary compares
them with themselves) and beam search go in static batches, and `note` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import torch

from batchnlp.backends.base import One
from batchnlp.backends.canary import compare
from batchnlp.backends.decoding import Chooser, decoder_start
from batchnlp.backends.fallback import reason
from batchnlp.backends.generation import Job, answer_limits
from batchnlp.backends.in_flight import InFlight
from batchnlp.backends.slots import SlotModel
from batchnlp.backends.static import StaticBatches
from batchnlp.backends.torch_model import TorchBackend, load_model
from batchnlp.errors import BatchnlpError
from batchnlp.types import Completions, Decoding, Feed, ModelFiles, Pieces, Resolved

MEMORY = 0.25  # of what is free, for keys and values


class TorchGenerator(TorchBackend):
    """One model on one device."""

    def __init__(
        self, model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None, *,
        dtype: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(resolved, threads)
        self.decoding = decoding or Decoding()
        self._positions = model.max_length
        self._model = load_model(model, getattr(torch, dtype or resolved.dtype), kind).to(self.device)
        self._chooser = Chooser(self._model, self.decoding, model.path)
        self._begin = decoder_start(self._chooser.config, self._model.config)
        self._budget = kv_tokens(self._model, self.device)
        self._seq2seq = bool(self._model.config.is_encoder_decoder)
        self.engine: InFlight | StaticBatches = self._in_flight() or StaticBatches(
            self._model, self._chooser, self._begin, self._budget, self.device
        )

    def _in_flight(self) -> InFlight | None:
        if (beams := self._chooser.config.num_beams or 1) > 1:
            self.note = f"static batches, because of {beams} beams"
            return None
        before = self._model.config._attn_implementation
        try:
            slots = SlotModel(self._model)
            compare(slots, self._begin)
        except BatchnlpError:
            raise  # the run is to end
        except Exception as error:  # noqa: BLE001 - whatever goes wrong with the canary, static batches are right
            self._model.set_attn_implementation(before)
            self.note = f"static batches, because this model cannot be run in flight: {reason(error)}"
            return None
        slots.clear()
        return InFlight(slots, self._chooser, self._begin, self._budget, self.tokens_per_batch)

    def forward(self, pieces: Pieces) -> Completions:
        """The answers to the pieces of one shard."""
        return next(iter(self.run(One(pieces))))[1]

    def run(self, feed: Feed) -> Iterator[tuple[Any, Completions]]:
        """(key, answers) of each shard, in the order they get done."""
        return self.engine.run(feed, self._job, self.aborted, self.on_batch)

    def _job(self, key: Any, pieces: Pieces) -> Job:
        limits = answer_limits(pieces, self.decoding, self._positions, seq2seq=self._seq2seq)
        return Job.of(key, pieces, limits, alike=not self.decoding.sample, prefix=not self._seq2seq)


def kv_tokens(model: Any, device: torch.device) -> int:
    """Positions that there is memory for, over all rows."""
    config = model.config.get_text_config(decoder=True)
    heads = _first(config, "num_key_value_heads", "num_attention_heads")
    size = _first(config, "head_dim", "d_kv") or _first(config, "hidden_size") // _first(config, "num_attention_heads")
    layers = _first(config, "decoder_layers", "num_decoder_layers", "num_hidden_layers")
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * MEMORY) // int(2 * layers * heads * size * model.dtype.itemsize)


def _first(config: Any, *names: str) -> int:
    """The first of these attributes that is set; 0 where none is. Names differ between architectures."""
    return next((int(value) for name in names if (value := getattr(config, name, None)) is not None), 0)
