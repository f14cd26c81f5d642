"""A word on which the model fails, as long as a test says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.types import Pieces

WORD = "kangaroo"  # of one token
TOKEN = 21652


@contextmanager
def poison(monkeypatch: pytest.MonkeyPatch, token: int = TOKEN) -> Iterator[list[int]]:
    """As long as this lasts, the model fails on every document with the word; how many pieces it was given."""
    launch: Callable[..., Any] = TorchEncoder._launch
    met: list[int] = []

    def faulty(self: TorchEncoder, pieces: Pieces, batch: Any, lengths: Any) -> Any:
        met.append(len(batch.index))
        ids = [pieces.ids[pieces.starts[i] : pieces.starts[i + 1]] for i in batch.index]
        if any(token in one for one in ids):
            raise ValueError("bad luck")
        return launch(self, pieces, batch, lengths)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEncoder, "_launch", faulty)
        yield met
