"""What all models on torch share: the device, loading, and what a failure means."""

from __future__ import annotations

from typing import Any

import torch

from batchnlp.backends.base import HOPELESS, Backend
from batchnlp.errors import BackendError, ModelError, WorkerLostError
from batchnlp.types import ModelFiles, Resolved

HEADS = {
    "scores": "AutoModelForSequenceClassification", "vectors": "AutoModel",
    "token_scores": "AutoModelForTokenClassification", "span_scores": "AutoModelForQuestionAnswering",
    "completions": "AutoModelForCausalLM",
}  # fmt: skip


class TorchBackend(Backend):
    """A backend on a device."""

    def __init__(self, resolved: Resolved, threads: int) -> None:
        super().__init__()
        if resolved.device == "cpu":
            torch.set_num_threads(threads)
        self.device = torch.device(resolved.device)
        self.tokens_per_batch = resolved.tokens_per_batch


def load_model(model: ModelFiles, dtype: torch.dtype, kind: str) -> Any:
    """The model, from safetensors and without code of the repository; ModelError where weights are missing."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = "AutoModelForSeq2SeqLM" if kind == "completions" and model.config.get("is_encoder_decoder") else HEADS[kind]
    auto = getattr(transformers, name)
    loaded, info = auto.from_pretrained(
        model.path, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True,
        output_loading_info=True,
    )  # fmt: skip
    # A pooler that only some heads use may be missing; anything else would be random numbers.
    missing = [key for key in info["missing_keys"] if kind != "vectors" or "pooler" not in key]
    if missing:
        raise ModelError(f"{model.name} lacks the weights {sorted(missing)[0]}", "it was saved without its head")
    if loaded.config.pad_token_id is None or loaded.config.pad_token_id < 0:
        loaded.config.pad_token_id = loaded.config.eos_token_id if isinstance(loaded.config.eos_token_id, int) else 0
    return loaded.eval()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the batch was too large for the memory."""
    signs = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in signs)


def device_works(device: torch.device) -> bool:
    """After a kernel has failed, a device-side assert say, CUDA fails every call of the process."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        return int(torch.ones(1, device=device).sum()) == 1
    except RuntimeError:
        return False


def judge(error: Exception, device: torch.device) -> tuple[str, str]:
    """(code, message) of a document that fails with `error`; WorkerLostError where the device does nothing any more."""
    message = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if is_out_of_memory(error):
        return "device_oom", message
    if not device_works(device):
        hint = "the same command goes on; where one document does this, engine.device=cpu makes it a dead letter"
        raise WorkerLostError(f"{device} does nothing any more: {message}", hint) from error
    return "forward_error", message


def give_up(failed: int, worked: bool, error: Exception, message: str) -> None:
    """BackendError when so many documents failed, and none ever worked, that it must be the model."""
    if not worked and failed >= HOPELESS:
        raise BackendError(f"the model fails on every document: {message}") from error
