"""What the machine has, and what follows from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchnlp.backends.device import Hardware, resolve, resume, usable_cpus
from batchnlp.backends.model_files import resolve_model
from batchnlp.errors import UsageError
from batchnlp.job.spec import EngineSpec
from batchnlp.types import Resolved

NO_GPU, TWO_GPUS = Hardware(8, 0, "", 0, False), Hardware(8, 2, "Fake", 80 << 30, True)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "100000 100000\n"}, 1), ({"cpu.max": "max 100000\n"}, None), ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None), ({}, None),
    ],
)  # fmt: skip
def test_cpus_are_those_of_the_container(files: dict[str, str], cpus: int | None, tmp_path: Path) -> None:
    everything = usable_cpus(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cpus(tmp_path) == (cpus or everything)


@pytest.mark.parametrize(
    ("cuda", "rocm", "asked"),
    [("libc.so.6", "not there", True), ("libnone.so.1", "there", True), ("libnone.so.1", "not there", False)],
)
def test_torch_is_asked_only_where_there_may_be_a_gpu(cuda: str, rocm: str, asked: bool, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    code = f"""
import sys
from batchnlp.backends import device
device.CUDA, device.ROCM = {cuda!r}, ({str(tmp_path / rocm)!r},)
assert device.probe_hardware().cpus
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(asked)


@pytest.mark.parametrize(
    ("engine", "hardware", "message"),
    [
        ({"device": "cuda"}, NO_GPU, "engine.device is cuda, and there is no GPU here.*auto"),
        ({"device": "cuda:1"}, TWO_GPUS, "Ray hands out the GPUs.*CUDA_VISIBLE_DEVICES=1"),
        ({"device": "cuda:2", "runner": "inline"}, TWO_GPUS, "the last GPU here is cuda:1"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused(
    engine: dict[str, Any], hardware: Hardware, message: str, classifier: str
) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(EngineSpec(**engine), resolve_model(classifier, None), hardware, "scores")


def test_a_resumed_run_keeps_what_auto_became_below_what_is_asked_for(classifier: str) -> None:
    model = resolve_model(classifier, None)
    begun = Resolved("cuda", "bfloat16", "torch", 32_768, "bfloat16: Fake computes in it")
    assert resume(begun, EngineSpec(), model, TWO_GPUS, "scores") == begun
    asked = resume(begun, EngineSpec(tokens_per_batch=100), model, TWO_GPUS, "scores")
    assert asked == replace(begun, tokens_per_batch=100)
    moved = resume(begun, EngineSpec(), model, NO_GPU, "scores")
    assert (moved.device, moved.dtype, moved.tokens_per_batch) == ("cpu", "bfloat16", 2048)
    assert moved.backend == "openvino", "which is there, and computes nothing on a GPU"
    assert "begun on cuda, now on cpu, there is no GPU here" in moved.why
    assert resume(begun, EngineSpec(device="cpu"), model, TWO_GPUS, "scores").device == "cpu"
    inline = replace(begun, device="cuda:1")
    assert resume(inline, EngineSpec(), model, TWO_GPUS, "scores").device == "cuda", "Ray would show it one GPU alone"
    assert resume(inline, EngineSpec(runner="inline"), model, TWO_GPUS, "scores") == inline
    with pytest.raises(UsageError, match="no GPU here"):
        resume(begun, EngineSpec(device="cuda"), model, NO_GPU, "scores")
