"""A decoder-only model on OpenVINO that computes packed tokens, and keeps keys and values in pages (see `paged_graph`).

It has the methods of `slots.SlotModel`: `InFlight` drives either. A row's slot here is a list of blocks. Leaving is giving
them back, moving is handing the list on, and what all prompts begin with is shared but for its last, unfinished block.

Shapes: T packed tokens, B rows in flight.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnlp.backends.packed_attention import Span, Unsupported, with_attention
from batchnlp.backends.paged_graph import Caches, compile_graph, convert, mark_attention


class PagedModel:
    """The model, called with packed tokens; a `PackedModel`. There is room for `rows` of `positions` in all."""

    seq2seq = False
    device = torch.device("cpu")

    def __init__(self, openvino: Any, model: Any, dtype: str, threads: int, rows: int, positions: int) -> None:
        self.model, self._openvino = model, openvino
        self.dtype = getattr(torch, dtype)
        self._plain = model.config._attn_implementation
        mark_attention(model)
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise Unsupported("it counts positions itself")
        example = {"input_ids": torch.arange(5), "position_ids": torch.arange(5), "keep": torch.tensor([4])}
        compiled = compile_graph(openvino, convert(openvino, _Traced(model), example), dtype, threads)
        self._request = compiled.create_infer_request()
        self._caches = Caches(openvino, compiled, self._request, "", positions, rows)
        self.blocks = self._caches.blocks
        self.clear()

    def plain(self) -> AbstractContextManager[Any]:
        """The model as transformers would run it."""
        return with_attention(self.model, self._plain)

    # --- the calls

    def encode(self, ids: Tensor, spans: list[Span]) -> Tensor:
        """Only encoder-decoder models have something to encode."""
        raise NotImplementedError

    def prefill(self, ids: Tensor, spans: list[Span], states: Tensor | None = None) -> Tensor:
        """[rows, vocabulary] logits after each row's prompt; `ids` [T] are the packed prompts."""
        for span in spans:
            if not span.past:
                self.blocks.begin(span.slot)
            self.blocks.extend(span.slot, span.past + span.stop - span.start)
        sizes = [span.stop - span.start for span in spans]
        return self._call(ids, [span.slot for span in spans], np.array([span.past for span in spans]), np.array(sizes))

    def decode(self, ids: Tensor, positions: Tensor, longest: int, sources: Tensor | None = None) -> Tensor:
        """[B, vocabulary] logits of the next token; `ids` [B] the newest tokens, `positions` [B] theirs."""
        past = positions.numpy()
        for slot, position in enumerate(past.tolist()):
            self.blocks.extend(slot, position + 1)
        return self._call(ids, range(len(past)), past, np.ones_like(past))

    def _call(self, ids: Tensor, slots: Sequence[int], past: Any, sizes: Any) -> Tensor:
        """One call: rows of `sizes` new tokens each, after `past` cached ones."""
        ends = np.cumsum(sizes)
        feed = {
            "input_ids": ids.numpy(), "position_ids": np.arange(ends[-1]) + np.repeat(past - (ends - sizes), sizes),
            "keep": ends - 1, **self._caches.inputs(slots, past, sizes),
        }  # fmt: skip
        self._request.infer({name: self._openvino.Tensor(array) for name, array in feed.items()})
        return torch.from_numpy(self._request.get_output_tensor(0).data.copy())

    # --- slots

    @property
    def held(self) -> int:
        """Positions in the blocks that are taken."""
        return self.blocks.held

    def clear(self) -> None:
        """Forget all rows."""
        self.blocks.clear()
        self._prefix: list[int] = []
        self._prefix_length = 0

    def reserve(self, slots: int, length: int, source_length: int = 0) -> None:
        """No rows beyond these slots; blocks are handed out as they are needed."""
        self.blocks.reserve(slots)

    def move(self, source: int, target: int, length: int, source_length: int = 0) -> None:
        """The row in slot `source` goes on in `target`."""
        self.blocks.move(source, target)

    def keep_prefix(self, slot: int, length: int) -> None:
        """Remember the first positions of a slot as the prefix of prompts to come."""
        self.blocks.release(self._prefix)
        self._prefix, self._prefix_length = list(self.blocks.tables[slot]), length
        self.blocks.users.update(self._prefix)

    def put_prefix(self, slots: list[int]) -> None:
        """Let these slots begin with the prefix: its full blocks are shared, the last one is copied."""
        full = self._prefix_length // self.blocks.size
        for slot in slots:
            self.blocks.begin(slot, self._prefix[:full])
        if full == len(self._prefix):
            return
        for slot in slots:
            self.blocks.extend(slot, self._prefix_length)
        copies = [self.blocks.tables[slot][full] for slot in slots]
        for cache in (*self._caches.keys, *self._caches.values):
            cache[copies] = cache[self._prefix[full]]


class _Traced(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, keep: Tensor) -> Tensor:
        """[T], [T], [rows] → [rows, vocabulary]."""
        out = self.model(
            input_ids=input_ids[None], position_ids=position_ids[None], use_cache=False, logits_to_keep=keep
        )
        return out.logits[0]
