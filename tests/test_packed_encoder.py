"""Packed encoders answer as the model called alone; those that cannot be packed are padded, and say so.

On the CPU, with an attention a document in the place of varlen attention: what is tested is all around it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_encoders as small
import tiny
import torch
from test_encoder_parity import LENGTHS, alone, pieces_of, sequences

from batchnlp.backends import packed_encoder
from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.packed_attention import Unsupported
from batchnlp.backends.packed_encoder import PackedEncoder, make
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.text.batching import fill, halve
from batchnlp.types import Resolved

EAGER = {"deberta-v2", "mpnet"}
POOLED = {("albert", "scores")}  # its head reads what the base model has pooled already


def encoder(path: Path, kind: str, budget: int = 100) -> PackedEncoder:
    return PackedEncoder(resolve_model(str(path), None), Resolved("cpu", "float32", "torch", budget, ""), kind, 1)


@pytest.mark.parametrize("kind", small.HEADS)
@pytest.mark.parametrize("name", small.CONFIGS)
def test_no_batch_and_no_order_changes_an_answer(name: str, kind: str, tmp_path: Path) -> None:
    model = small.save(name, kind, tmp_path)
    if name in EAGER or (name, kind) in POOLED:
        with pytest.raises(Unsupported):
            encoder(tmp_path, kind)
        return
    rows, segments = sequences(name)
    each = [alone(model, kind, ids, segments and segments[i]).numpy() for i, ids in enumerate(rows)]
    for budget, order in ((1, np.arange(len(rows))), (100, np.random.RandomState(5).permutation(len(rows)))):
        made = encoder(tmp_path, kind, budget)
        raw = made.forward(pieces_of([rows[i] for i in order], segments and [segments[i] for i in order]))
        assert not raw.failures
        assert raw.executed == raw.tokens == sum(LENGTHS), "nothing is padded"
        np.testing.assert_allclose(raw.values, np.concatenate([each[i] for i in order]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modes", [("mean",), ("cls",), ("max", "last"), ("cls", "mean")])
def test_vectors_are_pooled_as_padded_ones(modes: tuple[str, ...], tmp_path: Path) -> None:
    path = tiny.save_encoder(tmp_path, modes, dense=8)
    resolved = Resolved("cpu", "float32", "torch", 100, "")
    rows, _ = sequences("roberta")
    pieces = pieces_of(rows, None)
    wanted = TorchEncoder(resolve_model(path, None), resolved, "vectors", 1).forward(pieces).values
    np.testing.assert_allclose(encoder(tmp_path, "vectors").forward(pieces).values, wanted, atol=1e-5)


def test_words_are_averaged_inside_their_document(tmp_path: Path) -> None:
    small.save("bert", "token_scores", tmp_path)
    rows, _ = sequences("bert")
    pieces = pieces_of(rows, None)
    word = np.concatenate([np.arange(n, dtype=np.int32) // 3 * 3 for n in LENGTHS])
    worded = type(pieces)(pieces.ids, pieces.starts, pieces.doc, pieces.weight, word=word)
    padded = TorchEncoder(
        resolve_model(str(tmp_path), None), Resolved("cpu", "float32", "torch", 100, ""), "token_scores", 1
    )
    np.testing.assert_allclose(
        encoder(tmp_path, "token_scores").forward(worded).values, padded.forward(worded).values, atol=1e-5
    )


def test_a_cpu_pads(classifier: str) -> None:
    made = make(resolve_model(classifier, None), Resolved("cpu", "float32", "torch", 100, ""), "scores", 1)
    assert type(made) is TorchEncoder


def test_packed_batches_hold_the_budget_and_everything_once() -> None:
    lengths = np.array([5, 90, 3, 40, 40, 20, 1, 200])
    batches = list(fill(lengths, 100))
    assert sorted(np.concatenate([batch.index for batch in batches]).tolist()) == list(range(8))
    assert [batch.tokens for batch in batches] == [200, 90, 100, 9]
    assert all(batch.tokens == lengths[batch.index].sum() for batch in batches)
    halves = halve(batches[2], lengths)
    assert [half.tokens for half in halves] == [40, 60]


def leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of a batch see each other."""
    attend = packed_encoder.attend

    def leaking(*args: Any, **more: Any) -> Any:
        borders = packed_encoder._state.borders
        end = borders.ends[-1]
        packed_encoder._state.borders = packed_encoder.Borders(torch.tensor([0, end]), [0, end], end)
        try:
            return attend(*args, **more)
        finally:
            packed_encoder._state.borders = borders

    monkeypatch.setattr(packed_encoder, "attend", leaking)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["scores", "token_scores"])
def test_documents_that_see_each_other_are_noticed_beside_a_strong_bias(
    kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As heads have it that were trained on classes of unlike sizes: all answers look alike, whoever looks at all of them."""
    model = small.save("bert", kind, tmp_path)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([-30.0, 0.0, 30.0]))
    model.save_pretrained(tmp_path)
    files, resolved = resolve_model(str(tmp_path), None), Resolved("cpu", dtype, "torch", 100, "")
    PackedEncoder(files, resolved, kind, 1)
    leak(monkeypatch)
    with pytest.raises(Unsupported, match="differ"):
        PackedEncoder(files, resolved, kind, 1)
