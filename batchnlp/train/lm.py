"""lm: the next token, from scratch or from a model that writes already.

Documents are packed: one stream, `<s> document </s>` after the other, cut into full blocks, so that nothing is padding
(but the end of the last block). No token sees another document: transformers makes the mask from position ids that begin
anew with each document and each block, provided there is no attention mask and no cache. A model that does not heed them
would learn across documents in silence, so a canary compares two packed documents with each alone.

Held-out documents are judged whole: those longer than a block in windows that overlap by half, each token once, with at
least half a block before it. So perplexity and bits per byte depend on no block's border.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow.compute as pc

from batchnlp.errors import ModelError
from batchnlp.text.encode import Frame, Tokens, cut, frame, ranges
from batchnlp.train.corpus import Rows
from batchnlp.train.examples import NOTHING, Examples, Ragged, mask
from batchnlp.train.kind import Kind, Tensors, check_positions
from batchnlp.train.ngrams import baselines
from batchnlp.train.start import new_model
from batchnlp.types import Int32, Int64

CANARY = 1e-3  # of the largest logit, in float32


class LanguageModel(Kind):
    """AutoModelForCausalLM."""

    head, task = "AutoModelForCausalLM", "CAUSAL_LM"
    rates = (5e-5, 1e-3)

    def encode(self, rows: Rows, *, train: bool) -> Examples:
        """Full blocks to learn from, whole documents to judge by."""
        first, last = self._ends()
        tokens = self.tokenizer.encode(rows.text)
        special = Frame(np.array([first], np.int32), np.empty(0, np.int32), np.array([last], np.int32), (0, 0))
        flat, starts = frame(tokens, cut(tokens, np.iinfo(np.int32).max, window=False), special)
        if train:
            return packed(flat, starts, self.start.max_length, self.pad, self.spec.seed)
        size = int(pc.sum(pc.binary_length(rows.text)).as_py() or 0)
        return whole(flat, starts, self.start.max_length, size)

    def _ends(self) -> tuple[int, int]:
        """(what a document begins with, what it ends with); a tokenizer without a first token has one that parts texts."""
        special = self.start.special()
        last = special["eos"]
        if last is None:
            raise ModelError("the tokenizer has no token that ends a text (eos)", "use one that has")
        first = special["bos"]
        return (last if first is None else first), last

    def build(self) -> Any:
        """The model, once the canary has sung."""
        model = new_model(self.start) if self.start.model is None else super().build()
        check_positions(model, self.start)
        model.config.use_cache = False
        check_packing(model)
        return model

    def save(self, model: Any, folder: Any) -> None:
        """With the cache on again, for who writes with it."""
        model.config.use_cache = True
        super().save(model, folder)

    def tensors(self, examples: Examples, index: Int64) -> Tensors:
        """A batch of blocks without an attention mask; of documents with one."""
        import torch

        assert examples.targets is not None
        inputs, lengths = examples.inputs, examples.inputs.lengths[index]
        found = {
            "input_ids": torch.from_numpy(inputs.padded(index, self.pad)),
            "labels": torch.from_numpy(examples.targets.padded(index, NOTHING)),
        }
        if examples.positions is None:
            return {**found, "attention_mask": torch.from_numpy(mask(lengths))}
        return {**found, "position_ids": torch.from_numpy(examples.positions.padded(index, 0))}

    def measure(self, model: Any, examples: Examples) -> dict[str, float]:
        """Nats a token, perplexity, and bits for each byte of text, the ends of the documents included."""
        import torch

        nats, tokens = 0.0, 0
        for _, tensors, outputs in self.answers(model, examples):
            logits, labels = outputs["logits"][:, :-1].float(), tensors["labels"][:, 1:]
            nats += float(torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=NOTHING, reduction="sum"
            ))  # fmt: skip
            tokens += int((labels != NOTHING).sum())
        loss = nats / max(tokens, 1)
        size = dict(examples.counts).get("bytes", 0)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700)),
            "bits_per_byte": nats / math.log(2) / max(size, 1),
        }

    def compare(self, train: Examples, held_out: Examples) -> dict[str, float]:
        """Bits per byte of what counts tokens, and knows no language."""
        return baselines(train, held_out, dict(held_out.counts)["bytes"])


def packed(flat: Int32, starts: Int64, block: int, pad: int, seed: int) -> Examples:
    """Documents, drawn in another order, as blocks of `block` tokens; `targets` are NOTHING where a run begins, because
    what comes before it is not its own. The last block is filled up with a run that teaches nothing."""
    lengths = np.diff(starts)
    drawn = np.random.default_rng(seed).permutation(len(lengths))
    stream = flat[ranges(starts[:-1][drawn], lengths[drawn])]
    ends = np.cumsum(lengths[drawn])
    total = len(stream)
    missing = -total % block
    begins = np.unique(np.r_[ends - lengths[drawn], np.arange(0, total, block), *([total] if missing else [])]).astype(
        np.int64
    )
    stream = np.r_[stream, np.full(missing, pad, np.int32)].astype(np.int32)
    run = np.diff(np.r_[begins, len(stream)])
    positions = ranges(np.zeros(len(run), np.int64), run).astype(np.int32)
    labels = stream.copy()
    labels[begins] = NOTHING
    labels[total:] = NOTHING
    sizes = np.full(len(stream) // block, block, np.int64)
    row = np.zeros(len(sizes), np.int32)  # several documents share a block
    counts = (("documents", len(lengths)), ("padding", missing))
    return Examples(Ragged.of(stream, sizes), row, Ragged.of(labels, sizes), Ragged.of(positions, sizes), counts=counts)


def whole(flat: Int32, starts: Int64, block: int, size: int) -> Examples:
    """Each document by itself, in overlapping windows where it is longer than a block; every token is judged once."""
    tokens = Tokens(flat, starts)
    windows = cut(tokens, block, window=True, overlap=block // 2)
    ids = flat[ranges(windows.start, windows.length)]
    later = windows.start != starts[:-1][windows.text]
    known = np.where(
        later, np.minimum(block // 2, windows.length), 1
    )  # judged by the window before, or the first token
    first = np.cumsum(windows.length) - windows.length
    labels = ids.copy()
    labels[ranges(first, known)] = NOTHING
    inputs = Ragged.of(ids, windows.length)
    return Examples(inputs, windows.text, Ragged(labels, inputs.starts), counts=(("bytes", size),))


def check_packing(model: Any) -> None:
    """ModelError where a document's answers change because another one stands before it."""
    import torch

    ids = torch.arange(3, 15).remainder(model.config.vocab_size)[None]
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 5:]
            alone = model(input_ids=ids[:, 5:], use_cache=False).logits
    finally:
        model.train(was)
    off = float((together - alone).abs().max() / alone.abs().max().clamp(min=1e-6))
    if off > CANARY:
        message = f"{model.config.model_type} mixes documents that are packed into one block (by {off:.2g})"
        raise ModelError(message, "start from another architecture, as llama, qwen or gpt2")
