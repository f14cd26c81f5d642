"""One epoch of fine-tuning a classifier, from examples that are tokenised beforehand, without judging or checkpoints: the
training loop alone.

    ours      batchnlp's learner
    grouped   transformers' Trainer with its own grouping by length
    padded    transformers' Trainer with padding="max_length"

All three learn to tell documents with an even number of characters from those with an odd one, from the same weights: what
is learnt does not matter, and the first and last loss are told so that it shows that the same is done.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pyarrow.parquet as pq
import torch
from harness.contender import Facts, Settings, serve
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

LONGEST, BATCH = 256, 32  # MiniLM's own limit


class Training:
    """One of the three, an epoch a round."""

    def __init__(self, setup: Facts) -> None:
        torch.set_num_threads(setup["threads"])
        self._bfloat16 = setup["dtype"] == "bfloat16"
        self._path = setup["work"]["path"]
        self._files = {sample: setup["work"]["sample" if sample else "corpus"] for sample in (True, False)}
        self._tokenizer = AutoTokenizer.from_pretrained(self._path)

    def run(self, settings: Settings, *, sample: bool) -> Facts:
        """An epoch."""
        texts = pq.read_table(self._files[sample])["text"].to_pylist()
        labels = [len(text) % 2 for text in texts]
        with tempfile.TemporaryDirectory() as folder:
            trainer, counts = (self._ours if settings["way"] == "ours" else self._stock)(
                texts, labels, folder, settings["way"]
            )
            trainer.remove_callback(PrinterCallback)
            done = trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {
            "units": len(texts), "seconds": done.metrics["train_runtime"], "first_loss": losses[0], "last_loss": losses[-1],
            "executed_over_real": counts["executed"] / counts["real"],
        }  # fmt: skip

    def _arguments(self, folder: str, **more: Any) -> TrainingArguments:
        return TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=BATCH, learning_rate=5e-5, use_cpu=True,
            bf16=self._bfloat16, report_to="none", disable_tqdm=True, save_strategy="no", logging_steps=4, seed=1,
            remove_unused_columns=False, dataloader_pin_memory=False, **more,
        )  # fmt: skip

    def _model(self) -> Any:
        set_seed(1)
        return AutoModelForSequenceClassification.from_pretrained(
            self._path, num_labels=2, ignore_mismatched_sizes=True
        )

    def _stock(self, texts: list[str], labels: list[int], folder: str, way: str) -> tuple[Trainer, dict[str, int]]:
        ids = self._tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
        rows = [{"input_ids": some, "labels": label} for some, label in zip(ids, labels, strict=True)]
        counts = {"real": 0, "executed": 0}

        def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            some = [{"input_ids": row["input_ids"]} for row in batch]
            kind = "max_length" if way == "padded" else "longest"
            tensors = self._tokenizer.pad(some, padding=kind, max_length=LONGEST, return_tensors="pt")
            counts["real"] += int(tensors["attention_mask"].sum())
            counts["executed"] += tensors["input_ids"].numel()
            return {**tensors, "labels": torch.tensor([row["labels"] for row in batch])}

        order = {} if way == "padded" else {"train_sampling_strategy": "group_by_length"}
        trainer = Trainer(self._model(), self._arguments(folder, **order), data_collator=collate, train_dataset=rows)
        return trainer, counts

    def _ours(self, texts: list[str], labels: list[int], folder: str, way: str) -> tuple[Trainer, Any]:
        import pyarrow as pa

        from batchnlp.job.load import build_train
        from batchnlp.train.classify import Classify
        from batchnlp.train.corpus import Rows
        from batchnlp.train.learner import Learner

        spec = build_train({
            "kind": "classify", "model": self._path, "max_length": LONGEST, "source": {"path": "x"}, "output": {"path": folder},
        })  # fmt: skip
        kind = Classify(spec)
        kind.labels = ("0", "1")
        rows = Rows(pa.array(range(len(texts))), pa.array(texts, pa.large_string()),
                    pa.table({"label": list(map(str, labels))}))  # fmt: skip
        examples = kind.encode(rows, train=True)
        learner = Learner(kind, examples, None, self._model(), self._arguments(folder))
        return learner, _Counts(learner)


class _Counts:
    """What ours counts by itself, under the others' names."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner

    def __getitem__(self, name: str) -> int:
        return int(self._learner.batches.tokens if name == "real" else self._learner.batches.executed)


if __name__ == "__main__":
    serve(Training)
