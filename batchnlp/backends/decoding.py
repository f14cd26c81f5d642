"""How the next token is chosen: by transformers' own logits processors, from the model's generation_config and the job.

A row's choice depends on nothing but the row: processors that look at what was written before are built and called a
row at a time, those that only reshape a distribution (temperature, top-k, top-p) once for all rows, and every row
draws from random numbers of its own seed.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import generation

from batchnlp.text.encode import Tokenizer
from batchnlp.types import Decoding

WARPERS = (
    generation.TemperatureLogitsWarper, generation.TopKLogitsWarper, generation.TopPLogitsWarper,
    generation.MinPLogitsWarper, generation.TypicalLogitsWarper, generation.EpsilonLogitsWarper,
    generation.EtaLogitsWarper,
)  # fmt: skip
TAIL = 4  # tokens of context for a stop string, beside those that it can have itself


class Chooser:
    """What is the same for all rows of a job."""

    def __init__(self, model: Any, decoding: Decoding, path: str) -> None:
        self.decoding = decoding
        self.config = merged(model.generation_config, decoding)
        # Without it the processors that forbid or force an end token leave it alone, or fail.
        model._prepare_special_tokens(self.config, device=model.device)
        self._model, self._path, self._device = model, path, model.device
        self.eos = _as_set(self.config.eos_token_id)
        self._tokenizer: Any = None
        self._grammar: Any = None
        kinds = self._processors(1, None)
        self._by_row = any(not isinstance(processor, WARPERS) for processor in kinds)
        self._together = generation.LogitsProcessorList([p for p in kinds if isinstance(p, WARPERS)])
        self.plain = not (kinds or decoding.sample or decoding.stop or decoding.json_schema or decoding.logprobs)

    def row(self, prompt: list[int], source: list[int] | None, max_new: int, seed: int) -> Choice:
        """The state of a row that enters. `prompt` are the tokens the decoder begins with."""
        processors = None
        if self._by_row:
            found = self._processors(len(prompt), source, len(prompt) + max_new)
            processors = generation.LogitsProcessorList([p for p in found if not isinstance(p, WARPERS)])
        draws = np.random.Generator(np.random.Philox(key=seed)).random(max_new) if self.decoding.sample else None
        matcher = self._matcher() if self.decoding.json_schema else None
        return Choice(list(prompt), len(prompt), processors, draws, matcher)

    def choose(self, logits: Tensor, rows: list[Choice]) -> tuple[list[int], list[float] | None]:
        """(next token of each row, its log-probability where asked for); logits [B, vocabulary]."""
        if self.plain:
            return logits.argmax(-1).tolist(), None
        scores = logits.float()
        known = torch.log_softmax(scores, -1) if self.decoding.logprobs else None
        if self._by_row or self.decoding.json_schema:
            scores = torch.cat([row.processed(scores[i : i + 1]) for i, row in enumerate(rows)])
        if self.decoding.sample:
            nothing = torch.empty((len(rows), 0), dtype=torch.long, device=scores.device)
            tokens = _draw(self._together(nothing, scores), [row.draw() for row in rows])
        else:
            tokens = scores.argmax(-1)
        for row, token in zip(rows, chosen := tokens.tolist(), strict=True):
            row.accept(token)
        return chosen, None if known is None else known.gather(1, tokens[:, None])[:, 0].tolist()

    def stopped(self, tokens: list[int]) -> bool:
        """Whether the newest token completes a stop string."""
        stop = self.decoding.stop
        if not stop:
            return False
        longest = max(len(text.encode()) for text in stop)
        tail = self.tokenizer.decode(tokens[-(longest + TAIL) :])
        return any(text in tail for text in stop)

    @property
    def tokenizer(self) -> Any:
        """Loaded only for jobs with stop strings or a grammar."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self._path).fast
        return self._tokenizer

    def _processors(self, length: int, source: list[int] | None, total: int = 1 << 30) -> Any:
        config = copy.copy(self.config)
        config.max_length = total
        ids = None if source is None else torch.tensor([source], device=self._device)
        return self._model._get_logits_processor(
            config, length, ids, None, generation.LogitsProcessorList(), device=self._device
        )

    def _matcher(self) -> Any:
        from llguidance import LLMatcher

        if self._grammar is None:
            from llguidance import LLTokenizer

            schema = str(self.decoding.json_schema)
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})
            size = self._model.get_output_embeddings().weight.shape[0]
            self._grammar = (
                LLTokenizer(self.tokenizer.to_str(), n_vocab=size, eos_token=sorted(self.eos) or None),
                grammar,
            )
        return LLMatcher(*self._grammar)


class Choice:
    """A row's state: what it has written, and what its processors, grammar and random numbers remember."""

    def __init__(self, ids: list[int], prompt: int, processors: Any, draws: Any, matcher: Any) -> None:
        self.ids, self._prompt, self._processors, self._draws, self._matcher = ids, prompt, processors, draws, matcher

    def processed(self, scores: Tensor) -> Tensor:
        """[1, vocabulary] after this row's processors and grammar."""
        if self._processors:
            scores = self._processors(torch.tensor([self.ids], device=scores.device), scores)
        if self._matcher is not None:
            from llguidance.torch import allocate_token_bitmask, apply_token_bitmask_inplace, fill_next_token_bitmask

            mask = allocate_token_bitmask(1, scores.shape[1])
            fill_next_token_bitmask(self._matcher, mask)
            scores = scores.clone()
            apply_token_bitmask_inplace(scores, mask.to(scores.device))
        return scores

    def draw(self) -> float:
        """This step's random number in [0, 1)."""
        return float(self._draws[len(self.ids) - self._prompt])

    def accept(self, token: int) -> None:
        """The token that was chosen."""
        self.ids.append(token)
        if self._matcher is not None:
            self._matcher.consume_token(token)


def _draw(scores: Tensor, draws: list[float]) -> Tensor:
    """[B] tokens where the cumulated probability passes each row's number."""
    total = torch.softmax(scores, -1).cumsum(-1)
    at = torch.tensor(draws, device=scores.device, dtype=total.dtype)[:, None] * total[:, -1:]
    tokens: Tensor = (total <= at).sum(-1)
    return tokens.clamp_(max=scores.shape[1] - 1)


def merged(config: Any, decoding: Decoding) -> Any:
    """The model's generation_config with the job's wishes over it; sampling only when asked."""
    config = copy.deepcopy(config)
    config.do_sample = decoding.sample
    config.max_new_tokens = None
    if decoding.min_new_tokens:
        config.min_new_tokens, config.min_length = decoding.min_new_tokens, None
    for name in ("temperature", "top_k", "top_p", "repetition_penalty", "num_beams"):
        if getattr(decoding, name) is not None:
            setattr(config, name, getattr(decoding, name))
    if decoding.sample:
        config.num_beams = 1
    if decoding.forced_bos is not None:
        config.forced_bos_token_id = decoding.forced_bos
    return config


def decoder_start(*configs: Any) -> int:
    """The token that a decoder begins with, where there is an encoder beside it; what the first of the configs says."""
    names = "decoder_start_token_id", "bos_token_id"
    values = (getattr(config, name, None) for name in names for config in configs)
    found = next((value for value in values if value is not None), 0)
    return int(found[0] if isinstance(found, list) else found)


def _as_set(value: Any) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list | tuple) else [value])
