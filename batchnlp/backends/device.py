"""What the machine has, and what follows from it: device, dtype, batch size. torch is imported inside, it takes
seconds."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchnlp import registry
from batchnlp.errors import MissingExtraError, ModelError, UsageError
from batchnlp.types import ModelFiles, Resolved, Server

CPU_TOKENS = {
    "torch": 4096,
    "openvino": 2048,
}  # measured best: larger ones fall out of the cache, smaller ones pay per call
EXTRAS = ("openvino", "vllm")  # backends with an extra of their own, named as its package
# With neither NVIDIA's driver nor a device of AMD's (the second under Windows), torch finds no GPU.
CUDA, ROCM = "libcuda.so.1", ("/dev/kfd", "/dev/dxg")
MAX_GPU_TOKENS = 65_536  # beyond it no GPU of today gets faster, only fuller


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a replica can use on this machine."""

    cpus: int
    gpus: int
    gpu_name: str
    gpu_bytes: int  # memory of the smallest GPU
    fast_bfloat16: bool  # of the GPU where there is one, else of the CPU


def probe_hardware() -> Hardware:
    """Look at this machine."""
    cpus, gpus = usable_cpus(), _count_gpus()
    if not gpus:
        return Hardware(cpus, 0, "", 0, _cpu_bfloat16())
    import torch

    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(gpus)]
    return Hardware(cpus, gpus, torch.cuda.get_device_name(0), min(sizes), torch.cuda.is_bf16_supported())


