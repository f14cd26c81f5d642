"""What an encoder answers: the model with its pooling or its head, as one module.

Shapes: B rows of a batch, L padded length, T packed tokens, H hidden size, W columns of the answer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from batchnlp.backends.token_heads import BY_TOKEN, best_labels, borders
from batchnlp.errors import ModelError
from batchnlp.types import ModelFiles


class Answer(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """The model with its pooling: [B, W] logits or vectors or, for values of tokens, [B, L, W], in float32."""

    def __init__(self, model: Any, kind: str, pooler: Pooler | None) -> None:
        super().__init__()
        self.model, self.kind, self.pooler = model, kind, pooler
        self.width = pooler.width if pooler is not None else 2 if kind in BY_TOKEN else int(model.config.num_labels)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        word: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """All inputs [B, L]."""
        return self.reduced(self.whole(input_ids, attention_mask, token_type_ids), word)

    def whole(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """What the model says, of every label for every token where it judges tokens."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        if self.pooler is not None:
            return self.pooler(out.last_hidden_state, attention_mask)
        return self.read(out)

    def read(self, out: Any) -> Tensor:
        """The head's answer in what the model returns."""
        return borders(out) if self.kind == "span_scores" else out.logits.float()

    def reduced(self, whole: Tensor, word: Tensor | None) -> Tensor:
        """What of it leaves the device."""
        return best_labels(whole, word) if self.kind == "token_scores" else whole


class Pooler(torch.nn.Module):  # type: ignore[misc]
    """Token states to one vector a piece, as the model's sentence-transformers modules say; Normalize is the task's."""

    def __init__(self, model: ModelFiles, device: torch.device) -> None:
        super().__init__()
        self.modes = next((m["modes"] for m in model.modules if m["type"] == "Pooling"), ["mean"])
        self.width = model.hidden_size * len(self.modes)
        self._dense = torch.nn.Sequential()
        for module in model.modules:
            if module["type"] == "Dense":
                self._dense.append(_dense(model.path, module).to(device))
                self.width = int(module["out_features"])

    def forward(self, states_BLH: Tensor, mask_BL: Tensor | None) -> Tensor:
        """[B, width] float32."""
        states = states_BLH.float()
        parts = [pool(states, mask_BL, mode) for mode in self.modes]
        vectors = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return self._dense(vectors)

    def packed(self, states_TH: Tensor, starts: Tensor) -> Tensor:
        """[B, width] float32 from packed states; row i is tokens `starts[i]` to `starts[i + 1]`."""
        states, sizes = states_TH.float(), starts.diff()
        parts = {"cls": lambda: states[starts[:-1]], "last": lambda: states[starts[1:] - 1]}
        vectors = [
            parts[mode]() if mode in parts else torch.segment_reduce(states, mode, lengths=sizes, axis=0)
            for mode in self.modes
        ]
        return self._dense(vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1))


def pool(states_BLH: Tensor, mask_BL: Tensor | None, mode: str) -> Tensor:
    """[B, H] from the states of real tokens: mean, cls (the first), max or last."""
    if mode == "cls":
        return states_BLH[:, 0]
    if mask_BL is None:
        if mode == "last":
            return states_BLH[:, -1]
        return states_BLH.mean(1) if mode == "mean" else states_BLH.amax(1)
    if mode == "last":
        return states_BLH[torch.arange(states_BLH.shape[0], device=states_BLH.device), mask_BL.sum(1) - 1]
    real = mask_BL[:, :, None].to(states_BLH.dtype)
    if mode == "mean":
        return (states_BLH * real).sum(1) / real.sum(1)
    return states_BLH.masked_fill(real == 0, -torch.inf).amax(1)


def _dense(path: str, module: dict[str, Any]) -> torch.nn.Module:
    from safetensors.torch import load_file

    weights = load_file(f"{path}/{module['path']}/model.safetensors")
    linear = torch.nn.Linear(module["in_features"], module["out_features"], bias=module["bias"])
    linear.load_state_dict({key.removeprefix("linear."): value.float() for key, value in weights.items()})
    activation = getattr(torch.nn, module["activation"], None)
    if activation is None:
        raise ModelError(
            f"{path} has a dense layer with the activation {module['activation']}", "it is not in torch.nn"
        )
    return torch.nn.Sequential(linear, activation()).eval()
