"""What a kind of training is: which rows it can learn from, what they become, the model, how it is judged.

    judge(rows) -> Verdict        which rows have no label, a span outside their text, ...
    settle(parts)                 what only all rows tell (the labels); refuses what cannot be learnt
    encode(rows, train) -> Examples
    build() -> model              on torch
    tensors(examples, index)      a batch
    measure(model, examples)      metrics on rows that were not learnt from
    save(model, folder)           as `batchnlp run` takes it

A kind meets nothing of the Trainer, and is made once in each process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchnlp.errors import ModelError
from batchnlp.job.train import TrainSpec
from batchnlp.text.encode import Tokenizer, cut, frame
from batchnlp.train.corpus import Rows, Verdict
from batchnlp.train.examples import Examples, Ragged, batches, mask
from batchnlp.train.start import Start, copy_tokenizer, find_start, framed
from batchnlp.types import Int64

JUDGED_TOKENS = 4096  # padded tokens of a batch that is only judged
Tensors = dict[str, Any]
Loss = Callable[..., Any]  # as Trainer calls compute_loss_func


class Kind:
    """What most kinds share: one text a row, cut to the model's limit."""

    head = ""  # the class of transformers that loads the model
    metric, greater = "loss", False  # what the best checkpoint is chosen by
    rates = (5e-5, 5e-4)  # learning rates: of a model that has learnt, of new weights
    task = ""  # as peft calls it
    columns: tuple[str, ...] = ()  # of the source, beside the text
    labels: tuple[str, ...] = ()  # in the order of the model's outputs

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        self.start: Start = find_start(spec)
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model; loaded at first use."""
        if self._tokenizer is None:
            self._tokenizer = self.start.tokenizer()
        return self._tokenizer

    def forget(self) -> None:
        """What other processes load anew."""
        self._tokenizer = None

    @property
    def learning_rate(self) -> float:
        """At its peak."""
        if self.spec.learning_rate != "auto":
            return float(self.spec.learning_rate)
        return 2e-4 if self.spec.lora else self.rates[self.start.model is None]

    def check(self, schema: pa.Schema) -> None:
        """SourceError where a column has a type that cannot be learnt from."""

    def judge(self, rows: Rows) -> Verdict:
        """Any text will do."""
        return Verdict({}, {})

    def settle(self, parts: dict[str, Rows]) -> None:
        """Nothing to find out."""

    def ready(self, folder: Path) -> None:
        """Make in `folder` what has to be there before the rows are encoded."""
        self.start = framed(self.start, folder)
        self._tokenizer = None

    def encode(self, rows: Rows, *, train: bool) -> Examples:
        """The first tokens of each text, as the model takes them."""
        inputs, truncated = self.sequences(rows.text)
        return Examples(inputs, np.arange(len(rows), dtype=np.int32), truncated=truncated)

    def sequences(self, texts: pa.Array) -> tuple[Ragged, int]:
        """(one sequence a text with its special tokens, how many texts were cut)."""
        special = self.tokenizer.single
        tokens = self.tokenizer.encode(texts)
        windows = cut(tokens, self.start.max_length - special.size, window=False)
        ids, starts = frame(tokens, windows, special)
        return Ragged(ids, starts), int((windows.length < tokens.lengths).sum())

    def config(self) -> dict[str, Any]:
        """What the model's config is to say."""
        return {}

    def build(self) -> Any:
        """The model to train, in float32."""
        import transformers

        assert self.start.model is not None
        model = getattr(transformers, self.head).from_pretrained(
            self.start.path, use_safetensors=True, trust_remote_code=False, local_files_only=True,
            ignore_mismatched_sizes=True, dtype="float32", **self.config(),
        )  # fmt: skip
        check_positions(model, self.start)
        return model

    def adapt(self, model: Any, wrap: Callable[[Any], Any]) -> Any:
        """The model with adapters, which `wrap` puts into a model of transformers."""
        return wrap(model)

    def tensors(self, examples: Examples, index: Int64) -> Tensors:
        """A batch, padded to its longest sequence."""
        import torch

        inputs = examples.inputs
        return {
            "input_ids": torch.from_numpy(inputs.padded(index, self.pad)),
            "attention_mask": torch.from_numpy(mask(inputs.lengths[index])),
        }

    @property
    def pad(self) -> int:
        """The id that padding is made of; masked, so any will do where there is none."""
        found = self.tokenizer.token_id("<pad>")
        return found if found is not None else self.tokenizer.token_id("[PAD]") or 0

    def loss(self) -> Loss | None:
        """Of outputs, labels, and the number of labels in the step; the model's own without it."""
        return None

    def measure(self, model: Any, examples: Examples) -> dict[str, float]:
        """Metrics, `metric` among them."""
        raise NotImplementedError

    def answers(self, model: Any, examples: Examples) -> Iterator[tuple[Int64, Tensors, Any]]:
        """(indices, tensors, the model's outputs) of batches over all examples, without gradients and dropout."""
        import torch

        device = next(model.parameters()).device
        was = model.training
        model.eval()
        try:
            with torch.no_grad():
                for index in batches(examples.lengths, JUDGED_TOKENS):
                    tensors = {name: value.to(device) for name, value in self.tensors(examples, index).items()}
                    yield index, tensors, model(**tensors)
        finally:
            model.train(was)

    def compare(self, train: Examples, held_out: Examples) -> dict[str, float]:
        """What the result must beat, on the same rows; nothing where `batchnlp evaluate` has the baselines."""
        return {}

    def save(self, model: Any, folder: Path) -> None:
        """Weights as safetensors, config, tokenizer."""
        model.save_pretrained(folder, safe_serialization=True)
        copy_tokenizer(self.start.path, folder, self.start.max_length)


def check_positions(model: Any, start: Start) -> None:
    """ModelError where sequences would be longer than the model has positions."""
    limit = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if limit and 0 < limit < start.max_length and model.config.model_type not in ("t5", "mt5"):
        raise ModelError(f"max_length {start.max_length} is over the model's {limit} positions", f"at most {limit}")
