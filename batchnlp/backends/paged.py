"""A decoder-only model on OpenVINO that computes packed tokens, and keeps keys and values in pages.

The torch model is traced with an attention function that only marks the place; the mark then becomes OpenVINO's own paged
attention, which reads and writes blocks of the cache by a table a row. So prompts of any length and single tokens go
through in one call without padding, as with `slots`, whose methods this has too: `InFlight` drives either.

A row's slot here is a list of blocks. Leaving is giving them back, moving is handing the list on, and what all prompts begin
with is shared but for its last, unfinished block.

The paged operation is internal to OpenVINO and may change with any release; whatever goes wrong with it shows when the
model is built or in the canary, and the torch model is run instead.

Shapes: T packed tokens, B rows in flight, H heads, K key-value heads, D head size.
"""

from __future__ import annotations

import heapq
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from batchnlp.backends.packed_attention import Span, Unsupported

NAME = "batchnlp_paged"
INPUTS = "past_lens", "subsequence_begins", "block_indices", "block_indices_begins", "max_context_len"


@dataclass(frozen=True, slots=True)
class Layer:
    """What the paged operation must know of one attention layer. Filled while the model is traced."""

    heads: int
    kv_heads: int
    size: int
    scale: float
    window: int  # 0 for none


_layers: dict[Any, Layer] = {}  # attention module → what was seen of it, of the model that is being traced
_refused: list[str] = []  # what it does that cannot be: the tracer turns exceptions into others


