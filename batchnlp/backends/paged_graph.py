"""A torch model as an OpenVINO graph with paged attention.

The model is traced with an attention function that only marks the place; each mark then becomes OpenVINO's own paged
attention, which reads and writes blocks of a cache by a table a row. So prompts of any length and single tokens go through
in one call without padding. A decoder's attention to its sources has tables and lengths of its own, `cross.` before
their names.

The operation is internal to OpenVINO and may change with any release; whatever goes wrong with it shows when the model is
built or in the canary, and the torch model is run instead.

Shapes: T packed tokens, H heads, K key-value heads, D head size.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnlp.backends.blocks import Blocks
from batchnlp.backends.packed_attention import Unsupported, replace_attention

NAME = "batchnlp_paged"
INPUTS = "past_lens", "subsequence_begins", "block_indices", "block_indices_begins", "max_context_len"
CROSS = "cross."


@dataclass(frozen=True, slots=True)
class Layer:
    """What the paged operation must know of one attention layer. Filled while the model is traced."""

    heads: int
    kv_heads: int
    size: int
    scale: float
    window: int  # 0 for none
    inputs: str  # what stands before the names of its INPUTS


_layers: dict[Any, Layer] = {}  # attention module → what was seen of it, of the model that is being traced
_cross: set[Any] = set()  # those of its modules that attend to a source
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
    heads, size, inputs = query.shape[1], query.shape[3], CROSS if module in _cross else ""
    _layers[module] = Layer(heads, key.shape[1], size, scaling or size**-0.5, sliding_window or 0, inputs)
    flat = (x.transpose(1, 2).reshape(-1, x.shape[1] * x.shape[3]) for x in (query, key, value))
    return _mark(*flat, list(_layers).index(module)).reshape(1, -1, heads, size), None


def mark_attention(model: Any) -> None:
    """Let the model mark its attention when it is traced. Raises Unsupported where it has none that can be replaced."""
    replace_attention(model, NAME, attend)


def convert(openvino: Any, traced: torch.nn.Module, example: dict[str, Tensor], cross: Collection[Any] = ()) -> Any:
    """The graph, with its marks replaced; `cross` are the modules that attend to a source."""
    from openvino.frontend.pytorch import ConversionExtension

    _layers.clear()
    _refused.clear()
    _cross.clear()
    _cross.update(cross)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, about shapes that it takes for constants: the canary has others
        try:
            graph = openvino.convert_model(
                traced, example_input=example, extension=[ConversionExtension("batchnlp::paged", _marked)]
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
            _cross.clear()


def compile_graph(openvino: Any, graph: Any, dtype: str, threads: int) -> Any:
    """For the CPU, in one stream: the rows of a step are one batch."""
    precision = "bf16" if dtype == "bfloat16" else "f32"
    return openvino.Core().compile_model(graph, "CPU", {
        "INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision, "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False,
    })  # fmt: skip


class Caches:
    """The keys and values of the layers whose inputs begin alike: [blocks, K, block, D] each."""

    def __init__(self, openvino: Any, compiled: Any, request: Any, inputs: str, positions: int, rows: int) -> None:
        self._inputs = inputs
        start = f"{inputs}{{}}_cache."
        ports = {
            kind: sorted(
                (port for port in compiled.inputs if port.get_any_name().startswith(start.format(kind))),
                key=lambda port: int(port.get_any_name().rpartition(".")[2]),
            )
            for kind in ("key", "value")
        }
        size = ports["key"][0].get_partial_shape()[2].get_length()
        self.blocks = Blocks(-(-positions // size) + rows, size)  # the last block of each row is not full
        self.keys, self.values = (
            [self._allocated(openvino, request, port) for port in ports[kind]] for kind in ("key", "value")
        )

    def _allocated(self, openvino: Any, request: Any, port: Any) -> Any:
        """Of one layer; memory that no row has written to yet is not taken from the machine."""
        _, *shape = port.get_partial_shape()
        size = openvino.Shape([self.blocks.count, *(n.get_length() for n in shape)])
        tensor = openvino.Tensor(port.get_element_type(), size)
        request.set_tensor(port, tensor)
        return tensor.data

    def inputs(self, slots: Sequence[int], past: Any, sizes: Any) -> dict[str, Any]:
        """Where the rows of a call, of `sizes` new tokens each after `past` cached ones, have their blocks."""
        tables = [self.blocks.tables[slot] for slot in slots]
        values = (
            past, np.r_[0, np.cumsum(sizes)], np.concatenate(tables), np.cumsum([0, *map(len, tables)]),
            (past + sizes).max(),
        )  # fmt: skip
        return {f"{self._inputs}{name}": np.asarray(v, np.int32) for name, v in zip(INPUTS, values, strict=True)}


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
    parameters = {
        f"{kind}{name}": op.parameter([] if name == "max_context_len" else [-1], i32, name=f"{kind}{name}")
        for kind in sorted({layer.inputs for layer in _layers.values()})
        for name in INPUTS
    }
    nodes = {node.get_friendly_name(): node for node in graph.get_ops()}
    caches = []
    for i, layer in enumerate(_layers.values()):
        joined = nodes[f"batchnlp.paged.{i}"]
        pair = [op.parameter(openvino.PartialShape.dynamic(4), openvino.Type.dynamic, name=f"{layer.inputs}{kind}_cache.{i}")
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

    *tables, longest = (parameters[f"{layer.inputs}{name}"].output(0) for name in INPUTS)
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
