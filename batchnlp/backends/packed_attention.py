"""The attention of packed tokens: the one function that knows where a row ends and the next begins; and how a model is given
another attention than its own.

Registered with transformers by `slots`, which says before each call of the model what is packed (`Step`), because
the modules in between only hand tensors on. Shapes as there: T packed tokens, B rows in flight, L cached positions,
H heads, K key-value heads, D head size.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

under_way = threading.local()  # the SlotModel and the Step of the call that this thread is in


class Unsupported(Exception):
    """This model cannot be computed from packed tokens."""


@dataclass(slots=True)
class Span:
    """One row's part of the packed tokens."""

    slot: int
    start: int  # first packed token
    stop: int
    past: int = 0  # positions that are in the slot already
    source: tuple[int, int] = (0, 0)  # its part of the packed encoder states


class PackedModel(Protocol):
    """A generative model that computes packed tokens, as `in_flight` drives it; a row is known by its slot.

    `slots.SlotModel` is one on torch, `paged.PagedModel` one on OpenVINO.
    """

    model: Any  # of transformers
    seq2seq: bool
    device: torch.device
    dtype: torch.dtype

    @property
    def held(self) -> int:
        """Positions that it keeps memory for, or just tried to."""

    def plain(self) -> AbstractContextManager[Any]:
        """The model as transformers would run it."""

    def clear(self) -> None:
        """Forget all rows and give their memory back."""

    def reserve(self, slots: int, length: int, source_length: int = 0) -> None:
        """Room for so many rows and positions; what is in these slots stays, what is in later ones need not."""

    def encode(self, ids: Tensor, spans: list[Span]) -> Tensor:
        """[1, T, hidden] of the sources [T]; encoder-decoder models only."""

    def prefill(self, ids: Tensor, spans: list[Span], states: Tensor | None = None) -> Tensor:
        """[rows, vocabulary] logits after each row's prompt; `ids` [T] are the packed prompts."""

    def decode(self, ids: Tensor, positions: Tensor, longest: int, sources: Tensor | None = None) -> Tensor:
        """[B, vocabulary] logits of the next token; `ids` [B] the newest tokens, `positions` [B] theirs."""

    def move(self, source: int, target: int, length: int, source_length: int = 0) -> None:
        """The row in slot `source` goes on in `target`."""

    def keep_prefix(self, slot: int, length: int) -> None:
        """Remember the first positions of a slot as the prefix of prompts to come."""

    def put_prefix(self, slots: list[int]) -> None:
        """Write the prefix into these slots."""


def replace_attention(model: Any, name: str, attend: Callable[..., Any]) -> None:
    """Let all of a model's attention be computed by `attend`. Raises Unsupported where it cannot be replaced."""
    AttentionInterface.register(name, attend)
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise Unsupported("its attention cannot be replaced")


@contextmanager
def with_attention(model: Any, name: str) -> Iterator[Any]:
    """The model with another attention, for as long as this lasts."""
    own = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield model
    finally:
        model.set_attn_implementation(own)


