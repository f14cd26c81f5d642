"""Our generator: rows enter and leave one by one. The counts need no clock; the limit needs the machine's bandwidth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from harness.contender import Facts, Settings, serve
from harness.prompts import Prompts
from limits import copy_bandwidth, matmul_peak

from batchnlp import registry
from batchnlp.backends.device import probe_hardware, resolve
from batchnlp.backends.in_flight import InFlight
from batchnlp.job.spec import EngineSpec
from batchnlp.types import Decoding, ModelFiles


class Ours:
    """The backend itself, fed with pieces as a task would hand them over."""

    def __init__(self, setup: Facts) -> None:
        work, dtype = setup["work"], setup["dtype"]
        self._prompts = {False: Prompts.read(work["prompts"]), True: Prompts.read(work["sample_prompts"])}
        config = json.loads(Path(work["path"], "config.json").read_text())
        files = ModelFiles("bench", work["path"], "local", "", "", config, 1024)
        engine = EngineSpec(device=setup.get("device", "cpu"), dtype=dtype, **setup["settings"])
        resolved = resolve(engine, files, probe_hardware(), "completions")
        decoding = Decoding(max_new_tokens=int(self._prompts[False].most.max()))
        make = registry.load(registry.BACKENDS[resolved.backend], "completions")
        self.backend = make(files, resolved, "completions", setup["threads"], decoding)
        if self.backend.note or not isinstance(self.backend.engine, InFlight):
            raise RuntimeError(self.backend.note)
        self._engine = self.backend.engine
        self._model = self.backend._model  # its shapes: OpenVINO has taken the weights
        self._itemsize = getattr(torch, dtype).itemsize
        device = str(self.backend.device)
        self._bandwidth = copy_bandwidth(device)
        self._peak = matmul_peak(config, dtype, 64, device)  # of a step of all rows
        self.backend.on_batch = self._watch
        self._steps = self._seen = self._positions = 0

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """All prompts as one shard."""
        prompts, engine = self._prompts[sample], self._engine
        self._steps = self._positions = 0
        rows, prefilled, self._seen = engine.row_steps, engine.prefilled, engine.row_steps
        raw: Any = self.backend.forward(prompts.pieces())
        if raw.failures or len(raw.ids) != prompts.useful:
            raise RuntimeError(f"{len(raw.ids)} tokens instead of {prompts.useful}, {len(raw.failures)} failures")
        row_steps, prefilled = engine.row_steps - rows, engine.prefilled - prefilled
        needed = prompts.useful - len(prompts)  # the first token of an answer comes of its prefill
        tree = prompts.prefix_tree() if not self._engine._slots.seq2seq else len(prompts)
        return {
            "units": prompts.useful, "steps_over_useful": row_steps / max(needed, 1), "steps": self._steps,
            "prefill_over_tree": prefilled / tree, "bandwidth_gb": self._bandwidth / 1e9,
            "limit_seconds": self._limit(prompts, row_steps), "flop_seconds": self._flops(prompts) / self._peak,
        }  # fmt: skip

    def _watch(self, finished: int, tokens: int, executed: int, seconds: float) -> None:
        """After each step, and after each prefill."""
        if self._engine.row_steps != self._seen:
            self._seen = self._engine.row_steps
            self._steps += 1
            self._positions += sum(row.length + len(row.source) for row in self._engine._rows)

    def _limit(self, prompts: Prompts, row_steps: int) -> float:
        """Seconds to read, in each step, all weights and the live keys and values once."""
        config = self._model.config.get_text_config(decoder=True)
        weights = sum(p.numel() for p in _decoder(self._model).parameters()) * self._itemsize
        queries = config.num_attention_heads
        heads, hidden = getattr(config, "num_key_value_heads", None) or queries, config.hidden_size
        layers = getattr(config, "decoder_layers", None) or config.num_hidden_layers
        position = 2 * layers * heads * (hidden // queries) * self._itemsize
        return (self._steps * weights + self._positions * position) / self._bandwidth

    def _flops(self, prompts: Prompts) -> float:
        """Two operations a weight and token, attention left out."""
        tokens = prompts.useful + len(prompts.ids)
        return 2.0 * tokens * sum(p.numel() for p in _decoder(self._model).parameters())


def _decoder(model: Any) -> torch.nn.Module:
    """The part that a step goes through: all of a decoder-only model."""
    return model.get_decoder() if model.config.is_encoder_decoder else model  # type: ignore[no-any-return]


if __name__ == "__main__":
    serve(Ours)
