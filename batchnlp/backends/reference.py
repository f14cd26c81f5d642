"""The model as transformers runs it, one piece at a time: what `doctor` holds the backends against.

No batches, no padding, no masks, no sorting, no keys and values kept from one step to the next. Shared with the
backends are the loading of the model, what becomes of the output for one sequence (pooling, the best label), and what a
job asks of its answers (penalties, a grammar).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchnlp.backends.answer import Answer, Pooler
from batchnlp.backends.decoding import Chooser, decoder_start
from batchnlp.backends.generation import answer_limits
from batchnlp.backends.token_heads import BY_TOKEN
from batchnlp.backends.torch_model import TorchBackend, judge, load_model
from batchnlp.errors import BackendError, UsageError
from batchnlp.types import Decoding, Failure, Float32, Int32, Int64, ModelFiles, Pieces, Raw, Resolved


@dataclass(frozen=True, slots=True)
class Reread:
    """A written answer, read again token by token: what the reference would have written in each place.

    With the same tokens before it the reference chooses the same token in every place, or the answers differ.
    """

    ids: tuple[int, ...]  # what the decoder sees, from its first token on
    gaps: Float32  # [new] by how much, in logits, the reference prefers its own token; 0 where it is the same
    best: Int64  # [new, 2] the two likeliest tokens in each place
    margins: Float32  # [new] by how much the first of them is likelier
    scale: float  # the largest logit
    comparable: bool = True  # whether the gaps tell something; not with beams

    @property
    def at(self) -> int:
        """The first place where the reference would have written another token; -1 where there is none."""
        differs = np.flatnonzero(self.gaps > 0)
        return int(differs[0]) if len(differs) else -1


class Reference(TorchBackend):
    """One model on one device, called with one piece at a time."""

    def __init__(
        self, model: ModelFiles, resolved: Resolved, kind: str, threads: int, decoding: Decoding | None = None
    ) -> None:
        super().__init__(resolved, threads)
        self.kind, self.decoding = kind, decoding or Decoding()
        try:
            self._model = load_model(model, getattr(torch, resolved.dtype), kind).to(self.device)
        except torch.OutOfMemoryError as error:
            message = f"{model.name} in {resolved.dtype} does not fit on {resolved.device}"
            raise UsageError(message, "compare on the CPU: --set engine.device=cpu") from error
        self._answer = Answer(self._model, kind, Pooler(model, self.device) if kind == "vectors" else None)
        self._positions, self._path = model.max_length, model.path
        self._seq2seq = bool(self._model.config.is_encoder_decoder)
        self._chooser = Chooser(self._model, self.decoding, model.path) if kind == "completions" else None
        self._begin = decoder_start(self._model.generation_config, self._model.config) if self._chooser else 0

    # --- encoders

    def forward(self, pieces: Pieces) -> Raw:
        """The answers of an encoder; NaN for pieces that it fails on."""
        found: list[Float32 | None] = []
        failures: list[Failure] = []
        for i in range(len(pieces)):
            try:
                found.append(self._one(pieces, i))
            except Exception as error:  # noqa: BLE001 - whatever a model raises, it is about this document
                failures.append(Failure(int(pieces.doc[i]), "forward", *judge(error, self.device)))
                found.append(None)
        width = next((values.shape[1] for values in found if values is not None), 0)
        if len(pieces) and not width:
            raise BackendError(f"the model fails on every document: {failures[0].message}")
        rows = pieces.lengths if self.kind in BY_TOKEN else np.ones(len(pieces), np.int64)
        nothing = (np.full((n, width), np.nan, np.float32) for n in rows)
        values = [empty if got is None else got for got, empty in zip(found, nothing, strict=True)]
        joined = np.concatenate(values) if values else np.empty((0, width), np.float32)
        return Raw(self.kind, joined, tuple(failures), len(pieces.ids), len(pieces.ids))

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not followed by mypy
    def _one(self, pieces: Pieces, piece: int) -> Float32:
        """[1 or tokens, width]."""
        run = slice(int(pieces.starts[piece]), int(pieces.starts[piece + 1]))
        inputs = {"input_ids": self._row(pieces.ids[run])}
        if pieces.type_ids is not None:
            inputs["token_type_ids"] = self._row(pieces.type_ids[run])
        if pieces.word is not None:
            inputs["word"] = self._row(pieces.word[run])
        values = self._answer(**inputs)
        return np.asarray(values.reshape(-1, values.shape[-1]).cpu().numpy(), np.float32)

    def _row(self, ids: Any) -> Tensor:
        """[1, L] int64 on the device."""
        return torch.from_numpy(np.asarray(ids, np.int64))[None].to(self.device)

    # --- generation

    def limits(self, pieces: Pieces) -> Int64:
        """[pieces] tokens that each answer may have."""
        return answer_limits(pieces, self.decoding, self._positions, seq2seq=self._seq2seq)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def reread(self, prompt: Int32, limit: int, answer: list[int], finish: str) -> Reread | None:
        """The answer to a prompt, in one pass; None where the model fails on it. `limit` and `finish` as the backend has
        them: an answer that ends neither by an end token, a stop string nor its limit differs there."""
        try:
            return self._reread(prompt, limit, answer, finish)
        except Exception as error:  # noqa: BLE001 - whatever a model raises, it is about this prompt
            judge(error, self.device)
            return None

    def _reread(self, prompt: Int32, limit: int, answer: list[int], finish: str) -> Reread:
        assert self._chooser is not None
        chooser = self._chooser
        if (chooser.config.num_beams or 1) > 1:
            return self._beams(prompt, limit, answer)
        start = [self._begin] if self._seq2seq else prompt.tolist()
        by_string = chooser.stopped(answer)
        end = finish == "stop" and not by_string and bool(chooser.eos)
        logits = self._logits(prompt, tuple(start + answer), len(answer) + end)
        scores, eos = logits, torch.tensor(sorted(chooser.eos), device=logits.device)
        if not chooser.plain:
            choice = chooser.row(start, prompt.tolist() if self._seq2seq else None, limit, 0)
            rows = []
            for i, row in enumerate(logits):
                rows.append(choice.processed(row[None]))
                if i < len(answer):
                    choice.accept(answer[i])
            scores = torch.cat(rows) if rows else logits
        tokens = torch.tensor(answer, dtype=torch.long, device=logits.device)
        given = scores[: len(answer)].gather(1, tokens[:, None])[:, 0]
        if end:
            given = torch.cat([given, scores[-1, eos].max()[None]])
        gaps = np.nan_to_num((scores.max(-1).values - given).cpu().numpy(), nan=np.inf)
        if not (end or by_string or len(answer) == limit):
            gaps[-1:] = np.inf  # it ends for no reason
        best = logits.topk(2)
        margins = (best.values[:, 0] - best.values[:, 1]).cpu().numpy()
        scale = float(logits.abs().max()) if len(logits) else 1.0
        return Reread(tuple(start + answer), gaps, best.indices.cpu().numpy(), margins, scale)

    def _beams(self, prompt: Int32, limit: int, answer: list[int]) -> Reread:
        """What the beams prefer is no matter of one token: they search again, and the answers are the same or not."""
        assert self._chooser is not None
        ids, config = self._row(prompt), self._chooser.config
        config.max_new_tokens, config.max_length = limit, None
        config.pad_token_id = self._model.config.pad_token_id
        out = self._model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        own = out[0, 1 if self._seq2seq else len(prompt) :].tolist()
        own = next((own[:i] for i, token in enumerate(own) if token in self._chooser.eos), own)
        places = max(len(own), len(answer))
        gaps = np.array([own[i : i + 1] != answer[i : i + 1] for i in range(places)], np.float32)
        return Reread(tuple(answer), gaps, np.empty((0, 2), np.int64), np.empty(0, np.float32), 1.0, comparable=False)

    def _logits(self, prompt: Int32, ids: tuple[int, ...], new: int) -> Tensor:
        """[new, vocabulary] after the last tokens of what the decoder sees, in float32."""
        seen = self._row(ids)
        inputs = {"input_ids": self._row(prompt), "decoder_input_ids": seen} if self._seq2seq else {"input_ids": seen}
        out = self._model(**inputs)
        first = 0 if self._seq2seq else len(prompt) - 1
        return torch.as_tensor(out.logits[0, first : first + new], dtype=torch.float32)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def margins(self, prompt: Int32, read: Reread) -> Float32:
        """[new] how far the same two tokens of each place are apart here."""
        two = self._logits(prompt, read.ids, len(read.best)).gather(1, torch.from_numpy(read.best).to(self.device))
        return np.asarray((two[:, 0] - two[:, 1]).cpu().numpy(), np.float32)
