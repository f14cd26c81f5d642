"""seq2seq: a text from a text, with an encoder-decoder: summaries, titles, translations. It may start from an encoder alone.

With `prefix`, every text has it before it, and the model's config says so where `batchnlp summarize` looks for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.errors import ModelError
from batchnlp.job.train import TrainSpec
from batchnlp.train.beside import check_texts, judge_texts, texts_of
from batchnlp.train.corpus import Rows, Verdict
from batchnlp.train.examples import NOTHING, Examples, Ragged
from batchnlp.train.kind import Kind, Tensors, check_positions
from batchnlp.train.start import new_model
from batchnlp.train.warm import KNOWN, encoder_decoder
from batchnlp.types import Int64

BLOCK = 1000  # targets tokenised at a time


class Seq2Seq(Kind):
    """AutoModelForSeq2SeqLM."""

    head, task = "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"

    def __init__(self, spec: TrainSpec) -> None:
        super().__init__(spec)
        self.columns = (spec.target,)
        self._warm = self.start.model is not None and self.start.model.config.get("model_type") in KNOWN
        if self.start.model is not None and not (self._warm or self.start.model.config.get("is_encoder_decoder")):
            hint = "start from BART, T5 or BERT, or from a shape, as bart-mini"
            raise ModelError(f"{self.start.model.name} is no encoder-decoder", hint)
        if self._warm:
            self._frame()
        self.prefix = spec.prefix if spec.prefix is not None else self._own_prefix()

    def _own_prefix(self) -> str:
        params = (self.start.model.config.get("task_specific_params") or {}) if self.start.model else {}
        return str((params.get("summarization") or {}).get("prefix") or "")

    def _frame(self) -> dict[str, int]:
        """What a text of an encoder begins with, ends with and is filled up with. ModelError where there is no such token."""
        ids = self.start.special()
        found = {new: ids[name] for new, name in (("begin", "cls"), ("end", "sep"), ("pad", "pad"))}
        if missing := [name for name, id_ in found.items() if id_ is None]:
            message = f"the tokenizer in {self.start.path} has no token to {missing[0]} a text with"
            raise ModelError(message, "start from an encoder whose tokenizer has [CLS], [SEP] and [PAD]")
        return {name: id_ for name, id_ in found.items() if id_ is not None}

    def check(self, schema: pa.Schema) -> None:
        """Targets are texts."""
        check_texts(schema, self.spec.target, "target")

    def judge(self, rows: Rows) -> Verdict:
        """Rows without a target: `null_target`, `empty_target`, `blank_target`."""
        return judge_texts(rows, self.spec.target, "target")

    def encode(self, rows: Rows, *, train: bool) -> Examples:
        """The texts, and what is to be written for each."""
        texts = rows.text
        if self.prefix:
            nothing = pa.scalar("", pa.large_string())
            texts = pc.binary_join_element_wise(pa.scalar(self.prefix, pa.large_string()), texts, nothing)
        found = super().encode(replace(rows, text=texts), train=train)
        ids, cut = self._written(texts_of(rows, self.spec.target).to_pylist())
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter((token for some in ids for token in some), np.int32, int(lengths.sum()))
        return replace(found, targets=Ragged.of(flat, lengths), counts=(("targets_truncated", cut),))

    def _positions(self) -> int:
        """Of the decoder: no target can be longer. T5 has no such limit."""
        if self.start.model is None:
            return self.start.max_length if self.start.shape.startswith("bart") else self.spec.max_target_length
        return int(self.start.model.config.get("max_position_embeddings") or self.spec.max_target_length)

    def _written(self, targets: list[str]) -> tuple[list[list[int]], int]:
        """(tokens of each target as the decoder is to write them, how many were cut)."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.start.path, trust_remote_code=False, local_files_only=True)
        if hasattr(tokenizer, "src_lang"):
            raise ModelError("seq2seq does not train models with language codes yet", "start from T5, BART or Marian")
        most, cut, found = min(self.spec.max_target_length, self._positions()), 0, []
        end = tokenizer.eos_token_id if not self._warm else tokenizer.sep_token_id
        for block in _blocks(targets):
            for ids in tokenizer(text_target=block, add_special_tokens=not self._warm)["input_ids"]:
                ids = ids if (ids and ids[-1] == end) or end is None else [*ids, end]
                cut += len(ids) > most
                found.append(ids if len(ids) <= most else [*ids[: most - 1], ids[-1]])
        return found, cut

    def build(self) -> Any:
        """With its prefix where jobs look for it."""
        model = self._new() if self._warm or self.start.model is None else super().build()
        if self.prefix:
            params = dict(getattr(model.config, "task_specific_params", None) or {})
            params["summarization"] = {**(params.get("summarization") or {}), "prefix": self.prefix}
            model.config.task_specific_params = params
        return model

    def _new(self) -> Any:
        """Of a shape; or of an encoder, whose first and last token around a text begin and end what is written."""
        from transformers import AutoModel

        if not self._warm:
            return new_model(self.start)
        encoder = AutoModel.from_pretrained(
            self.start.path, use_safetensors=True, trust_remote_code=False, local_files_only=True, dtype="float32"
        )
        check_positions(encoder, self.start)
        return encoder_decoder(encoder, **self._frame())

    def tensors(self, examples: Examples, index: Int64) -> Tensors:
        """With the targets as labels."""
        import torch

        assert examples.targets is not None
        labels = torch.from_numpy(examples.targets.padded(index, NOTHING))
        return {**super().tensors(examples, index), "labels": labels}

    def measure(self, model: Any, examples: Examples) -> dict[str, float]:
        """Nats for each token of the targets, and the perplexity."""
        import torch

        nats, tokens = 0.0, 0
        for _, tensors, outputs in self.answers(model, examples):
            logits, labels = outputs["logits"].float(), tensors["labels"]
            nats += float(torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=NOTHING, reduction="sum"
            ))  # fmt: skip
            tokens += int((labels != NOTHING).sum())
        loss = nats / max(tokens, 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700))}


def _blocks(texts: list[str]) -> Iterable[list[str]]:
    return (texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK))
