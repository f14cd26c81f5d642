"""What all backends share: what the worker hangs onto one, and one shard as a feed. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchnlp.types import Pieces

HOPELESS = 8  # documents failing one by one before anything succeeded: then it is the model, not the documents
OnBatch = Callable[[int, int, int, float], None]  # answers, tokens, tokens with padding, seconds


class Aborted(Exception):
    """The run is being stopped; raised between batches."""


class Backend:
    """What the worker is told while a backend computes, and what it tells the backend."""

    def __init__(self) -> None:
        self.note = ""  # what it does otherwise than it would, and why: for the run's summary
        self.on_batch: OnBatch = lambda rows, tokens, executed, seconds: None
        self.aborted: Callable[[], bool] = lambda: False


class One:
    """A feed of one shard."""

    def __init__(self, pieces: Pieces) -> None:
        self._work: list[Pieces] = [pieces]

    @property
    def ended(self) -> bool:
        """Whether it was taken."""
        return not self._work

    def take(self, *, wait: bool) -> tuple[Any, Pieces] | None:
        """The shard, once."""
        return (None, self._work.pop()) if self._work else None
