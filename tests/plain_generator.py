"""A backend that calls `model.generate` for one piece after the other: slow, and plainly right."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from batchnlp.types import Completions, Decoding, ModelFiles, Pieces, Resolved


class PlainGenerator:
    """One piece at a time; stop strings and grammars are left to the task and to nobody."""

    def __init__(self, model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding) -> None:
        self.seq2seq = bool(model.config.get("is_encoder_decoder"))
        auto = AutoModelForSeq2SeqLM if self.seq2seq else AutoModelForCausalLM
        self.model = auto.from_pretrained(model.path).eval()
        self.decoding = decoding

    def run(self, feed: Any) -> Any:
        while (work := feed.take(wait=True)) is not None:
            yield work[0], self.forward(work[1])

    @torch.inference_mode()
    def forward(self, pieces: Pieces) -> Completions:
        runs, scores, finish = [], [], []
        for i in range(len(pieces)):
            ids = torch.tensor(pieces.ids[pieces.starts[i] : pieces.starts[i + 1]].astype(np.int64))[None]
            run, score, ended = self._one(ids, 0 if pieces.seed is None else int(pieces.seed[i]))
            runs.append(run)
            scores.append(score)
            finish.append("stop" if ended else "length")
        starts = np.r_[0, np.cumsum([len(run) for run in runs])].astype(np.int64)
        values = np.concatenate([*scores, np.zeros(0)]).astype(np.float32)[:, None]
        flat = np.concatenate([*runs, np.zeros(0)]).astype(np.int32)
        total = int(pieces.starts[-1]) + len(flat)
        return Completions("completions", values, (), total, total, 0.01, flat, starts, tuple(finish))

    def _one(self, ids: torch.Tensor, seed: int) -> tuple[list[int], list[float], bool]:
        d = self.decoding
        torch.manual_seed(seed)
        more = {"forced_bos_token_id": d.forced_bos} if d.forced_bos is not None else {}
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=d.sample, max_new_tokens=d.max_new_tokens,
            min_new_tokens=d.min_new_tokens or None, return_dict_in_generate=True, output_scores=True, **more,
        )  # fmt: skip
        new = out.sequences[0, (1 if self.seq2seq else ids.shape[1]) :].tolist()
        score = [float(s[0].log_softmax(-1)[t]) for s, t in zip(out.scores, new, strict=True)]
        ends = self.model.generation_config.eos_token_id
        ended = bool(new) and new[-1] in (ends if isinstance(ends, list) else [ends])
        return (new[:-1], score[:-1], True) if ended else (new, score, False)
