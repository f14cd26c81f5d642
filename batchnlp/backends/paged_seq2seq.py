"""An encoder-decoder model on OpenVINO, its keys and values in pages (see `paged_graph`).

Two graphs are made of it. One reads padded sources and ends with what the decoder's layers will look up in them, the keys and
values of their cross-attention; these are written into blocks once. The other computes one token a row: paged attention to
the row's own tokens, and to its source. That operation always writes what it is given as the newest position, so a
source is given as if its last position were new, again and again the same.

Shapes: T source tokens, R sources in a batch, L their length, N layers, K key-value heads, D head size, B rows in flight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from batchnlp.backends.packed_attention import Span, Step, Unsupported, replace_attention, under_way, with_attention
from batchnlp.backends.paged_graph import CROSS, Caches, compile_graph, convert, mark_attention
from batchnlp.backends.slots import Pass, cross_attention, own_positions
from batchnlp.text.batching import pack

READING = "batchnlp_sources"
SOURCE_TOKENS = 2048  # padded, in a batch of sources


class PagedSeq2Seq:
    """The model, called with packed tokens; a `PackedModel`. There is room for `rows` of `positions` in all."""

    seq2seq = True
    device = torch.device("cpu")

    def __init__(self, openvino: Any, model: Any, dtype: str, threads: int, rows: int, positions: int) -> None:
        self.model, self._openvino = model, openvino
        self.dtype = getattr(torch, dtype)
        self._pad = int(model.config.pad_token_id or 0)
        self._plain = model.config._attn_implementation
        self._cross = cross_attention(model)
        own_positions(model)
        self._reading = self._sources_graph(dtype, threads).create_infer_request()
        compiled = self._decoder_graph(dtype, threads)
        self._writing = compiled.create_infer_request()
        self._own, self._sources = (
            Caches(openvino, compiled, self._writing, inputs, positions, rows) for inputs in ("", CROSS)
        )
        self.clear()

    def _sources_graph(self, dtype: str, threads: int) -> Any:
        replace_attention(self.model, READING, _read)
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
        example = {"input_ids": torch.arange(8).reshape(2, 4) + 3, "attention_mask": mask}
        sources = _Sources(self.model, self._cross)
        with torch.inference_mode():
            self._shape = tuple(sources(**example).shape[1:])  # N, 2, K, D
        graph = convert(self._openvino, sources, example)
        return compile_graph(self._openvino, graph, dtype, threads)

    def _decoder_graph(self, dtype: str, threads: int) -> Any:
        mark_attention(self.model)
        example = {
            "input_ids": torch.arange(5) + 3, "position_ids": torch.arange(5), "last": torch.zeros(5, *self._shape)
        }  # fmt: skip
        graph = convert(self._openvino, _Decoder(self.model), example, self._cross)
        return compile_graph(self._openvino, graph, dtype, threads)

    def plain(self) -> AbstractContextManager[Any]:
        """The model as transformers would run it."""
        return with_attention(self.model, self._plain)

    # --- the calls

    def encode(self, ids: Tensor, spans: list[Span]) -> Tensor:
        """[T, N, 2, K, D] what the decoder's layers look up in the sources [T]; spans tell these apart."""
        lengths = np.array([span.stop - span.start for span in spans])
        found = torch.empty(len(ids), *self._shape, dtype=self.dtype)
        for batch in pack(lengths, SOURCE_TOKENS):
            chosen = [spans[i] for i in batch.index]
            padded = torch.full((len(chosen), batch.length), self._pad)
            mask = torch.zeros_like(padded)
            for row, span in enumerate(chosen):
                padded[row, : span.stop - span.start] = ids[span.start : span.stop]
                mask[row, : span.stop - span.start] = 1
            self._reading.infer({"input_ids": padded.numpy(), "attention_mask": mask.numpy()})
            answer = torch.from_numpy(self._reading.get_output_tensor(0).data).reshape(*padded.shape, *self._shape)
            for row, span in enumerate(chosen):
                found[span.start : span.stop] = answer[row, : span.stop - span.start]
        return found

    def prefill(self, ids: Tensor, spans: list[Span], states: Tensor | None = None) -> Tensor:
        """[rows, vocabulary] logits after each row's prompt; `ids` [T] are the packed prompts, of a token or few."""
        assert states is not None
        for span in spans:
            self._own.blocks.begin(span.slot)
            self._keep(span.slot, states[slice(*span.source)])
        slots, sources = (
            np.array([span.slot for span in spans]),
            np.array([b - a for a, b in (s.source for s in spans)]),
        )
        sizes = np.array([span.stop - span.start for span in spans])
        logits = None
        for i in range(sizes.max()):
            going = np.flatnonzero(sizes > i)
            newest = ids[[spans[row].start + i for row in going]]
            answer = self._call(newest, slots[going], np.full(len(going), i), sources[going])
            logits = answer if logits is None else logits.index_copy(0, torch.from_numpy(going), answer)
        return torch.as_tensor(logits)

    def decode(self, ids: Tensor, positions: Tensor, longest: int, sources: Tensor | None = None) -> Tensor:
        """[B, vocabulary] logits of the next token; `ids` [B] the newest tokens, `positions` [B] theirs."""
        assert sources is not None
        return self._call(ids, np.arange(len(ids)), positions.numpy(), sources.numpy())

    def _call(self, ids: Tensor, slots: Any, past: Any, sources: Any) -> Tensor:
        """One token a row, after `past` cached ones."""
        for slot, position in zip(slots.tolist(), past.tolist(), strict=True):
            self._own.blocks.extend(slot, position + 1)
        feed = {
            "input_ids": ids.numpy(), "position_ids": past.astype(np.int64), "last": self._last[slots],
            **self._own.inputs(slots, past, np.ones_like(past)),
            **self._sources.inputs(slots, sources - 1, np.ones_like(past)),
        }  # fmt: skip
        self._writing.infer({name: self._openvino.Tensor(array) for name, array in feed.items()})
        return torch.from_numpy(self._writing.get_output_tensor(0).data.copy())

    def _keep(self, slot: int, source: Tensor) -> None:
        """Write what is looked up in a source [n, N, 2, K, D] into blocks."""
        blocks = self._sources.blocks
        blocks.begin(slot)
        blocks.extend(slot, len(source))
        table = blocks.tables[slot]
        whole = F.pad(source, (0, 0) * 4 + (0, len(table) * blocks.size - len(source)))
        whole = whole.reshape(len(table), blocks.size, *self._shape).permute(
            2, 3, 0, 4, 1, 5
        )  # [N, 2, blocks, K, size, D]
        for layer, (keys, values) in enumerate(zip(self._sources.keys, self._sources.values, strict=True)):
            for store, new in zip((keys, values), whole[layer], strict=True):
                store[table] = _like(new, store)
        self._last[slot] = source[-1].float().numpy()

    # --- slots

    @property
    def held(self) -> int:
        """Positions in the blocks that are taken."""
        return self._own.blocks.held + self._sources.blocks.held

    def clear(self) -> None:
        """Forget all rows."""
        self._own.blocks.clear()
        self._sources.blocks.clear()
        self._last = np.zeros((0, *self._shape), np.float32)  # of each row's source, its last position

    def reserve(self, slots: int, length: int, source_length: int = 0) -> None:
        """No rows beyond these slots; blocks are handed out as they are needed."""
        self._own.blocks.reserve(slots)
        self._sources.blocks.reserve(slots)
        if (more := slots - len(self._last)) > 0:
            self._last = np.concatenate([self._last, np.zeros((more, *self._shape), np.float32)])

    def move(self, source: int, target: int, length: int, source_length: int = 0) -> None:
        """The row in slot `source` goes on in `target`."""
        self._own.blocks.move(source, target)
        self._sources.blocks.move(source, target)
        self._last[target] = self._last[source]

    def keep_prefix(self, slot: int, length: int) -> None:
        """Only prompts of decoder-only models begin alike."""
        raise NotImplementedError

    def put_prefix(self, slots: list[int]) -> None:
        """Only prompts of decoder-only models begin alike."""
        raise NotImplementedError


