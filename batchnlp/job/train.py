"""What `batchnlp train` learns, from what, and how: the job of a training, validated, and nothing else.

The source is that of any job. Keys are flat, because most belong to one kind; what the program can know by itself
(learning rate, dtype, steps between checkpoints) is `auto` or left out.
"""

from __future__ import annotations

import os
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from batchnlp.job.section import Names, Section
from batchnlp.job.spec import LimitsSpec, SourceSpec

TrainKind = Literal["tokenizer", "lm", "classify", "ner", "seq2seq", "embed"]
MODELS: tuple[str, ...] = ("lm", "classify", "ner", "seq2seq", "embed")
RECORD, MEMBERSHIP = "training.json", "split.parquet"  # beside the weights: what was done; which row is in which part
TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")
BELONGS: dict[str, tuple[str, ...]] = {  # key → the kinds that know it; all others are for all
    "algorithm": ("tokenizer",),
    "vocab_size": ("tokenizer",),
    "special_tokens": ("tokenizer",),
    "normalization": ("tokenizer",),
    "min_frequency": ("tokenizer",),
    "shape": ("lm", "seq2seq"),
    "config": ("lm", "seq2seq"),
    "tokenizer": ("lm", "seq2seq"),
    "label": ("classify",),
    "labels": ("classify", "ner"),
    "class_weights": ("classify",),
    "entities": ("ner",),
    "target": ("seq2seq",),
    "max_target_length": ("seq2seq",),
    "prefix": ("seq2seq",),
    "pair": ("embed",),
    "temperature": ("embed",),
} | dict.fromkeys(
    ("model", "revision", "max_length", "epochs", "steps", "batch_size", "accumulate", "learning_rate", "warmup",
     "weight_decay", "dropout", "lora", "patience", "evaluate_every", "dtype", "device", "workers"), MODELS,
)  # fmt: skip


class SplitSpec(Section):
    """Which rows are learnt from, and which only judge. A row's part follows from its content, not from its place."""

    group: str | None = Field(
        None, description="A column whose rows stay together, as the source package or the author."
    )
    validation: float = Field(0.1, ge=0, lt=1, description="Share of the rows that choose the best checkpoint.")
    test: float = Field(0.1, ge=0, lt=1, description="Share of the rows that judge the result, and nothing before it.")
    duplicates: Literal["near", "exact", "keep"] = Field(
        "near", description="What is left out before the split: copies and near-copies, copies, or nothing."
    )
    similarity: float = Field(0.8, gt=0, le=1, description="Jaccard similarity of word triples of a near-copy.")
    seed: int = Field(0, description="Another seed, another split.")

    @model_validator(mode="after")
    def _check(self) -> SplitSpec:
        if self.validation + self.test >= 1:
            raise ValueError("split.validation and split.test leave nothing to learn from; make them smaller")
        return self


