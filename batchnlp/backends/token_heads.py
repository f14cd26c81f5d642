"""What becomes of a model's output for each of its tokens.

A model of 50 labels answers a shard of two million tokens with 400 MB of logits. A task needs the likeliest label and its
probability, 16 MB; so the rest does not leave the device.

Shapes: B rows of a batch, L padded length, C labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnlp.text.encode import ranges
from batchnlp.types import Batch, Float32, Int64, Pieces

BY_TOKEN = ("token_scores", "span_scores")  # kinds with a row for each token, not for each piece


def best_labels(logits_BLC: Tensor, word_BL: Tensor | None) -> Tensor:
    """[B, L, 2] the likeliest label of each token and its probability, float32; with `word_BL` those of its word."""
    probabilities = logits_BLC.float().softmax(-1)
    if word_BL is not None:
        probabilities = word_means(probabilities, word_BL)
    score, label = probabilities.max(-1)
    return torch.stack([label.float(), score], -1)


def word_means(values_BLC: Tensor, word_BL: Tensor) -> Tensor:
    """[B, L, C] the mean over all tokens of the same word: those with the same number, which is below L."""
    word = word_BL[:, :, None].expand_as(values_BLC)
    sums = torch.zeros_like(values_BLC).scatter_add_(1, word, values_BLC)
    one = torch.ones_like(values_BLC[:, :, :1])
    sizes = torch.zeros_like(one).scatter_add_(1, word[:, :, :1], one)
    return (sums / sizes.clamp(min=1)).gather(1, word)


def borders(output: Any) -> Tensor:
    """[B, L, 2] start and end logits, float32."""
    return torch.stack([output.start_logits, output.end_logits], -1).float()


def token_rows(pieces: Pieces, batch: Batch, answer_BLW: Float32) -> tuple[Int64, Float32]:
    """(positions in `Pieces.ids`, [tokens, W] what a batch answered for them), padding left out."""
    size = pieces.lengths[batch.index]
    real = np.arange(answer_BLW.shape[1]) < size[:, None]
    return ranges(pieces.starts[batch.index], size), answer_BLW[real]
