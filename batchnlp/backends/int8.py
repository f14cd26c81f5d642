"""Products in 8 bits, for OpenVINO on CPUs: weights are rounded once, what comes in as it comes.

The largest weight of each output becomes 127, and so does the largest of each 128 numbers that come in. This is no rounding that
a model was trained for, so it is an option and no default, and `doctor` tells what it changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GROUP = "128"  # numbers that share a scale; 384 was no faster on Zen 4, and twice as far off
LARGEST = 127


def quantize(model: Any) -> int:
    """Put 8-bit weights into every product of a graph with a constant; how many there were."""
    from openvino import opset13 as op

    found = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input_value(1).get_node()
        if source.get_type_name() != "Constant" or len(source.get_output_shape(0)) != 2:
            continue
        weight = np.asarray(source.get_data(), np.float32)
        inputs = 1 if node.get_attributes()["transpose_b"] else 0
        scale = np.maximum(np.abs(weight).max(inputs, keepdims=True), np.finfo(np.float32).tiny) / LARGEST
        rounded = op.constant(np.rint(weight / scale).astype(np.int8))
        node.input(1).replace_source_output(op.multiply(op.convert(rounded, "f32"), op.constant(scale)).output(0))
        found += 1
    return found