@dataclass(slots=True)
class Step:
    """What the attention function must know of the call that is under way."""

    kind: str  # encode, prefill, decode
    spans: list[Span]  # encode and prefill
    positions: Tensor  # [T]
    longest: int = 0  # decode: cached positions of the longest row, with the new one
    sources: Tensor | None = None  # decode: [B] encoder states of each row
    biases: dict[Any, Tensor] = field(default_factory=dict)  # relative positions, once a call and not once a layer
    masks: dict[Any, Tensor] = field(default_factory=dict)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    sliding_window: int | None = None, position_bias: Tensor | None = None, softcap: float | None = None,
    s_aux: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, H, T, D], key and value [1, K, T, D] → [1, T, H, D]."""
    model, step = under_way.model, under_way.step
    if mask is not None or s_aux is not None:
        raise Unsupported("it masks or sinks its attention in a way of its own")
    cross = model.crosses(module)
    bias = None
    if position_bias is not None and not cross:
        bias = _Bias(module, step)
    if step.kind == "decode":
        return _decode(model, step, module, query, key, value, scaling, sliding_window, bias, cross, softcap), None
    out = []
    for span in step.spans:
        q = query[:, :, span.start : span.stop]
        k, v, allowed = _seen(model, step, module, span, key, value, sliding_window, cross)
        if bias is not None:
            allowed = bias.of(step.positions[span.start : span.stop], k.shape[2], allowed)
        out.append(_attention(q, k, v, allowed, scaling, softcap).transpose(1, 2))
    return torch.cat(out, 1), None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | bool | None,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """query [B, H, T, D], key and value [B, K, L, D] → [B, H, T, D]; `allowed` as `_seen` has it, or added to scores."""
    whole = allowed is True
    if not softcap:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if whole else allowed, is_causal=whole and query.shape[2] > 1,
            scale=scaling, enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scaling or query.shape[3] ** -0.5) / softcap)
    if whole:
        allowed = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if isinstance(allowed, Tensor):
        scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype == torch.bool else scores + allowed
    return torch.softmax(scores, -1, torch.float32).to(query.dtype) @ value


def _seen(
    model: Any, step: Step, module: Any, span: Span, key: Tensor, value: Tensor, window: int | None, cross: bool
) -> tuple[Tensor, Tensor, Tensor | bool | None]:
    """(keys, values, mask) of one row [1, K, n, D]; True stands for causal, None for everything."""
    if step.kind == "encode":
        return key[:, :, span.start : span.stop], value[:, :, span.start : span.stop], None
    stores = model.kv(module, key)
    begin, end = span.source if cross else (span.start, span.stop)
    past = 0 if cross else span.past
    for store, new in zip(stores, (key, value), strict=True):
        store[span.slot, :, past : past + end - begin] = new[0, :, begin:end]
    if cross:
        return key[:, :, begin:end], value[:, :, begin:end], None
    if not past and (window is None or end - begin <= window):
        return key[:, :, begin:end], value[:, :, begin:end], True
    n = past + end - begin
    at = step.positions[span.start : span.stop, None]
    columns = torch.arange(n, device=at.device)[None]
    allowed = columns <= at if window is None else (columns <= at) & (columns > at - window)
    return stores[0][span.slot, None, :, :n], stores[1][span.slot, None, :, :n], allowed


def _decode(
    model: Any, step: Step, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None,
    window: int | None, bias: _Bias | None, cross: bool, softcap: float | None,
) -> Tensor:  # fmt: skip
    """One new token a row: the heads that share a key-value head are the queries of one small attention each."""
    rows = query.shape[2]
    keys, values = model.kv(module, key)
    if cross:
        assert step.sources is not None
        ends, longest = step.sources, int(model.source_length)
    else:
        ends, longest = step.positions + 1, step.longest
        at = torch.arange(rows, device=query.device)
        keys[at, :, step.positions] = key[0].transpose(0, 1)
        values[at, :, step.positions] = value[0].transpose(0, 1)
    heads = keys.shape[1]
    q = query[0].transpose(0, 1).reshape(rows, heads, -1, query.shape[3])  # [B, K, H / K, D]
    mask: Any = _mask(step, ends, longest, None if cross else window, query.dtype)
    if bias is not None:
        mask = bias.of(step.positions, longest, None).permute(2, 1, 0, 3) + mask  # [B, H, 1, L]
    out = _attention(q, keys[:rows, :, :longest], values[:rows, :, :longest], mask, scaling, softcap)
    return out.reshape(1, rows, query.shape[1], query.shape[3])


def _mask(step: Step, ends: Tensor, longest: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[B, 1, 1, L] zero where a row has been, minus infinity elsewhere; the same for all layers of a kind."""
    found = step.masks.get(key := (ends is step.sources, window))
    if found is None:
        columns = torch.arange(longest, device=ends.device)[None]
        seen = columns < ends[:, None]
        if window is not None:
            seen &= columns >= ends[:, None] - window
        found = torch.zeros(seen.shape, dtype=dtype, device=ends.device).masked_fill_(~seen, -torch.inf)[:, None, None]
        step.masks[key] = found
    return found


class _Bias:
    """Relative position biases of T5: of the module that has the table, or of the last one that had."""

    def __init__(self, module: Any, step: Step) -> None:
        self._step = step
        if module.has_relative_attention_bias:
            step.biases = {"module": module}
        self._owner: Any = step.biases["module"]

    def of(self, positions: Tensor, length: int, allowed: Tensor | bool | None) -> Tensor:
        """[1, H, n, length] for queries at `positions` [n]; minus infinity where attention is not allowed."""
        key = (int(positions[0]), len(positions), length, positions.data_ptr())
        found = self._step.biases.get(key)
        if found is None:
            owner = self._owner
            distance = torch.arange(length, device=positions.device)[None] - positions[:, None]
            found = owner.relative_attention_bias(_buckets(owner, distance)).permute(2, 0, 1)[None]
            if allowed is True:
                allowed = distance <= 0
            if allowed is not None:
                found = found.masked_fill(~allowed, -torch.inf)
            self._step.biases[key] = found
        return found


def _buckets(owner: Any, distance: Tensor) -> Tensor:
    """Which of its biases T5 takes for a distance; UMT5 knows the rest by itself."""
    find = owner._relative_position_bucket
    if "bidirectional" not in inspect.signature(find).parameters:
        return torch.as_tensor(find(distance))
    return torch.as_tensor(
        find(
            distance, bidirectional=not owner.is_decoder, num_buckets=owner.relative_attention_num_buckets,
            max_distance=owner.relative_attention_max_distance,
        )
    )  # fmt: skip
