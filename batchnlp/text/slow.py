"""Tokenizers that transformers has in Python only (Marian, M2M-100), behind the face of a fast one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from batchnlp.errors import MissingExtraError


def check_sentencepiece(path: str) -> None:
    """MissingExtraError where the tokenizer in this directory needs sentencepiece and there is none."""
    folder = Path(path)
    needed = not (folder / "tokenizer.json").is_file() and any((*folder.glob("*.spm"), *folder.glob("*.model")))
    if needed and find_spec("sentencepiece") is None:
        raise MissingExtraError.of("sentencepiece", "sentencepiece")


@dataclass(frozen=True, slots=True)
class Encoding:
    """What one text became."""

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]


class Slow:
    """The methods that `Tokenizer` calls, on a tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def no_truncation(self) -> None:
        """It never does."""

    def no_padding(self) -> None:
        """It never does."""

    def encode(self, text: str, add_special_tokens: bool) -> Encoding:
        """One text; the offsets share its characters out evenly, which is near enough to cut by."""
        ids = list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))
        step = len(text) / max(len(ids), 1)
        offsets = [(round(i * step), round((i + 1) * step)) for i in range(len(ids))]
        return Encoding(ids, [0] * len(ids), offsets)

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[Encoding]:
        """Many texts."""
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode_batch(self, runs: list[list[int]], skip_special_tokens: bool) -> list[str]:
        """Texts again."""
        return [self._tokenizer.decode(run, skip_special_tokens=skip_special_tokens) for run in runs]

    def token_to_id(self, token: str) -> int | None:
        """The id of a token that there is."""
        return self._tokenizer.get_vocab().get(token)  # type: ignore[no-any-return]
