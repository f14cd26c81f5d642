"""One process of a training: from examples to a model in `work/final`. Knows nothing of Ray."""

from __future__ import annotations

import shutil
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchnlp.backends.device import usable_cpus
from batchnlp.data.store import LocalStore, to_json
from batchnlp.job.train import TEST, TRAIN, VALIDATION
from batchnlp.train import checkpoints
from batchnlp.train.examples import Examples
from batchnlp.train.kind import Kind
from batchnlp.train.learner import Curves, Learner, Listener, arguments, callbacks, ended, hardware
from batchnlp.train.lora import adapted, merged

FINAL, FITTED, CURVES = "final", "fitted.json", "curves.jsonl"
SHORT = 256  # tokens


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a training came to. Filled by `fit`."""

    steps: int
    best_step: int | None
    epochs: float
    stopped_early: bool
    metrics: dict[str, dict[str, float]]  # of the validation and the test part
    parameters: int
    trained_parameters: int
    device: str
    dtype: str
    seconds: float  # of learning, in this invocation
    tokens: int  # real ones, learnt in this invocation
    executed: int  # the same with padding
    resumed_from: int  # the step


def fit(kind: Kind, parts: dict[str, Examples], work: Path, listener: Listener | None = None) -> Fitted:
    """Learn, from the newest whole checkpoint where there is one; judge; save. Deterministic on a CPU in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those that torch, transformers and peft have for developers
        return _fit(kind, parts, work, listener)


def _fit(kind: Kind, parts: dict[str, Examples], work: Path, listener: Listener | None) -> Fitted:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    spec = kind.spec
    if spec.workers == 1:
        torch.set_num_threads(usable_cpus())
    transformers.set_seed(spec.seed)
    model = adapted(kind.build(), spec, kind)
    if spec.dropout is not None:
        set_dropout(model, spec.dropout)
    train, validation = parts[TRAIN], parts.get(VALIDATION)
    args = arguments(spec, kind, work, len(train), judged=validation is not None)
    learner = Learner(kind, train, validation, model, args)
    callbacks(spec, learner, Curves(work / CURVES, learner.batches, listener), judged=validation is not None)
    newest = checkpoints.last(work)
    prepared = _prepared(learner, spec.workers)
    began = time.monotonic()
    if newest is not None and ended(newest, args.max_steps, spec.patience):
        learner.restore(newest)
    else:
        with _attention(kind, args.device.type):
            prepared.train(resume_from_checkpoint=str(newest) if newest else None)
    seconds = time.monotonic() - began
    state = learner.state
    metrics = {name: kind.measure(learner.model, parts[name]) for name in (VALIDATION, TEST) if name in parts}
    device, bfloat16 = hardware(spec)
    sizes = [(p.numel(), p.requires_grad) for p in learner.model.parameters()]
    fitted = Fitted(
        state.global_step, state.best_global_step or None, round(float(state.epoch or 0), 4),
        state.global_step < state.max_steps, metrics, sum(n for n, _ in sizes), sum(n for n, own in sizes if own), device,
        "bfloat16" if bfloat16 else "float32", seconds, learner.batches.tokens, learner.batches.executed,
        checkpoints.step_of(newest) if newest else 0,
    )  # fmt: skip
    if learner.is_world_process_zero():
        shutil.rmtree(work / FINAL, ignore_errors=True)
        kind.save(merged(learner.accelerator.unwrap_model(learner.model), kind), work / FINAL)
        LocalStore(work).replace(FITTED, to_json(asdict(fitted)))
    return fitted


def set_dropout(model: Any, share: float) -> None:
    """In all layers: as modules, and as the numbers that attention is called with."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(module, name, share)


def _attention(kind: Kind, device: str) -> AbstractContextManager[Any]:
    """On a CPU the backward pass of torch's fused attention takes three times as long as that of plain products, which
    need memory for the scores of all pairs of tokens instead: as much as with dropout in attention, which has no fused way."""
    longest = max(kind.start.max_length, kind.spec.max_target_length if kind.spec.kind == "seq2seq" else 0)
    if device != "cpu" or longest > SHORT:
        return nullcontext()
    found: AbstractContextManager[Any] = sdpa_kernel(SDPBackend.MATH)
    return found


def _prepared(learner: Learner, workers: int) -> Any:
    if workers == 1:
        return learner
    from batchnlp.train.ray_workers import prepare

    return prepare(learner)
