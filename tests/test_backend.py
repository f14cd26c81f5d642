"""The encoder when things go wrong: memory runs out, a document breaks the model, the model or the device is broken.

Faults are raised by a hook in front of the real model, where the real ones come from.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch

from batchnlp.backends.base import Aborted
from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.engine.api import apply
from batchnlp.errors import BackendError, ModelError, WorkerLostError
from batchnlp.job.task import TaskSpec
from batchnlp.tasks.classify import Classify
from batchnlp.tasks.embed import Embed
from batchnlp.tasks.zero_shot import make
from batchnlp.types import Docs, Encoded, Raw, Resolved

WORD, POISON = "terrible", 6659  # a word that no other text has, and its token
TEXTS = tiny.texts(64)
Hook = Callable[[torch.Tensor], None]


def backend(path: str, kind: str = "scores", budget: int = 3000) -> TorchEncoder:
    return TorchEncoder(resolve_model(path, None), Resolved("cpu", "float32", "torch", budget, ""), kind, 2)


def encode(path: str, texts: list[str], **task: Any) -> tuple[Any, Encoded]:
    kind = "zero-shot" if "labels" in task else "classify"
    spec = TaskSpec(kind=kind, model=path, **task)
    made = (make if kind == "zero-shot" else Classify)(resolve_model(path, None), spec)
    return made, made.encode(Docs.of(pa.array(texts, pa.large_string())))


@contextmanager
def hooked(encoder: TorchEncoder, hook: Hook) -> Iterator[None]:
    def before(module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        hook(kwargs["input_ids"])

    handle = encoder._model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class Memory:
    """A device whose memory ends at `ceiling` padded tokens."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.asked: list[tuple[int, int]] = []  # (rows, tokens) of every forward pass, in order

    def __call__(self, ids: torch.Tensor) -> None:
        self.asked.append((len(ids), ids.numel()))
        if ids.numel() > self.ceiling:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")

    @property
    def refused(self) -> list[int]:
        return [tokens for _, tokens in self.asked if tokens > self.ceiling]


