"""The two halves of our own work, each alone: the limits of the whole.

part: forward     our backend over the same batches, already tokenised and resident: the oracle
part: tokenizer   our encode over the same documents, nothing else
"""

from __future__ import annotations

import numpy as np
from harness.contender import Facts, Settings, serve
from limits import encoder_flops, matmul_peak

from batchnlp import registry
from batchnlp.backends.device import probe_hardware, resolve
from batchnlp.engine.planner import make_plan, prepare
from batchnlp.job.load import build_spec
from batchnlp.text.alike import first_alike, keys
from batchnlp.types import Int64, Pieces


class Half:
    """One of the two, over the shards that a run would make."""

    def __init__(self, setup: Facts) -> None:
        work, settings = setup["work"], dict(setup["settings"])
        self._forward = settings.pop("part") == "forward"
        tree = {
            "source": {"path": work["corpus"], "id": "package"}, "task": work["task"], "output": {"path": "nowhere"},
            "engine": {"runner": "inline", "dtype": setup["dtype"], **settings},
        }  # fmt: skip
        prepared = prepare(build_spec(tree))
        hardware = probe_hardware()
        resolved = resolve(prepared.spec.engine, prepared.model, hardware, prepared.task.needs)
        shards = make_plan(prepared, 1).shards
        self._rows = [shard.rows for shard in shards]
        self._docs = [prepared.source.read(shard) for shard in shards]
        self._encode = prepared.task.encode
        self.facts: Facts = {"backend": resolved.backend, "tokens_per_batch": resolved.tokens_per_batch}
        if self._forward:
            self._pieces = [self._encode(docs).pieces for docs in self._docs]
            self._backend = registry.backend(prepared.model, resolved, prepared.task, hardware.cpus)
            self.facts["note"] = self._backend.note
            self._peak = matmul_peak(
                prepared.model.config, resolved.dtype, min(resolved.tokens_per_batch, 16_384), resolved.device
            )
            self._flops = sum(encoder_flops(prepared.model.config, unlike(pieces)) for pieces in self._pieces)

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """A pass over all shards; the first one for a sample."""
        n = 1 if sample else len(self._rows)
        facts: Facts = {"units": sum(self._rows[:n])}
        if not self._forward:
            for docs in self._docs[:n]:
                self._encode(docs)
            return facts
        raws = [self._backend.forward(pieces) for pieces in self._pieces[:n]]
        seconds = sum(raw.seconds for raw in raws)
        facts["executed_over_real"] = sum(raw.executed for raw in raws) / sum(raw.tokens for raw in raws)
        if not sample:
            facts |= {"tflops": self._flops / seconds / 1e12, "matmul_tflops": self._peak / 1e12}
            facts["matmul_share"] = facts["tflops"] / facts["matmul_tflops"]
        return facts


def unlike(pieces: Pieces) -> Int64:
    """Lengths of the pieces that the model is asked about: each text once."""
    return pieces.lengths[first_alike(keys(pieces)) == np.arange(len(pieces))]


if __name__ == "__main__":
    serve(Half)
