"""embed: vectors that are near where texts belong together, from pairs.

A pair's other text must be nearer than those of all other pairs of the batch: the softmax over cosines, both ways. The
model is saved with the module files of sentence-transformers, so that a job pools and scales it as it was trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchnlp.errors import ModelError
from batchnlp.job.train import TrainSpec
from batchnlp.train.beside import check_texts, judge_texts, texts_of
from batchnlp.train.corpus import Rows, Verdict
from batchnlp.train.examples import Examples, Ragged, mask
from batchnlp.train.kind import JUDGED_TOKENS, Kind, Tensors
from batchnlp.train.start import SENTENCE_FILES
from batchnlp.types import Float32, Int64

MOST_JUDGED = 5_000  # pairs whose texts are ranked against each other


class Embed(Kind):
    """AutoModel, with mean pooling unless its files say otherwise."""

    head, task = "AutoModel", "FEATURE_EXTRACTION"
    metric, greater = "mrr", True
    rates = (2e-5, 5e-4)

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__(spec)
        self.columns = (spec.pair,)
        assert self.start.model is not None
        modules = self.start.model.modules
        pools = [mode for module in modules if module["type"] == "Pooling" for mode in module["modes"]] or ["mean"]
        other = [module["type"] for module in modules if module["type"] in ("Dense", "LowerCase", "Prompt")]
        if other or len(pools) > 1 or pools[0] not in ("mean", "cls"):
            message = f"{self.start.model.name} has {other[0] if other else '+'.join(pools) + ' pooling'}"
            raise ModelError(message, "embed trains models with mean or cls pooling and nothing after it")
        self.pool = pools[0]

    def check(self, schema: pa.Schema) -> None:
        """Both of a pair are texts."""
        check_texts(schema, self.spec.pair, "pair")

    def judge(self, rows: Rows) -> Verdict:
        """Rows whose other text is missing."""
        return judge_texts(rows, self.spec.pair, "pair")

    def encode(self, rows: Rows, *, train: bool) -> Examples:
        """Both texts."""
        targets, cut = self.sequences(texts_of(rows, self.spec.pair))
        found = super().encode(rows, train=train)
        return replace(found, targets=targets, truncated=found.truncated + cut)

    def build(self) -> Any:
        """The encoder inside a module that answers with a loss."""
        from batchnlp.train.towers import Towers

        return Towers(super().build(), self.pool, self.spec.temperature)

    def adapt(self, model: Any, wrap: Callable[[Any], Any]) -> Any:
        """The encoder is what has adapters."""
        model.encoder = wrap(model.encoder)
        return model

    def tensors(self, examples: Examples, index: Int64) -> Tensors:
        """Both texts, each with its mask."""
        import torch

        other = examples.targets
        assert other is not None
        return {
            **super().tensors(examples, index), "pair_ids": torch.from_numpy(other.padded(index, self.pad)),
            "pair_mask": torch.from_numpy(mask(other.lengths[index])),
        }  # fmt: skip

    def measure(self, model: Any, examples: Examples) -> dict[str, float]:
        """How far up the right text is among those of all held-out pairs: mean reciprocal rank, and recall at 1 and 10."""
        some = min(len(examples), MOST_JUDGED)
        assert examples.targets is not None
        a, b = (self._vectors(model, texts)[:some] for texts in (examples.inputs, examples.targets))
        scores = a @ b.T
        rank = 1 + (scores > np.diag(scores)[:, None]).sum(axis=1)
        return {
            "mrr": float((1 / rank).mean()), "recall_1": float((rank <= 1).mean()),
            "recall_10": float((rank <= 10).mean()), "pairs": float(some),
        }  # fmt: skip

    def _vectors(self, model: Any, texts: Ragged) -> Float32:
        import torch

        from batchnlp.train.examples import batches

        out: Float32 = np.zeros((0, 0), np.float32)
        device = next(model.parameters()).device
        was = model.training
        model.eval()
        with torch.no_grad():
            for index in batches(texts.lengths, JUDGED_TOKENS):
                ids, there = texts.padded(index, self.pad), mask(texts.lengths[index])
                found = model.vectors(torch.from_numpy(ids).to(device), torch.from_numpy(there).to(device))
                values = found.float().cpu().numpy()
                out = out if out.size else np.zeros((len(texts), values.shape[1]), np.float32)
                out[index] = values
        model.train(was)
        return out

    def save(self, model: Any, folder: Path) -> None:
        """The encoder, and the files that say how to pool."""
        super().save(model.encoder, folder)
        source = Path(self.start.path)
        if (source / "modules.json").is_file():
            for name in (*SENTENCE_FILES, *(p.parent.name for p in source.glob("*_*/config.json"))):
                if (source / name).is_dir():
                    shutil.copytree(source / name, folder / name, dirs_exist_ok=True)
                elif (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
            return
        names = ("Transformer", "Pooling", "Normalize")
        modules = [{"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
                   for i, name in enumerate(names)]  # fmt: skip
        width = int(model.encoder.config.hidden_size)
        pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": self.pool == "mean",
                   "pooling_mode_cls_token": self.pool == "cls"}  # fmt: skip
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "modules.json").write_text(json.dumps(modules, indent=1), encoding="utf-8")
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=1), encoding="utf-8")
