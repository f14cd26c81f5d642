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

What a model does beyond this (attention sinks, other masks) is refused with `Unsupported` or shows in the canary; such a
model is run in static batches.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from batchnlp.backends.packed_attention import (
    Span,
    Step,
    Unsupported,
    attend,
    replace_attention,
    under_way,
    with_attention,
)

NAME = "batchnlp_slots"
CROSS = {"encoder_attn", "EncDecAttention"}  # what models call their cross-attention


class Pass(EncoderDecoderCache):  # type: ignore[misc]  # transformers is not followed by mypy
    """Hands keys and values through, because the attention function stores them. With `known` sources those of
    `layers` are handed on, and their projections are not computed again."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], known: bool) -> None:
        self.self_attention_cache = _Through()
        self.cross_attention_cache = _Through()
        self.cross_attention_cache.layers = [_Known(*layer) for layer in layers]
        self.is_updated = dict.fromkeys(range(len(layers)), known)

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


class _Known:
    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values


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
        self._cross = set(cross_attention(model)) if self.seq2seq else set()
        self._layers = len(self._cross)
        replace_attention(model, NAME, attend)
        if self.seq2seq:
            own_positions(model)

    def plain(self) -> AbstractContextManager[Any]:
        """The model as transformers would run it."""
        return with_attention(self.model, self._plain)

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
            past_key_values=Pass([(like, like)] * self._layers, known),
        )  # fmt: skip
        return torch.as_tensor(out.logits[0] if keep is None else out.logits[0, keep])

    @contextmanager
    def _step(self, step: Step) -> Iterator[None]:
        under_way.model, under_way.step = self, step
        try:
            yield
        finally:
            under_way.model = under_way.step = None

    # --- slots

    @property
    def held(self) -> int:
        """Positions that it keeps memory for, or just tried to: the most rows there ever were, as long as the longest."""
        return self.slots * (self.length + self.source_length)

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


def cross_attention(model: Any) -> list[Any]:
    """The modules with which a decoder looks at its source, one a layer."""
    found = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in CROSS]
    config = model.config
    if len(found) != int(getattr(config, "decoder_layers", 0) or getattr(config, "num_decoder_layers", 0)):
        raise Unsupported("its cross-attention is not where it is known")
    return found


def own_positions(model: Any) -> None:
    """Decoders and encoders that count positions themselves, or the distances between them, leave that to the step."""
    for stack in (model.get_encoder(), model.get_decoder()):
        embed = getattr(stack, "embed_positions", None)
        if embed is not None:
            embed.forward = _Positions(embed, model.config, model.device)
        for module in stack.modules():
            if hasattr(module, "compute_bias"):
                module.compute_bias = _NoBias(module)


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
        """[1, T, hidden] (of padded positions [B, L, hidden]), or the original's answer when the model is called in another
        way."""
        step: Step | None = getattr(under_way, "step", None)
        if step is None:
            return torch.as_tensor(self._original(*args, **kwargs))
        found = self._table[step.positions]
        return found if step.positions.ndim == 2 else found[None]


class _NoBias:
    """Stands in for T5's `compute_bias`, which would make a table of all packed tokens by all: biases are made row by row."""

    def __init__(self, module: Any) -> None:
        self._original = module.compute_bias

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """[1, 1, 1, 1], or the original's answer when the model is called in another way."""
        if getattr(under_way, "step", None) is None:
            return torch.as_tensor(self._original(*args, **kwargs))
        return torch.zeros(1, 1, 1, 1)
