"""Adapters of low rank instead of all weights, and their way back into plain weights: peft's, behind one door."""

from __future__ import annotations

from typing import Any

from batchnlp.errors import MissingExtraError, ModelError
from batchnlp.job.train import TrainSpec
from batchnlp.train.kind import Kind


def adapted(model: Any, spec: TrainSpec, kind: Kind) -> Any:
    """The model with adapters in all linear layers, if the spec wants them; a new head is learnt whole."""
    if spec.lora is None:
        return model
    try:
        import peft
    except ImportError:
        raise MissingExtraError.of("peft", "train") from None
    config = peft.LoraConfig(
        task_type=kind.task, r=spec.lora, lora_alpha=2 * spec.lora, lora_dropout=0.05, target_modules="all-linear"
    )
    try:
        return kind.adapt(model, lambda inner: peft.get_peft_model(inner, config))
    except ValueError as error:
        raise ModelError(
            f"lora: {' '.join(str(error).split())[:200]}", "leave lora out, and learn all weights"
        ) from None


def merged(model: Any, kind: Kind) -> Any:
    """The model without adapters, their weights added to those they adapt."""
    return kind.adapt(model, lambda inner: inner.merge_and_unload() if hasattr(inner, "merge_and_unload") else inner)