def _like(new: Tensor, store: Any) -> Any:
    """As numpy has it, which has no bfloat16: there it is two bytes."""
    return new.view(torch.uint16).numpy().view(store.dtype) if new.dtype == torch.bfloat16 else new.numpy()


# --- from torch to two graphs


class _Seen:
    """What the attention function of the first graph must know, and what it finds."""

    def __init__(self, cross: list[Any], mask: Tensor) -> None:
        self.mask = mask
        self.found: dict[Any, tuple[Tensor, Tensor] | None] = dict.fromkeys(cross)


def _read(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    position_bias: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """In the encoder attention as it is; in the decoder nothing but the keys and values of sources."""
    seen, step = under_way.model, under_way.step
    if position_bias is not None or mask is not None:
        raise Unsupported("it biases or masks its attention in a way of its own")
    if step.kind == "encode":
        return F.scaled_dot_product_attention(query, key, value, seen.mask, scale=scaling).transpose(1, 2), None
    if module in seen.found:
        seen.found[module] = key, value
    return query.transpose(1, 2), None


@contextmanager
def _under_way(model: Any, step: Step) -> Iterator[None]:
    under_way.model, under_way.step = model, step
    try:
        yield
    finally:
        under_way.model = under_way.step = None


class _Sources(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    def __init__(self, model: Any, cross: list[Any]) -> None:
        super().__init__()
        self.model, self._cross = model, cross

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[R, L] twice → [R * L, N, 2, K, D]."""
        seen = _Seen(self._cross, attention_mask.bool()[:, None, None])
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        with _under_way(seen, Step("encode", [], positions)):
            states = self.model.get_encoder()(input_ids=input_ids).last_hidden_state
        packed = states.reshape(1, -1, states.shape[-1])
        like = torch.empty(1, 1, 1, 1)
        with _under_way(seen, Step("prefill", [], torch.zeros(1, dtype=torch.long))):
            self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=packed), decoder_input_ids=input_ids[:1, :1],
                use_cache=True, past_key_values=Pass([(like, like)] * len(self._cross), known=False),
            )  # fmt: skip
        found = [torch.stack([t[0] for t in pair]) for pair in seen.found.values() if pair is not None]
        if len(found) < len(self._cross):
            raise Unsupported("its cross-attention cannot be replaced")
        return torch.stack(found).permute(3, 0, 1, 2, 4)


class _Decoder(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, last: Tensor) -> Tensor:
        """[B], [B], [B, N, 2, K, D] → [B, vocabulary]."""
        pairs = [(kv[0][None], kv[1][None]) for kv in last.permute(1, 2, 3, 0, 4)]
        states = torch.zeros(1, 1, self.model.config.hidden_size)
        with _under_way(None, Step("decode", [], position_ids)):
            out = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states), decoder_input_ids=input_ids[None],
                use_cache=True, past_key_values=Pass(pairs, known=True),
            )  # fmt: skip
        return out.logits[0]
