"""tokenizer: byte-level BPE, WordPiece or Unigram, by the trainers of `tokenizers`, judged on texts it has not seen.

BPE works on bytes, so it knows every text; the others have a token for what they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.errors import SpecError
from batchnlp.job.train import TEST, TRAIN, VALIDATION, TrainSpec
from batchnlp.train.corpus import Rows, Verdict

BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
PLAIN = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
BLOCK = 1000  # texts handed to the trainer at a time
NO_LIMIT = 1 << 30


class NewTokenizer:
    """A tokenizer for models of one's own."""

    start = None
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        self.roles = BERT if spec.algorithm == "wordpiece" else PLAIN
        double = [name for name in spec.special_tokens if name in self.roles.values()]
        if double:
            raise SpecError(f"special_tokens: {double[0]} is there already", "name further ones only")
        if spec.algorithm == "bpe" and spec.vocab_size < 256 + len(self.special):
            least = 256 + len(self.special)
            raise SpecError(f"vocab_size {spec.vocab_size} has no room for all bytes", f"at least {least} for bpe")

    @property
    def special(self) -> list[str]:
        """Special tokens, the usual ones first."""
        return [*self.roles.values(), *self.spec.special_tokens]

    def check(self, schema: pa.Schema) -> None:
        """Texts are all it needs."""

    def judge(self, rows: Rows) -> Verdict:
        """Any text will do."""
        return Verdict({}, {})

    def settle(self, parts: dict[str, Rows]) -> None:
        """Nothing to find out."""

    def ready(self, folder: Path) -> None:
        """Nothing to make."""

    def learn(self, parts: dict[str, Rows], folder: Path) -> dict[str, Any]:
        """The tokenizer in `folder`, and how it does on held-out texts."""
        tokenizer = self._untrained()
        texts = parts[TRAIN].text
        tokenizer.train_from_iterator(_texts(texts), self._trainer(), length=len(texts))
        if self.spec.algorithm == "wordpiece":
            from tokenizers import processors

            frame = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
            )
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": NO_LIMIT, **self.roles}
        if self.spec.special_tokens:
            config["additional_special_tokens"] = list(self.spec.special_tokens)
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        metrics = {name: measured(tokenizer, parts[name].text, self._unknown(tokenizer))
                   for name in (VALIDATION, TEST) if len(parts.get(name, ()))}  # fmt: skip
        return {"vocab_size": tokenizer.get_vocab_size(), "metrics": metrics}

    def _unknown(self, tokenizer: Any) -> int:
        return int(tokenizer.token_to_id(self.roles["unk_token"]))

    def _untrained(self) -> Any:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

        spec, unknown = self.spec, self.roles["unk_token"]
        if spec.algorithm == "bpe":
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
        elif spec.algorithm == "wordpiece":
            tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece()
        else:
            tokenizer = Tokenizer(models.Unigram())
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
            tokenizer.decoder = decoders.Metaspace()
        forms: dict[str, list[Any]] = {"nfc": [normalizers.NFC()], "nfkc": [normalizers.NFKC()],
                 "lower": [normalizers.NFKC(), normalizers.Lowercase()]}  # fmt: skip
        if spec.normalization != "none":
            tokenizer.normalizer = normalizers.Sequence(forms[spec.normalization])
        return tokenizer

    def _trainer(self) -> Any:
        from tokenizers import pre_tokenizers, trainers

        spec = self.spec
        common: dict[str, Any] = {"vocab_size": spec.vocab_size, "special_tokens": self.special, "show_progress": False}
        if spec.algorithm == "bpe":
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            return trainers.BpeTrainer(initial_alphabet=alphabet, min_frequency=spec.min_frequency, **common)
        if spec.algorithm == "wordpiece":
            return trainers.WordPieceTrainer(min_frequency=spec.min_frequency, **common)
        return trainers.UnigramTrainer(unk_token=self.roles["unk_token"], **common)


def measured(tokenizer: Any, texts: pa.Array, unknown: int) -> dict[str, float]:
    """Bytes a token, tokens, and the share of tokens that are unknown."""
    tokens = strange = 0
    for block in _texts(texts):
        ids = [np.array(found.ids) for found in tokenizer.encode_batch_fast(block, add_special_tokens=False)]
        tokens += sum(map(len, ids))
        strange += int(sum((some == unknown).sum() for some in ids))
    size = int(pc.sum(pc.binary_length(texts)).as_py() or 0)
    return {"bytes_per_token": size / max(tokens, 1), "unknown_share": strange / max(tokens, 1), "tokens": tokens}


def _texts(texts: pa.Array) -> Iterator[list[str]]:
    for start in range(0, len(texts), BLOCK):
        yield texts.slice(start, BLOCK).to_pylist()