def _count_gpus() -> int:
    """GPUs that torch can use; it is asked only where there may be one, because its import takes a second."""
    if not (_loads(CUDA) or any(map(os.path.exists, ROCM))):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may use: by affinity, and by the quota of its container (cgroup v2, then v1)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            if quota not in ("max", "-1"):
                cpus = min(cpus, max(int(quota) // int(period), 1))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return cpus


def _cpu_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16 (AVX512-BF16, AMX, or bf16 of ARM); emulated it is slower than float32."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as handle:
            flags = next((line for line in handle if line.startswith(("flags", "Features"))), "").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def resolve(engine: Any, model: ModelFiles, hardware: Hardware, needs: str) -> Resolved:
    """Every `auto` of the engine section, decided, for a task that needs this kind of answer."""
    if isinstance(model, Server):
        return Resolved("server", "", "http", 0, f"{model.name} at {model.url}")
    device = engine.device
    if device == "auto":
        device = "cuda" if hardware.gpus else "cpu"
    problem, hint = _missing(device, engine.runner, hardware)
    if problem:
        raise UsageError(f"engine.device is {device}, and {problem}", hint)
    dtype, why = engine.dtype, "as asked"
    if dtype == "auto":
        dtype = "bfloat16" if hardware.fast_bfloat16 else "float32"
        what = hardware.gpu_name or "this CPU"
        why = f"{what} computes in bfloat16" if hardware.fast_bfloat16 else f"{what} has no fast bfloat16"
    backend = _backend(engine.backend, device, needs, model)
    if dtype == "int8" and (backend != "openvino" or needs == "completions"):
        what = "a task that writes" if needs == "completions" else f"the backend {backend} on {device}"
        hint = "use engine.dtype=auto"
        if device == "cpu" and needs != "completions" and not _can("openvino"):
            hint = f"{MissingExtraError.of('openvino', 'openvino').hint}, or {hint}"
        raise UsageError(f"engine.dtype int8 is for encoders on OpenVINO, and this is {what}", hint)
    tokens = engine.tokens_per_batch
    if backend == "vllm":
        tokens = 0  # it makes its own batches
    elif tokens == "auto":
        tokens = CPU_TOKENS[backend] if device == "cpu" else gpu_tokens(model, dtype, hardware.gpu_bytes)
    return Resolved(device, dtype, backend, tokens, f"{backend} in {dtype}: {why}")


def _backend(asked: str, device: str, needs: str, model: ModelFiles) -> str:
    """The fastest that is installed; whether it suits the model shows when the worker has loaded it."""
    if asked == "openvino" and device != "cpu":
        raise UsageError(
            f"the backend openvino computes on the CPU, and engine.device is {device}", "use engine.device=cpu"
        )
    if asked == "vllm" and ":" in device:
        hint = f"use engine.device=cuda, with CUDA_VISIBLE_DEVICES={device.partition(':')[2]}"
        raise UsageError(f"vLLM takes the first GPU, and engine.device is {device}", hint)
    if asked == "vllm" and model.config.get("is_encoder_decoder"):
        raise ModelError(f"vLLM does not run {model.name}, which is an encoder-decoder", "use engine.backend=torch")
    if not _can(asked):
        raise MissingExtraError.of(asked, asked)
    if asked == "auto":
        there = device == "cpu" and needs in registry.BACKENDS["openvino"] and _can("openvino")
        return "openvino" if there else "torch"
    return asked


def resume(stored: Resolved, engine: Any, model: ModelFiles, hardware: Hardware, needs: str) -> Resolved:
    """What a run that has begun goes on with: what it began with, below what is asked for now, on what is there."""
    now = resolve(engine.model_copy(update={"dtype": stored.dtype}), model, hardware, needs)
    problem = "" if engine.device != "auto" else _missing(stored.device, engine.runner, hardware)[0]
    device = now.device if problem or engine.device != "auto" else stored.device
    moved = device != stored.device
    tokens = now.tokens_per_batch if moved or engine.tokens_per_batch != "auto" else stored.tokens_per_batch
    why = f"{stored.why}; begun on {stored.device}, now on {device}, {problem or 'as asked'}" if moved else stored.why
    backend = stored.backend if not moved and _can(stored.backend) else now.backend
    return replace(stored, device=device, backend=backend, tokens_per_batch=tokens, why=why)


def _can(backend: str) -> bool:
    """Whether what a backend needs is installed."""
    return backend not in EXTRAS or find_spec(backend) is not None


def _missing(device: str, runner: str, hardware: Hardware) -> tuple[str, str]:
    """(why the device cannot be used here, what to do); empty when it can."""
    kind, _, index = device.partition(":")
    if kind == "cuda" and not hardware.gpus:
        return "there is no GPU here", "use engine.device=auto"
    if index and runner == "ray":
        return "Ray hands out the GPUs by itself", f"use engine.device=cuda, with CUDA_VISIBLE_DEVICES={index}"
    if index and int(index) >= hardware.gpus:
        return f"the last GPU here is cuda:{hardware.gpus - 1}", "use engine.device=cuda"
    return "", ""


def token_bytes(model: ModelFiles, dtype: str) -> int:
    """Activation memory of one token, roughly: the inputs, middles and outputs of feed-forward and attention."""
    hidden = model.hidden_size or 1024
    middle = int(model.config.get("intermediate_size") or model.config.get("hidden_dim") or 4 * hidden)
    return (2 * middle + 8 * hidden) * (2 if dtype == "bfloat16" else 4)


def gpu_tokens(model: ModelFiles, dtype: str, memory: int) -> int:
    """A power of two that fills a quarter of the memory at most; what does not fit is halved when it shows."""
    tokens = min(memory // 4 // token_bytes(model, dtype), MAX_GPU_TOKENS)
    return int(1 << max(int(tokens).bit_length() - 1, 10))


def share(hardware: Hardware, device: str, replicas: int | str) -> tuple[int, int]:
    """(replicas, CPU threads of each): one replica a GPU, else one for all CPUs up to eight each; one for a server."""
    if device == "server":
        return (1 if replicas == "auto" else int(replicas)), 1
    if replicas == "auto":
        count = hardware.gpus if device == "cuda" else 1 if device != "cpu" else max(1, hardware.cpus // 8)
    else:
        count = int(replicas)
    return count, max(1, hardware.cpus // count)