@torch.library.custom_op("batchnlp::paged", mutates_args=())  # type: ignore[untyped-decorator]
def _mark(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
    """Where paged attention goes: [T, H*D], [T, K*D], [T, K*D] → [T, H*D]."""
    return query.clone()


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None = None,
    sliding_window: int | None = None, position_bias: Tensor | None = None, softcap: float | None = None,
    s_aux: Tensor | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query [1, H, T, D], key and value [1, K, T, D] → [1, T, H, D]."""
    if mask is not None or position_bias is not None or softcap or s_aux is not None:
        _refused.append("it masks, caps, biases or sinks its attention in a way of its own")
        raise Unsupported(_refused[-1])
    heads, size = query.shape[1], query.shape[3]
    _layers[module] = Layer(heads, key.shape[1], size, scaling or size**-0.5, sliding_window or 0)
    flat = (x.transpose(1, 2).reshape(-1, x.shape[1] * x.shape[3]) for x in (query, key, value))
    return _mark(*flat, list(_layers).index(module)).reshape(1, -1, heads, size), None


class PagedModel:
    """The model, called with packed tokens; a `PackedModel`. There is room for `rows` of `positions` in all."""

    seq2seq = False
    device = torch.device("cpu")

    def __init__(self, openvino: Any, model: Any, dtype: str, threads: int, rows: int, positions: int) -> None:
        self.model, self._openvino = model, openvino
        self.dtype = getattr(torch, dtype)
        self._plain = model.config._attn_implementation
        AttentionInterface.register(NAME, attend)
        model.set_attn_implementation(NAME)
        if (
            model.config._attn_implementation != NAME
            or "position_ids" not in inspect.signature(model.forward).parameters
        ):
            raise Unsupported("its attention cannot be replaced")
        precision = "bf16" if dtype == "bfloat16" else "f32"
        compiled = openvino.Core().compile_model(_converted(openvino, model), "CPU", {
            "INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision, "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
        })  # fmt: skip
        self._request = compiled.create_infer_request()
        caches = [port for port in compiled.inputs if "_cache." in port.get_any_name()]
        self._block = caches[0].get_partial_shape()[2].get_length()
        self._blocks = -(-positions // self._block) + rows  # the last block of each is not full
        self._caches = [self._allocated(port) for port in caches]
        self.clear()

    def _allocated(self, port: Any) -> Any:
        """One layer's keys or values; memory that no row has written to yet is not taken from the machine."""
        _, *shape = port.get_partial_shape()
        size = self._openvino.Shape([self._blocks, *(n.get_length() for n in shape)])
        tensor = self._openvino.Tensor(port.get_element_type(), size)
        self._request.set_tensor(port, tensor)
        return tensor.data

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
        """Only encoder-decoder models have something to encode."""
        raise NotImplementedError

    def prefill(self, ids: Tensor, spans: list[Span], states: Tensor | None = None) -> Tensor:
        """[rows, vocabulary] logits after each row's prompt; `ids` [T] are the packed prompts."""
        for span in spans:
            if not span.past:
                self._release(self._tables[span.slot])
            self._extend(span.slot, span.past + span.stop - span.start)
        sizes = [span.stop - span.start for span in spans]
        return self._call(ids, [span.slot for span in spans], np.array([span.past for span in spans]), np.array(sizes))

    def decode(self, ids: Tensor, positions: Tensor, longest: int, sources: Tensor | None = None) -> Tensor:
        """[B, vocabulary] logits of the next token; `ids` [B] the newest tokens, `positions` [B] theirs."""
        past = positions.numpy()
        for slot, position in enumerate(past.tolist()):
            self._extend(slot, position + 1)
        return self._call(ids, range(len(past)), past, np.ones_like(past))

    def _call(self, ids: Tensor, slots: Sequence[int], past: Any, sizes: Any) -> Tensor:
        """One call: rows of `sizes` new tokens each, after `past` cached ones."""
        ends = np.cumsum(sizes)
        tables = [self._tables[slot] for slot in slots]
        feed = {
            "input_ids": ids.numpy(), "position_ids": np.arange(ends[-1]) + np.repeat(past - (ends - sizes), sizes),
            "keep": ends - 1, "past_lens": past, "subsequence_begins": np.r_[0, ends],
            "block_indices": np.concatenate(tables), "block_indices_begins": np.cumsum([0, *map(len, tables)]),
            "max_context_len": (past + sizes).max(),
        }  # fmt: skip
        arrays = {name: np.asarray(value, np.int32 if name in INPUTS else np.int64) for name, value in feed.items()}
        self._request.infer({name: self._openvino.Tensor(array) for name, array in arrays.items()})
        return torch.from_numpy(self._request.get_output_tensor(0).data.copy())

    # --- blocks

    @property
    def held(self) -> int:
        """Positions in the blocks that are taken."""
        return int((self._blocks - len(self._free)) * self._block)

    def clear(self) -> None:
        """Forget all rows."""
        self._free = list(range(self._blocks))  # a heap: low blocks first, so that the others are never touched
        self._users: Counter[int] = Counter()
        self._tables: list[list[int]] = []
        self._prefix: list[int] = []
        self._prefix_length = 0

    def reserve(self, slots: int, length: int, source_length: int = 0) -> None:
        """No rows beyond these slots; blocks are handed out as they are needed."""
        for table in self._tables[slots:]:
            self._release(table)
        self._tables += [[] for _ in range(slots - len(self._tables))]

    def move(self, source: int, target: int, length: int, source_length: int = 0) -> None:
        """The row in slot `source` goes on in `target`."""
        self._release(self._tables[target])
        self._tables[target], self._tables[source] = self._tables[source], []

    def keep_prefix(self, slot: int, length: int) -> None:
        """Remember the first positions of a slot as the prefix of prompts to come."""
        self._release(self._prefix)
        self._prefix, self._prefix_length = list(self._tables[slot]), length
        self._users.update(self._prefix)

    def put_prefix(self, slots: list[int]) -> None:
        """Let these slots begin with the prefix: its full blocks are shared, the last one is copied."""
        full = self._prefix_length // self._block
        for slot in slots:
            self._release(self._tables[slot])
            self._tables[slot] = self._prefix[:full]
            self._users.update(self._tables[slot])
        if full == len(self._prefix):
            return
        for slot in slots:
            self._extend(slot, self._prefix_length)
        copies = [self._tables[slot][full] for slot in slots]
        for cache in self._caches:
            cache[copies] = cache[self._prefix[full]]

    def _extend(self, slot: int, length: int) -> None:
        table = self._tables[slot]
        while len(table) * self._block < length:
            if not self._free:
                raise MemoryError("no block of keys and values is free")
            table.append(heapq.heappop(self._free))
            self._users[table[-1]] += 1

    def _release(self, table: list[int]) -> None:
        for block in table:
            self._users[block] -= 1
            if not self._users[block]:
                heapq.heappush(self._free, block)
        table.clear()


# --- from torch to a graph with paged attention


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


def _converted(openvino: Any, model: Any) -> Any:
    """The graph, with its marks replaced."""
    from openvino.frontend.pytorch import ConversionExtension

    _layers.clear()
    _refused.clear()
    example = {"input_ids": torch.arange(5), "position_ids": torch.arange(5), "keep": torch.tensor([4])}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, about shapes that it takes for constants: the canary has others
        try:
            graph = openvino.convert_model(
                _Traced(model), example_input=example, extension=[ConversionExtension("batchnlp::paged", _marked)]
            )
        except Exception as error:
            if _refused:
                raise Unsupported(_refused[0]) from error
            raise
        else:
            _page(openvino, graph)
            return graph
        finally:
            _layers.clear()  # they would keep the model's weights in memory


def _marked(context: Any) -> Any:
    """The mark as nodes that any graph may have: what `_page` needs as one input, the query's shape as output."""
    from openvino import opset13 as op

    index = context.get_values_from_const_input(3)
    layer = list(_layers.values())[index]
    joined = op.concat([context.get_input(i) for i in range(3)], 1)
    joined.set_friendly_name(f"batchnlp.paged.{index}")
    begin, end, one = (op.constant(np.array([n])) for n in (0, layer.heads * layer.size, 1))
    return op.slice(joined, begin, end, one, one).outputs()


def _page(openvino: Any, graph: Any) -> None:
    """Put the paged operation where the marks are."""
    from openvino import opset13 as op

    i32 = openvino.Type.i32
    parameters = {name: op.parameter([] if name == "max_context_len" else [-1], i32, name=name) for name in INPUTS}
    nodes = {node.get_friendly_name(): node for node in graph.get_ops()}
    caches = []
    for i, layer in enumerate(_layers.values()):
        joined = nodes[f"batchnlp.paged.{i}"]
        pair = [op.parameter(openvino.PartialShape.dynamic(4), openvino.Type.dynamic, name=f"{kind}_cache.{i}")
                for kind in ("key", "value")]  # fmt: skip
        caches += pair
        paged = _paged(openvino, layer, [*joined.input_values(), *(p.output(0) for p in pair)], parameters)
        (cut,) = {target.get_node() for target in joined.output(0).get_target_inputs()}
        for target in cut.output(0).get_target_inputs():
            target.replace_source_output(paged.output(0))
    added = [*parameters.values(), *caches]
    for parameter in added:
        parameter.output(0).set_names({parameter.get_friendly_name()})
    graph.add_parameters(added)
    graph.validate_nodes_and_infer_types()


def _paged(openvino: Any, layer: Layer, inputs: list[Any], parameters: dict[str, Any]) -> Any:
    """The operation: query, key, value and the two caches are its `inputs`; what it can do beyond is left off."""
    from openvino import opset13 as op
    from openvino.op import _PagedAttentionExtension

    f32, i32, u8 = openvino.Type.f32, openvino.Type.i32, openvino.Type.u8

    def no(kind: Any) -> Any:
        return op.constant(np.empty(0), kind).output(0)

    def number(value: float, kind: Any) -> Any:
        return op.constant(np.array(value), kind).output(0)

    *tables, longest = (parameters[name].output(0) for name in INPUTS)
    node = _PagedAttentionExtension([
        *inputs, *tables, number(layer.scale, f32), number(layer.window, i32), no(f32), longest,
        no(i32), no(i32), no(i32), no(f32),  # scores, rotation of blocks
        no(f32), number(0, i32), number(0, i32), no(f32),  # sparse attention, sinks
        number(0, i32), no(i32), no(i32), no(i32), no(i32), no(u8), no(i32),  # eviction, segments, trees of tokens
    ])  # fmt: skip
    sizes = {"num_k_heads": layer.kv_heads, "k_head_size": layer.size, "num_v_heads": layer.kv_heads}
    for key, value in {**sizes, "v_head_size": layer.size}.items():
        node.get_rt_info()[key] = value
    return node
