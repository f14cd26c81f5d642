"""Encoders on a GPU without padding: all tokens of a batch go through the stock model in one sequence [1, T].

Only attention mixes tokens, so only the attention function must know where one document ends and the next begins; it is
replaced through transformers' own registry, on CUDA by varlen attention, elsewhere (in tests) by one attention a document.
Positions are given, and what reads the first token is handed the first tokens of all documents as if they were rows.

A model is trusted to run so after a canary has compared it with itself, padded; otherwise it is run padded, and `note` says
so. Eager attention (MPNet, DeBERTa) only warns when another one is asked for, so that is looked at first.

Shapes: B documents of a batch, T their tokens, H hidden size, heads N of size D, W columns of the answer.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from batchnlp.backends.canary import check_close, each_alone, sequences
from batchnlp.backends.fallback import fast_or_plain
from batchnlp.backends.first_token import hook_last_layer
from batchnlp.backends.model_files import first_position
from batchnlp.backends.packed_attention import Unsupported, replace_attention
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.text.batching import fill
from batchnlp.text.encode import offsets, ranges
from batchnlp.types import Batch, Decoding, Float32, Int64, ModelFiles, Pieces, Resolved

NAME = "batchnlp_packed"
_state = threading.local()  # the Borders of the call that this thread is in


@dataclass(frozen=True, slots=True)
class Borders:
    """Where documents begin and end in the packed tokens."""

    starts: Tensor  # [B + 1] int32, on the device
    ends: list[int]  # the same on the host
    longest: int


def make(
    model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None
) -> TorchEncoder:
    """The encoder that fits the device: packed on a GPU, whose varlen attention takes 16-bit numbers only."""
    if not resolved.device.startswith("cuda") or resolved.dtype == "float32":
        return TorchEncoder(model, resolved, kind, threads)
    return fast_or_plain(
        lambda: PackedEncoder(model, resolved, kind, threads),
        lambda: TorchEncoder(model, resolved, kind, threads),
        "padded batches, because this model cannot be run packed",
    )


class PackedEncoder(TorchEncoder):
    """One model on one device, without padding."""

    def __init__(
        self, model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None
    ) -> None:
        super().__init__(model, resolved, kind, threads)
        parameters = inspect.signature(self._base.forward).parameters
        if "position_ids" not in parameters:
            raise Unsupported("it takes no positions")
        self._typed = "token_type_ids" in parameters
        self._first_position = first_position(model.config)
        rows = sequences(self._model.config, model.max_length)
        pieces = _pieces(rows)
        batch = Batch(np.arange(len(rows)), max(map(len, rows)), len(pieces.ids))
        with torch.inference_mode():
            wanted = each_alone(self._answer.whole, [row.to(self.device) for row in rows])
            self._replace_attention()
            check_close(self._whole(pieces, batch, pieces.lengths), wanted, resolved.dtype)
        self.note = ""  # what padding would change does not matter

    @property
    def _base(self) -> Any:
        return self._model.base_model

    def _replace_attention(self) -> None:
        replace_attention(self._model, NAME, attend)
        for hook in self._cut:
            hook.remove()
        if self._first_only and not hook_last_layer(self._model, _first_tokens):
            self._base.register_forward_hook(_pick_states)

    def _batches(self, lengths: Int64) -> Iterator[Batch]:
        return fill(lengths, self.tokens_per_batch)

    def _computed(self, pieces: Pieces, batch: Batch, lengths: Any) -> Tensor:
        """[B, W] or [T, W], on the device."""
        whole, word = self._whole(pieces, batch, lengths), None
        if whole.ndim == 2:
            return whole
        if pieces.word is not None:
            size = lengths[batch.index]
            word = pieces.word[ranges(pieces.starts[batch.index], size)] + np.repeat(offsets(size)[:-1], size)
        return self._answer.reduced(whole, None if word is None else self._row(word))[0]

    def _whole(self, pieces: Pieces, batch: Batch, lengths: Any) -> Tensor:
        """[B, W], or [1, T, labels] where tokens are judged."""
        size = lengths[batch.index]
        where, starts = ranges(pieces.starts[batch.index], size), offsets(size)
        nth = np.arange(len(where)) - np.repeat(starts[:-1], size)
        inputs = {
            "input_ids": self._row(pieces.ids[where]), "position_ids": self._row(nth + self._first_position),
        }  # fmt: skip
        if self._typed:
            kinds = np.zeros(len(where)) if pieces.type_ids is None else pieces.type_ids[where]
            inputs["token_type_ids"] = self._row(kinds)
        _state.borders = borders = Borders(self._row(starts)[0].int(), starts.tolist(), int(size.max()))
        try:
            out = self._model(**inputs)
        finally:
            _state.borders = None
        pooler = self._answer.pooler
        if pooler is None:
            return self._answer.read(out)
        if self._first_only:
            return pooler(out.last_hidden_state, None)
        return pooler.packed(out.last_hidden_state[0], borders.starts)

    def _row(self, values: Any) -> Tensor:
        """[1, n] int64 on the device."""
        tensor = torch.from_numpy(np.asarray(values, np.int64))[None]
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _rows(self, pieces: Pieces, batch: Batch, answer: Any) -> tuple[Int64, Float32]:
        return ranges(pieces.starts[batch.index], pieces.lengths[batch.index]), answer


def _pieces(rows: Sequence[Tensor]) -> Pieces:
    n = len(rows)
    ids = torch.cat(list(rows)).numpy().astype(np.int32)
    return Pieces(ids, offsets(np.array([*map(len, rows)])), np.arange(n, dtype=np.int32), np.ones(n, np.int32))


def _first_tokens(states_1TH: Tensor) -> Tensor:
    """[B, 1, H]."""
    return states_1TH[0, _state.borders.starts[:-1]][:, None]


def _pick_states(module: Any, args: Any, out: Any) -> Any:
    """The base model's answer with first tokens as rows, for the head that reads them."""
    out.last_hidden_state = _first_tokens(out.last_hidden_state)
    return out


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    sliding_window: int | None = None, position_bias: Tensor | None = None, softcap: float | None = None,
    s_aux: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, N, T, D], key and value [1, K, T, D] → [1, T, N, D]."""
    if mask is not None or position_bias is not None or softcap or s_aux is not None:
        raise Unsupported("it masks, caps, biases or sinks its attention in a way of its own")
    borders: Borders = _state.borders
    causal = bool(getattr(module, "is_causal", False))
    reach = None if sliding_window is None else sliding_window - 1
    if query.is_cuda:
        return _varlen(query, key, value, borders, scaling, reach, causal=causal), None
    grouped, parts = query.shape[1] != key.shape[1], []
    for start, stop in zip(borders.ends, borders.ends[1:], strict=False):
        q, k, v = (x[:, :, start:stop] for x in (query, key, value))
        near = None if reach is None else _near(stop - start, reach, causal=causal)
        parts.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=near, is_causal=causal and near is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(parts, 2).transpose(1, 2), None


def _near(length: int, reach: int, *, causal: bool) -> Tensor:
    """[length, length] which tokens see each other."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance.abs() <= reach) & (distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool))


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, borders: Borders, scaling: float | None, reach: int | None, *,
    causal: bool,
) -> Tensor:  # fmt: skip
    from torch.nn.attention.varlen import varlen_attn

    left = -1 if reach is None else reach
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    out = varlen_attn(
        q, k, v, borders.starts, borders.starts, borders.longest, borders.longest, scale=scaling,
        window_size=(left, 0 if causal else left), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out[None]