class Poison:
    """A document that no batch survives."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, ids: torch.Tensor) -> None:
        self.passes += 1
        if bool((ids == POISON).any()):
            raise ValueError("index out of range\nin self")


# --- out of memory


@pytest.mark.parametrize("ceiling", [2900, 700, 200, tiny.LIMIT])
def test_out_of_memory_halves_and_changes_no_result(classifier: str, ceiling: int) -> None:
    _, encoded = encode(classifier, TEXTS)
    calm = backend(classifier).forward(encoded.pieces)
    assert np.isfinite(calm.values).all()
    encoder, memory = backend(classifier), Memory(ceiling)
    with hooked(encoder, memory):
        raw = encoder.forward(encoded.pieces)
    np.testing.assert_allclose(raw.values, calm.values, atol=1e-5)
    assert raw.failures == ()
    assert raw.tokens == calm.tokens == len(encoded.pieces.ids)


def test_what_did_not_fit_is_remembered(classifier: str) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder, memory = backend(classifier), Memory(200)
    with hooked(encoder, memory):
        encoder.forward(encoded.pieces)
        assert len(memory.refused) > 1, "the ceiling must have been hit"
        assert encoder.tokens_per_batch <= 200
        for i, (rows, tokens) in enumerate(memory.asked):
            smallest = min((t for _, t in memory.asked[:i] if t > 200), default=math.inf)
            assert tokens < smallest or rows == 1, "a batch as large as one that failed was tried"
        assert len(memory.refused) <= math.ceil(math.log2(3000 / 200)) + 1
        memory.asked.clear()
        encoder.forward(encoded.pieces)
    assert memory.refused == []


def test_a_document_too_large_for_the_memory_alone_is_the_only_one_lost(classifier: str) -> None:
    texts = [*tiny.texts(20, longest=8), "game " * 40]
    _, encoded = encode(classifier, texts)
    encoder = backend(classifier)
    with hooked(encoder, Memory(30)):
        raw = encoder.forward(encoded.pieces)
    assert [(f.doc, f.stage, f.code) for f in raw.failures] == [(20, "forward", "device_oom")]
    assert np.isfinite(raw.values[:20]).all()
    assert np.isnan(raw.values[20]).all()


# --- a document that breaks the model


@pytest.mark.parametrize("at", [0, 17, 63])
def test_one_bad_document_costs_one_failure_and_few_passes(classifier: str, at: int) -> None:
    texts = [*TEXTS]
    texts[at] = f"{WORD} {texts[at]}"
    _, encoded = encode(classifier, texts)
    calm_backend, calm_passes = backend(classifier), Poison()
    clean = encode(classifier, TEXTS)[1]
    with hooked(calm_backend, calm_passes):
        calm = calm_backend.forward(clean.pieces)
    encoder, poison = backend(classifier, budget=30_000), Poison()
    with hooked(encoder, poison):
        raw = encoder.forward(encoded.pieces)
    assert [(f.doc, f.stage, f.code) for f in raw.failures] == [(at, "forward", "forward_error")]
    assert raw.failures[0].message == "ValueError: index out of range in self"
    others = np.arange(len(texts)) != at
    np.testing.assert_allclose(raw.values[others], calm.values[others], atol=1e-5)
    assert np.isnan(raw.values[at]).all()
    assert poison.passes - 1 <= 2 * math.log2(len(texts)) + 1, "one batch of 64 must not become 64 passes"


def test_a_bad_window_takes_its_document_along_and_no_other(classifier: str) -> None:
    task, encoded = encode(classifier, ["a game", "game " * 100 + WORD, "music"])
    encoder = backend(classifier)
    with hooked(encoder, Poison()):
        raw = encoder.forward(encoded.pieces)
    assert {f.doc for f in raw.failures} == {1}
    _, finite = task.decode(encoded, raw)
    assert finite.tolist() == [True, False, True]


def test_a_bad_document_of_many_pieces_does_not_stop_the_run(nli: str) -> None:
    """Its pieces are the longest, so they come first, and each fails alone: still one document, not a broken model."""
    texts = [f"{WORD} " + "game " * 30, *tiny.texts(30, longest=5)]
    task, encoded = encode(nli, texts, labels=",".join(f"topic {i}" for i in range(12)))
    encoder = backend(nli)
    with hooked(encoder, Poison()):
        raw = encoder.forward(encoded.pieces)
    assert {f.doc for f in raw.failures} == {0}
    _, finite = task.decode(encoded, raw)
    assert finite.tolist() == [False] + [True] * 30


def test_a_model_that_always_fails_ends_the_run(classifier: str) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder = backend(classifier)

    def broken(ids: torch.Tensor) -> None:
        raise RuntimeError("device lost")

    with (
        hooked(encoder, broken),
        pytest.raises(BackendError, match="fails on every document: RuntimeError: device lost"),
    ):
        encoder.forward(encoded.pieces)


def test_a_label_that_breaks_the_model_is_told_at_once(encoder: str) -> None:
    """Without its vector every document would come back as NaN."""
    spec = TaskSpec(kind="zero-shot", model=encoder, labels=f"music,{WORD}")
    task, made = make(resolve_model(encoder, None), spec), backend(encoder, "vectors")
    with hooked(made, Poison()), pytest.raises((ModelError, BackendError)):
        task.prepare(made.forward)


def test_answers_that_are_not_numbers_are_dead_letters(classifier: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(classifier, tmp_path / "nan"))
    weights = load_file(path / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][POISON] = torch.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    got = apply("classify", ["a game", WORD, "music"], model=str(path), engine={"dtype": "float32"})
    assert got["error"].to_pylist() == [None, "non_finite: the model answered with NaN or infinity", None]
    assert got["label"].to_pylist()[1] is None


def test_abort_between_batches(classifier: str) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder = backend(classifier, budget=100)
    encoder.aborted = lambda: True
    with pytest.raises(Aborted):
        encoder.forward(encoded.pieces)


# --- a device that computes while the next batch is made ready, and tells its errors late


def late(encoder: TorchEncoder, hook: Hook) -> TorchEncoder:
    """The encoder as on a GPU: one batch ahead, and what `hook` raises comes up when the answer is awaited."""
    launch, encoder._ahead = encoder._launch, 1

    def launched(pieces: Any, batch: Any, lengths: Any) -> Any:
        ids = [pieces.ids[pieces.starts[i] : pieces.starts[i + 1]] for i in batch.index]
        return replace(launch(pieces, batch, lengths), wait=lambda: hook(torch.tensor(np.concatenate(ids))))

    encoder._launch = launched  # type: ignore[method-assign]
    return encoder


@pytest.mark.parametrize("at", [0, 17, 63])
def test_an_error_that_shows_one_batch_late_costs_the_same_one_document(classifier: str, at: int) -> None:
    texts = [*TEXTS]
    texts[at] = f"{WORD} {texts[at]}"
    _, encoded = encode(classifier, texts)
    calm = backend(classifier).forward(encoded.pieces)
    encoder, told = late(backend(classifier, budget=300), Poison()), []
    encoder.on_batch = lambda rows, tokens, executed, seconds: told.append(rows)
    raw = encoder.forward(encoded.pieces)
    assert [(f.doc, f.code) for f in raw.failures] == [(at, "forward_error")]
    others = np.arange(len(texts)) != at
    np.testing.assert_allclose(raw.values[others], calm.values[others], atol=1e-5)
    assert np.isnan(raw.values[at]).all()
    assert sum(told) == len(encoded.pieces) - 1


def test_a_device_that_is_lost_ends_the_worker_and_costs_no_document(
    classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder, assertion = backend(classifier), "CUDA error: device-side assert triggered"
    monkeypatch.setattr("batchnlp.backends.torch_model.device_works", lambda device: False)

    def broken(ids: torch.Tensor) -> None:
        raise RuntimeError(assertion)

    with hooked(encoder, broken), pytest.raises(WorkerLostError, match=assertion) as caught:
        encoder.forward(encoded.pieces)
    assert caught.value.retryable


# --- batches do not show in the answers


@pytest.mark.parametrize("budget", [1, 60, 500, 100_000])
@pytest.mark.parametrize("modes", ["mean", "cls", "max", "last"])
def test_the_budget_changes_no_vector(tmp_path: Path, budget: int, modes: str) -> None:
    path = tiny.save_encoder(tmp_path / "m", [modes])
    task = Embed(resolve_model(path, None), TaskSpec(kind="embed", model=path))
    pieces = task.encode(Docs.of(pa.array(TEXTS[:20], pa.large_string()))).pieces
    want = backend(path, "vectors", 1).forward(pieces)
    got = backend(path, "vectors", budget).forward(pieces)
    np.testing.assert_allclose(got.values, want.values, atol=1e-5)
    assert (want.executed, want.tokens) == (len(pieces.ids), len(pieces.ids)), "alone there is no padding"
    assert got.executed >= got.tokens == want.tokens


def test_counters_are_told_batch_by_batch(classifier: str) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder, told = backend(classifier, budget=300), []
    encoder.on_batch = lambda rows, tokens, executed, seconds: told.append((rows, tokens, executed))
    raw: Raw = encoder.forward(encoded.pieces)
    assert np.sum(told, axis=0).tolist() == [len(encoded.pieces), raw.tokens, raw.executed]
