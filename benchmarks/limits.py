"""What the hardware can do, measured in the same run: products of matrices at the model's own shapes, copies of memory.

encoder    FLOPs of a model over its documents / peak of the products
decoder    per step all weights and the live keys and values are read once: bytes / bandwidth of a copy
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch

SECONDS = 0.5  # of each measurement


def sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(layers, width, width of the feed-forward's middle) as config.json calls them."""
    layers = (
        config.get("num_hidden_layers") or config.get("n_layer") or config.get("encoder_layers") or config["num_layers"]
    )
    hidden = config.get("hidden_size") or config.get("n_embd") or config["d_model"]
    middle = config.get("intermediate_size") or config.get("encoder_ffn_dim") or config.get("d_ff") or 4 * hidden
    return int(layers), int(hidden), int(middle)


def encoder_flops(config: Mapping[str, Any], lengths: Any) -> float:
    """Floating point operations for sequences of these `lengths` (tokens): four products of width x width, two of the
    feed-forward, and attention's two, in each layer; embeddings and heads are not counted."""
    layers, hidden, middle = sizes(config)
    tokens, squares = float(np.sum(lengths)), float(np.sum(np.square(lengths, dtype=np.float64)))
    return layers * (2 * tokens * (4 * hidden * hidden + 2 * hidden * middle) + 4 * squares * hidden)


def matmul_peak(config: Mapping[str, Any], dtype: str, tokens: int, device: str = "cpu") -> float:
    """FLOP/s of the model's own largest product, [tokens, hidden] x [hidden, middle], the better of both directions."""
    _, hidden, middle = sizes(config)
    kind = getattr(torch, dtype)
    peaks = []
    for k, n in ((hidden, middle), (middle, hidden)):
        a, b = torch.randn(tokens, k, dtype=kind, device=device), torch.randn(k, n, dtype=kind, device=device)
        out = torch.empty(tokens, n, dtype=kind, device=device)
        peaks.append(2 * tokens * k * n / best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device))
    return max(peaks)


def copy_bandwidth(device: str = "cpu", size: int = 256 << 20) -> float:
    """Bytes/s that are read while a buffer larger than the caches is copied; reads and writes count once each."""
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / best(lambda: b.copy_(a), device)


def best(call: Callable[[], Any], device: str) -> float:
    """Seconds of the fastest of several calls."""
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    fastest, began = float("inf"), perf_counter()
    while perf_counter() - began < SECONDS or fastest == float("inf"):
        sync()
        start = perf_counter()
        call()
        sync()
        fastest = min(fastest, perf_counter() - start)
    return fastest
