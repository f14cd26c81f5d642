"""transformers' Trainer, with the order of the rows, the judging and the checkpoints that this package wants.

Everything else is its own: optimizer, schedule, mixed precision, accumulation, several processes, early stopping.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from batchnlp.backends.device import probe_hardware
from batchnlp.errors import UsageError
from batchnlp.job.train import TrainSpec
from batchnlp.train import checkpoints
from batchnlp.train.examples import ByLength, Examples
from batchnlp.train.kind import Kind, Tensors
from batchnlp.types import Int64

STATE = "trainer_state.json"
MOST_STEPS = 500  # between checkpoints, where the spec does not say


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """How far a training is."""

    step: int
    steps: int
    seconds: float  # of this invocation
    tokens: int  # real ones, learnt in this invocation
    executed: int  # the same with padding
    epoch: float = 0.0
    loss: float | None = None
    metrics: dict[str, float] | None = None  # of the last validation
    message: str = ""


Listener = Callable[[TrainProgress], None]


class Positions(Dataset):  # type: ignore[misc]
    """The examples by number: tensors are made a batch at a time."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, at: int) -> int:
        return at


class Batches:
    """Numbers of examples into tensors; counts what goes through."""

    def __init__(self, kind: Kind, examples: Examples) -> None:
        self._kind, self._examples = kind, examples
        self.tokens = self.executed = 0

    def __call__(self, index: Sequence[int]) -> Tensors:
        """A batch."""
        at: Int64 = np.asarray(index, np.int64)
        tensors = self._kind.tensors(self._examples, at)
        self.tokens += int(self._examples.inputs.lengths[at].sum())
        self.executed += int(tensors["input_ids"].numel())
        return tensors


class Learner(Trainer):  # type: ignore[misc]
    """One training."""

    control: Any

    def __init__(self, kind: Kind, train: Examples, validation: Examples | None, model: Any, args: Any) -> None:
        self._kind, self._examples, self._validation = kind, train, validation
        self.batches = Batches(kind, train)
        some = Positions(len(validation)) if validation is not None else None
        super().__init__(
            model=model, args=args, data_collator=self.batches, train_dataset=Positions(len(train)), eval_dataset=some,
            compute_loss_func=kind.loss(),
        )  # fmt: skip
        self.remove_callback(PrinterCallback)  # which prints to stdout

    def _get_train_sampler(self, train_dataset: Any = None) -> ByLength:
        return ByLength(self._examples.lengths, self._train_batch_size * self.args.gradient_accumulation_steps,
                        self.args.seed)  # fmt: skip

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """The kind's own metrics on the validation part. Every process computes them, so that all stop together."""
        assert self._validation is not None
        found = self._kind.measure(self.model, self._validation)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def restore(self, checkpoint: Path) -> None:
        """The end of a training from its last checkpoint: going on would be a step too many."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        best = Path(self.state.best_model_checkpoint or checkpoint)
        self._load_from_checkpoint(str(best if best.is_dir() else checkpoint))


def ended(checkpoint: Path, steps: int, patience: int | None) -> bool:
    """Whether a checkpoint was the last one: of all steps, or of those that early stopping allowed."""
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    stopping: Any = state.stateful_callbacks.get("EarlyStoppingCallback", {})
    waited = stopping.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return bool(state.global_step >= steps or (patience is not None and waited >= patience))


class Pace(TrainerCallback):  # type: ignore[misc]
    """The last step is judged and saved too; a checkpoint counts when it is whole; those that nothing needs go."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """At the last step."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After every process has written its part."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not state.is_world_process_zero:
            return
        work = Path(args.output_dir)
        newest = work / f"{checkpoints.PREFIX}{state.global_step}"
        checkpoints.complete(newest)
        checkpoints.sweep(work, {str(newest.absolute()), str(Path(state.best_model_checkpoint or newest).absolute())})


class Curves(TrainerCallback):  # type: ignore[misc]
    """Loss and metrics as JSON lines, and to whoever listens. A resumed training continues the curve of its checkpoint."""

    def __init__(self, file: Path, batches: Batches, listener: Listener | None) -> None:
        self._file, self._batches, self._listener = file, batches, listener
        self._began = time.monotonic()
        self._metrics: dict[str, float] | None = None
        self._loss: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The lines that the checkpoint knows of."""
        if state.is_world_process_zero:
            self._file.write_text("".join(map(_line, state.log_history)), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One line more."""
        if not state.is_world_process_zero or not state.log_history:
            return
        with self._file.open("a", encoding="utf-8") as handle:
            handle.write(_line(state.log_history[-1]))
        self._loss = state.log_history[-1].get("loss", self._loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """For the progress line."""
        self._metrics = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell how far it is."""
        if self._listener is None or not state.is_world_process_zero:
            return
        seconds = time.monotonic() - self._began
        self._listener(TrainProgress(
            state.global_step, state.max_steps, seconds, self._batches.tokens, self._batches.executed,
            state.epoch or 0.0, self._loss, self._metrics,
        ))  # fmt: skip


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True) + "\n"


def arguments(spec: TrainSpec, kind: Kind, work: Path, rows: int, *, judged: bool) -> Any:
    """Trainer's settings, of a spec."""
    device, bfloat16 = hardware(spec)
    per_epoch = max(-(-rows // (spec.batch_size * spec.workers)), 1)
    steps = spec.steps if spec.steps is not None else max(round(per_epoch * spec.epochs), 1)
    every = min(spec.evaluate_every or min(per_epoch, MOST_STEPS), steps)
    strategy = {"eval_strategy": "steps", "eval_steps": every, "load_best_model_at_end": True,
                "metric_for_best_model": f"eval_{kind.metric}", "greater_is_better": kind.greater} if judged else {}  # fmt: skip
    return TrainingArguments(
        output_dir=str(work), max_steps=steps, per_device_train_batch_size=spec.batch_size // spec.accumulate,
        gradient_accumulation_steps=spec.accumulate, learning_rate=kind.learning_rate, lr_scheduler_type="linear",
        warmup_steps=int(spec.warmup * steps), weight_decay=spec.weight_decay, logging_steps=max(min(every // 10, 50), 1),
        save_strategy="steps", save_steps=every, seed=spec.seed, data_seed=spec.seed, bf16=bfloat16,
        use_cpu=device == "cpu", report_to="none", disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=device != "cpu", restore_callback_states_from_checkpoint=True,
        ddp_backend=("gloo" if device == "cpu" else "nccl") if spec.workers > 1 else None, **strategy,
    )  # fmt: skip


def hardware(spec: TrainSpec) -> tuple[str, bool]:
    """(cpu or cuda, whether to compute in bfloat16)."""
    found = probe_hardware()
    device = ("cuda" if found.gpus else "cpu") if spec.device == "auto" else spec.device
    if device == "cuda" and not found.gpus:
        raise UsageError("device is cuda, and there is no GPU here", "use device=auto")
    return device, spec.dtype == "bfloat16" or (spec.dtype == "auto" and found.fast_bfloat16)


def callbacks(spec: TrainSpec, learner: Learner, curves: Curves, *, judged: bool) -> None:
    """In the order they must come."""
    if judged and spec.patience is not None:
        learner.add_callback(EarlyStoppingCallback(early_stopping_patience=spec.patience))
    learner.add_callback(Pace())
    learner.add_callback(curves)
