"""embed: a vector for each document.

Pooling, maximum length, dense layers and normalisation are the model's own, read from its sentence-transformers files
(mean pooling where there are none). A long document is the token-weighted mean of its windows' vectors, taken before
the normalisation, which with mean pooling is the mean over all its tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.errors import ModelError
from batchnlp.tasks.base import TextTask, merge
from batchnlp.tasks.labels import finite_rows
from batchnlp.types import WIDTHS, Encoded, Float32, ModelFiles, Raw


def vector_size(model: ModelFiles) -> int:
    """Width of the model's vectors, after its dense layers."""
    size = model.hidden_size
    if not size:
        raise ModelError(f"{model.name} does not tell the width of its vectors", f"config.json has no {WIDTHS[0]}")
    for module in model.modules:
        if module["type"] == "Pooling":
            size *= len(module["modes"])
        elif module["type"] == "Dense":
            size = int(module["out_features"])
    return size


def unit(vectors: Float32) -> Float32:
    """Rows scaled to length one, as torch.nn.functional.normalize does it."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), np.float32)


class Embed(TextTask):
    """One vector a document."""

    needs = "vectors"
    pieces_per_doc = 1

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        if model.config.get("is_encoder_decoder"):
            hint = "use an encoder, at best one with sentence-transformers files"
            raise ModelError(f"{model.name} has a decoder beside its encoder, and embed would need one of them", hint)
        if spec.prompt is None:  # sentence-transformers puts a model's default prompt before every text
            self.prompt = next((module["text"] for module in model.modules if module["type"] == "Prompt"), "")
        if self.prompt and any(module.get("without_prompt") for module in model.modules):
            message = f"{model.name} leaves its prompt out of the pooling (include_prompt), which is not possible yet"
            raise ModelError(message, "--set task.prompt='' embeds without a prompt")
        self.lower_case = any(module["type"] == "LowerCase" for module in model.modules)
        by_model = any(module["type"] == "Normalize" for module in model.modules)
        self._normalize: bool = by_model if spec.normalize is None else spec.normalize
        self._size = vector_size(model)

    @property
    def fields(self) -> list[pa.Field]:
        """The result column."""
        return [pa.field("embedding", pa.list_(pa.float32(), self._size))]

    def vectors(self, encoded: Encoded, raw: Raw) -> Float32:
        """[docs, dim] merged over windows, normalised where the model or the job says so."""
        pieces = encoded.pieces
        merged = merge(raw.values, pieces.doc, pieces.weight, len(encoded.counts.n_tokens))
        return unit(merged) if self._normalize else merged

    def decode(self, encoded: Encoded, raw: Raw) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
        """Vectors as a fixed-size list."""
        vectors = self.vectors(encoded, raw)
        finite = finite_rows(vectors)
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        return [pa.FixedSizeListArray.from_arrays(flat, self._size)], finite
