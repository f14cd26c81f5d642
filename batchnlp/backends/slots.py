"""A stock generative model that computes packed tokens, and keeps its keys and values in slots of our own.

The model is called with all tokens of all rows in one sequence [1, T]: prompts of different lengths when rows enter,
one token a row while they go on. Only the attention function knows where one row ends and the next begins, so it is
the only thing replaced, through transformers' own registry. Nothing is padded, a row leaves by giving its slot to the
last one, and a new one may enter at any step.

    encode   T = all source tokens of the rows that enter (encoder-decoder models only)
    prefill  T = all prompt tokens of the rows that enter; slots are filled
    decode   T = B, the newest token of each row in flight

Shapes: T packed tokens, S slots, B rows in flight, L cached positions, H heads, K key-value heads, D head size.
Positions that a decoder counts for itself (BART and its kin) are looked up in a table of what it would have added.

What a model does beyond this (soft caps, attention sinks, other masks) is refused with `Unsupported` or shows in the
canary of `torch_generator`; such a model is run in static batches.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

NAME = "batchnlp_slots"
CROSS = {"encoder_attn", "EncDecAttention"}  # what models call their cross-attention
_state = threading.local()


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


class _Pass(EncoderDecoderCache):  # type: ignore[misc]  # transformers is not followed by mypy
    """Hands keys and values through, because the attention function stores them. With `known` sources their
    projections are not computed again."""

    def __init__(self, layers: int, known: bool, like: Tensor) -> None:
        self.self_attention_cache = _Through()
        self.cross_attention_cache = _Through()
        self.cross_attention_cache.layers = [_Empty(like) for _ in range(layers)]
        self.is_updated = dict.fromkeys(range(layers), known)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are ours."""
        return 0


class _Through(DynamicCache):  # type: ignore[misc]
    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Nothing is kept."""
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are ours."""
        return 0


class _Empty:
    def __init__(self, like: Tensor) -> None:
        self.keys = self.values = like


