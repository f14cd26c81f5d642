"""Two texts through one encoder, and the loss of their cosines."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Towers(nn.Module):  # type: ignore[misc]
    """An encoder as Trainer wants it: tensors in, loss out."""

    def __init__(self, encoder: Any, pool: str, temperature: float) -> None:
        super().__init__()
        self.encoder, self.pool, self.temperature = encoder, pool, temperature

    @property
    def config(self) -> Any:
        """Of the encoder."""
        return self.encoder.config

    def vectors(self, ids: Any, mask: Any) -> Any:
        """[texts, width] of length one."""
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.pool == "cls":
            pooled = states[:, 0]
        else:
            weight = mask[:, :, None].to(states.dtype)
            pooled = (states * weight).sum(1) / weight.sum(1)
        return nn.functional.normalize(pooled, dim=-1)

    def forward(self, input_ids: Any, attention_mask: Any, pair_ids: Any, pair_mask: Any) -> dict[str, Any]:
        """The mean of both directions: of each text the other among all others, and back."""
        scores = self.vectors(input_ids, attention_mask) @ self.vectors(pair_ids, pair_mask).T / self.temperature
        right = torch.arange(len(scores), device=scores.device)
        entropy = nn.functional.cross_entropy
        return {"loss": (entropy(scores.float(), right) + entropy(scores.float().T, right)) / 2}