class TrainOutputSpec(Section):
    """Where the model goes."""

    path: str = Field(description="A directory of this training's own.")
    held_out: str | None = Field(
        None, description="A Parquet file for the test rows, with their texts; they are written nowhere without it."
    )

    @field_validator("path", "held_out")
    @classmethod
    def _check(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.strip():
            raise ValueError("output.path is empty; name a directory")
        if "://" in value:
            raise ValueError(f"output.path: {value} is a URI, and models can only be written to local paths for now")
        return os.path.expanduser(value)


class TrainSpec(Section):
    """A training: a corpus, what to learn from it, an output."""

    kind: TrainKind = Field(description="What to learn.")
    source: SourceSpec
    split: SplitSpec = Field(default_factory=SplitSpec)
    output: TrainOutputSpec
    model: str | None = Field(
        None, description="Where to start: a hub name, a directory, package:NAME. lm, seq2seq: or a shape instead."
    )
    revision: str | None = Field(None, description="The hub revision, or sha256:HEX of the weights, as in a job.")
    max_failed: int | str = Field("1%", description="Rows without a text or label from which nothing is started.")
    seed: int = Field(0, description="Of the weights that are new, of the order of the rows, of dropout.")

    algorithm: Literal["bpe", "wordpiece", "unigram"] = Field(
        "bpe", description="tokenizer: byte-level BPE, WordPiece, or Unigram."
    )
    vocab_size: int = Field(32_000, ge=16, description="tokenizer: tokens, special ones included.")
    special_tokens: Names = Field(
        default_factory=list, description="tokenizer: further tokens that are never cut, after the usual ones."
    )
    normalization: Literal["none", "nfc", "nfkc", "lower"] = Field(
        "none", description="tokenizer: of texts, before they are cut; lower is NFKC without capitals."
    )
    min_frequency: int = Field(2, ge=1, description="tokenizer: how often a pair must be there to become a token.")

    shape: str | None = Field(
        None, description="lm, seq2seq: a model from scratch, as llama-mini, gpt2-small, bart-mini."
    )
    config: dict[str, Any] = Field(default_factory=dict, description="lm, seq2seq: numbers of the shape to change.")
    tokenizer: str | None = Field(
        None,
        description="lm, seq2seq: the directory of the tokenizer of a model from scratch, as train tokenizer makes it.",
    )
    label: str = Field("label", description="classify: the column with the labels.")
    labels: Names = Field(
        default_factory=list,
        description="classify, ner: learn only these labels; classify leaves out rows with others.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="classify: balanced weighs a row by how rare its label is."
    )
    entities: str = Field("entities", description="ner: the column with the spans, list<struct<label, start, end>>.")
    target: str = Field("target", description="seq2seq: the column with the texts to write.")
    max_target_length: int = Field(
        128, ge=4, description="seq2seq: tokens of a target; what is over is cut, and counted."
    )
    prefix: str | None = Field(
        None, description="seq2seq: put before every text; the model's own for summaries without it."
    )
    pair: str = Field("pair", description="embed: the column with the text that is to be near.")
    temperature: float = Field(0.05, gt=0, description="embed: of the softmax over the other pairs of the batch.")

    max_length: int | None = Field(
        None, ge=8, description="Tokens a sequence may have; lm: of a block. The model's, at most 512, without it."
    )
    epochs: float = Field(3, gt=0, description="Times through the rows.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps, whatever `epochs` says.")
    batch_size: int = Field(32, ge=1, description="Rows of an optimizer step; lm: blocks. Of each worker.")
    accumulate: int = Field(1, ge=1, description="Parts a step's rows are computed in, where memory is short.")
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="At its peak; auto: by what is learnt, from where."
    )
    warmup: float = Field(0.06, ge=0, lt=1, description="Share of the steps until the peak; linear down to zero then.")
    weight_decay: float = Field(0.01, ge=0, description="Of AdamW.")
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share that is dropped while it learns, 0 or more, below 1; the model's own without it; 0 is faster on CPUs.",
    )
    lora: int | None = Field(None, ge=1, description="Learn adapters of this rank only; they are merged when done.")
    patience: int | None = Field(
        3, ge=1, description="Validations without a better one until it stops; null: to the end."
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between validations, each with a checkpoint; an epoch, at most 500, without it."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the computation, weights stay float32; auto: bfloat16 where the hardware computes in it.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto, cpu or cuda.")
    workers: int = Field(1, ge=1, description="Processes that share the work through Ray Train; one needs no Ray.")

    @field_validator("max_failed", mode="before")
    @classmethod
    def _check_failed(cls, value: Any) -> Any:
        return LimitsSpec(max_failed=value).max_failed

    @model_validator(mode="after")
    def _check(self) -> TrainSpec:
        for key, kinds in BELONGS.items():
            field = type(self).model_fields[key]
            if self.kind not in kinds and getattr(self, key) != field.get_default(call_default_factory=True):
                raise ValueError(f"{key} belongs to {' and '.join(kinds)}, not to {self.kind}")
        if self.kind in MODELS:
            self._check_start()
        if self.batch_size % self.accumulate:
            raise ValueError("accumulate does not divide batch_size; choose one that does")
        return self

    def _check_start(self) -> None:
        if self.shape is None and self.model is None:
            other = " or shape" if self.kind in BELONGS["shape"] else ""
            raise ValueError(f"model{other} is needed for {self.kind}: what to start from")
        if self.shape is not None and self.model is not None:
            raise ValueError("model and shape are both given; leave one out")
        if self.shape is not None and self.tokenizer is None:
            raise ValueError("tokenizer is needed for a shape: the directory that train tokenizer made")
        if self.shape is None:
            idle = [key for key in ("tokenizer", "config") if getattr(self, key)]
            if idle:
                raise ValueError(f"{idle[0]} belongs to a shape; a model brings its own")
        if self.shape is not None and self.lora is not None:
            raise ValueError("lora needs a model to adapt; a shape has learnt nothing yet")

    def failed_allowed(self, rows: int) -> int:
        """The most unusable rows that `rows` rows may have."""
        if isinstance(self.max_failed, str) and self.max_failed.endswith("%"):
            return int(rows * Decimal(self.max_failed[:-1]) / 100)
        return int(self.max_failed)


KINDS: tuple[str, ...] = get_args(TrainKind)