class SlotModel:
    """The model, called with packed tokens."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seq2seq = bool(model.config.is_encoder_decoder)
        self.device, self.dtype = model.device, model.dtype
        self.slots = self.length = self.source_length = 0
        self._plain = model.config._attn_implementation
        self._kv: dict[Any, tuple[Tensor, Tensor]] = {}  # attention module → [S, K, L, D] twice
        self._prefix: dict[Any, tuple[Tensor, Tensor]] = {}  # [K, P, D] of what all prompts begin with
        self._cross = {m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] in CROSS}
        self._layers = int(getattr(model.config, "decoder_layers", 0) or getattr(model.config, "num_decoder_layers", 0))
        if self.seq2seq and len(self._cross) != self._layers:
            raise Unsupported("its cross-attention is not where it is known")
        AttentionInterface.register(NAME, attend)
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise Unsupported("its attention cannot be replaced")
        if self.seq2seq:
            self._own_positions()

    def _own_positions(self) -> None:
        """Decoders and encoders that count positions themselves get them from the step instead."""
        for stack in (self.model.get_encoder(), self.model.get_decoder()):
            embed = getattr(stack, "embed_positions", None)
            if embed is not None:
                embed.forward = _Positions(embed, self.model.config, self.device)

    @contextmanager
    def plain(self) -> Iterator[Any]:
        """The model as transformers would run it."""
        self.model.set_attn_implementation(self._plain)
        try:
            yield self.model
        finally:
            self.model.set_attn_implementation(NAME)

    # --- the calls

    def encode(self, ids: Tensor, spans: list[Span]) -> Tensor:
        """[1, T, hidden] of the sources [T]; spans tell them apart."""
        positions = torch.cat([torch.arange(span.stop - span.start) for span in spans]).to(self.device)
        with self._step(Step("encode", spans, positions)):
            return torch.as_tensor(self.model.get_encoder()(input_ids=ids[None]).last_hidden_state)

    def prefill(self, ids: Tensor, spans: list[Span], states: Tensor | None = None) -> Tensor:
        """[rows, vocabulary] logits after each row's prompt; `ids` [T] are the packed prompts."""
        positions = torch.cat([torch.arange(s.past, s.past + s.stop - s.start) for s in spans]).to(self.device)
        last = torch.tensor([span.stop - 1 for span in spans], device=self.device)
        with self._step(Step("prefill", spans, positions)):
            return self._logits(ids, positions, last, states)

    def decode(self, ids: Tensor, positions: Tensor, longest: int, sources: Tensor | None = None) -> Tensor:
        """[B, vocabulary] logits of the next token; `ids` [B] the newest tokens, `positions` [B] theirs."""
        with self._step(Step("decode", [], positions, longest, sources)):
            return self._logits(ids, positions, None, None)

    def _logits(self, ids: Tensor, positions: Tensor, keep: Tensor | None, states: Tensor | None) -> Tensor:
        if not self.seq2seq:
            out = self.model(
                input_ids=ids[None], position_ids=positions[None], use_cache=False,
                logits_to_keep=0 if keep is None else keep,
            )  # fmt: skip
            return torch.as_tensor(out.logits[0])
        like = torch.empty(1, 1, 1, 1, device=self.device, dtype=self.dtype)
        known = states is None
        if states is None:
            states = torch.zeros(1, 1, self.model.config.hidden_size, device=self.device, dtype=self.dtype)
        out = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states), decoder_input_ids=ids[None], use_cache=True,
            past_key_values=_Pass(self._layers, known, like),
        )  # fmt: skip
        return torch.as_tensor(out.logits[0] if keep is None else out.logits[0, keep])

    @contextmanager
    def _step(self, step: Step) -> Iterator[None]:
        _state.model, _state.step = self, step
        try:
            yield
        finally:
            _state.model = _state.step = None

    # --- slots

    def clear(self) -> None:
        """Forget all rows and give their memory back."""
        self.slots = self.length = self.source_length = 0
        self._kv, self._prefix = {}, {}

    def reserve(self, slots: int, length: int, source_length: int = 0) -> None:
        """Room for so many rows and positions; what is in the slots stays."""
        self.slots = _enough(self.slots, slots)
        self.length = _enough(self.length, length)
        self.source_length = _enough(self.source_length, source_length)
        for module, pair in self._kv.items():
            room = self.source_length if module in self._cross else self.length
            if pair[0].shape[0] < self.slots or pair[0].shape[2] < room:
                self._kv[module] = (_grown(pair[0], self.slots, room), _grown(pair[1], self.slots, room))

    def move(self, source: int, target: int, length: int, source_length: int = 0) -> None:
        """The row in slot `source` goes on in `target`."""
        for module, pair in self._kv.items():
            n = source_length if module in self._cross else length
            for store in pair:
                store[target, :, :n] = store[source, :, :n]

    def keep_prefix(self, slot: int, length: int) -> None:
        """Remember the first positions of a slot as the prefix of prompts to come."""
        self._prefix = {m: (k[slot, :, :length].clone(), v[slot, :, :length].clone()) for m, (k, v) in self._kv.items()}

    def put_prefix(self, slots: list[int]) -> None:
        """Write the prefix into these slots."""
        for module, prefix in self._prefix.items():
            for store, values in zip(self._kv[module], prefix, strict=True):
                store[slots, :, : values.shape[1]] = values

    def kv(self, module: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """The stores of an attention module, made when it is first seen; `like` is [1, K, T, D]."""
        if module not in self._kv:
            room = self.source_length if module in self._cross else self.length
            shape = (self.slots, like.shape[1], room, like.shape[3])
            self._kv[module] = (like.new_zeros(shape), like.new_zeros(shape))
        return self._kv[module]

    def crosses(self, module: Any) -> bool:
        """Whether this is a decoder's attention to the source."""
        return module in self._cross


def _enough(have: int, need: int) -> int:
    """Grown by half at least, so that what is there is not copied for every token."""
    return have if need <= have else max(need, have + have // 2)


def _grown(store: Tensor, slots: int, length: int) -> Tensor:
    new = store.new_zeros((slots, store.shape[1], length, store.shape[3]))
    new[: store.shape[0], :, : store.shape[2]] = store
    return new


class _Positions:
    """Stands in for `embed_positions.forward`: a table of what it would answer, looked up by the step's positions."""

    def __init__(self, embed: Any, config: Any, device: torch.device) -> None:
        count = int(config.max_position_embeddings)
        self._original = embed.forward
        ids = torch.full((1, count), 3 if config.pad_token_id != 3 else 4, device=device)
        shape = "shape" in next(iter(inspect.signature(embed.forward).parameters))
        with torch.no_grad():
            self._table = embed.forward(ids.shape if shape else ids).reshape(count, -1)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """[1, T, hidden], or the original's answer when the model is called in another way."""
        step: Step | None = getattr(_state, "step", None)
        if step is None:
            return torch.as_tensor(self._original(*args, **kwargs))
        return self._table[step.positions][None]


# --- the attention function


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    sliding_window: int | None = None, position_bias: Tensor | None = None, softcap: float | None = None,
    s_aux: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, H, T, D], key and value [1, K, T, D] → [1, T, H, D]."""
    model, step = _state.model, _state.step
    if mask is not None or softcap or s_aux is not None:
        raise Unsupported("it masks, caps or sinks its attention in a way of its own")
    cross = model.crosses(module)
    bias = None
    if position_bias is not None and not cross:
        bias = _Bias(module, step)
    if step.kind == "decode":
        return _decode(model, step, module, query, key, value, scaling, sliding_window, bias, cross), None
    out = []
    for span in step.spans:
        q = query[:, :, span.start : span.stop]
        k, v, allowed = _seen(model, step, module, span, key, value, sliding_window, cross)
        if bias is not None:
            allowed = bias.of(step.positions[span.start : span.stop], k.shape[2], allowed)
        whole = allowed is True
        out.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=None if whole else allowed, is_causal=whole and q.shape[2] > 1, scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            ).transpose(1, 2)
        )  # fmt: skip
    return torch.cat(out, 1), None


def _seen(
    model: SlotModel, step: Step, module: Any, span: Span, key: Tensor, value: Tensor, window: int | None, cross: bool
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
    model: SlotModel, step: Step, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None,
    window: int | None, bias: _Bias | None, cross: bool,
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
    out = F.scaled_dot_product_attention(
        q, keys[:rows, :, :longest], values[:rows, :, :longest], attn_mask=mask, scale=scaling
    )
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
            bucket = owner._relative_position_bucket(
                distance, bidirectional=not owner.is_decoder, num_buckets=owner.relative_attention_num_buckets,
                max_distance=owner.relative_attention_max_distance,
            )  # fmt: skip
            found = owner.relative_attention_bias(bucket).permute(2, 0, 1)[None]
            if allowed is True:
                allowed = distance <= 0
            if allowed is not None:
                found = found.masked_fill(~allowed, -torch.inf)
            self._step.biases[key] = found
        return found
