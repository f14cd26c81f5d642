"""transformers' own two ways: `generate` on batches, and `generate_batch`, its continuous batching.

way: static       batches of `batch` in the order of the prompts, or `sorted` by answer, each until its longest is done
way: continuous   in `waves` of answers of like length, which it does not know by itself: that flatters it
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from harness.contender import Facts, Settings, serve
from harness.prompts import Prompts
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    ContinuousBatchingConfig,
    GenerationConfig,
)

PAD = 1
BLOCK = 256  # tokens of a block of its cache


class Generate:
    """The stock model."""

    def __init__(self, setup: Facts) -> None:
        torch.set_num_threads(setup["threads"])
        work = setup["work"]
        self._prompts = {False: Prompts.read(work["prompts"]), True: Prompts.read(work["sample_prompts"])}
        seq2seq = AutoConfig.from_pretrained(work["path"]).is_encoder_decoder
        auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        self._device = setup.get("device", "cpu")
        self._model = auto.from_pretrained(work["path"], dtype=getattr(torch, setup["dtype"])).to(self._device).eval()
        if seq2seq and setup["settings"]["way"] == "continuous":
            raise ValueError("generate_batch takes decoder-only models")

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """All prompts."""
        prompts = self._prompts[sample]
        (self._static if settings["way"] == "static" else self._continuous)(prompts, settings)
        return {"units": prompts.useful}

    def _static(self, prompts: Prompts, settings: Settings) -> None:
        texts, size = prompts.lists(), settings["batch"]
        order = np.argsort(prompts.most) if settings.get("sorted") else np.arange(len(texts))
        for start in range(0, len(texts), size):
            chosen = order[start : start + size]
            new = int(prompts.most[chosen].max())
            ids, mask = self._padded([texts[i] for i in chosen])
            self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=PAD,
            )

    def _padded(self, texts: list[list[int]]) -> tuple[Any, Any]:
        """[B, L] ids and mask: an encoder is padded on the right, a decoder on the left."""
        length, right = max(map(len, texts)), self._model.config.is_encoder_decoder
        pads = [length - len(text) for text in texts]
        ids = [t + [PAD] * n if right else [PAD] * n + t for t, n in zip(texts, pads, strict=True)]
        mask = [[1] * len(t) + [0] * n if right else [0] * n + [1] * len(t) for t, n in zip(texts, pads, strict=True)]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)

    def _continuous(self, prompts: Prompts, settings: Settings) -> None:
        texts = prompts.lists()
        blocks = (
            int((-(-(np.diff(prompts.starts) + prompts.most) // BLOCK)).sum()) + 2
        )  # else it takes most of the memory
        batching = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=settings["tokens"])
        for wave in np.array_split(np.argsort(prompts.most), settings["waves"]):
            config = GenerationConfig(
                max_new_tokens=int(prompts.most[wave].max()), do_sample=False, eos_token_id=-1, pad_token_id=PAD
            )
            self._model.generate_batch(
                [texts[i] for i in wave],
                generation_config=config,
                continuous_batching_config=batching,
                progress_bar=False,
            )


if __name__ == "__main__":
    serve(Generate)
