"""The same text is computed once, and that changes nothing but the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.job.task import TaskSpec
from batchnlp.tasks.classify import Classify
from batchnlp.text.alike import Known, first_alike, keys
from batchnlp.types import Docs, Pieces, Resolved

TEXTS = tiny.texts(12)


def pieces(of: Sequence[Sequence[int]]) -> Pieces:
    starts = np.r_[0, np.cumsum([len(ids) for ids in of])].astype(np.int64)
    ids = np.array([token for one in of for token in one], np.int32)
    return Pieces(ids, starts, np.arange(len(of), dtype=np.int32), np.ones(len(of), np.int32))


def encoded(path: str, texts: Sequence[str]) -> Pieces:
    task = Classify(resolve_model(path, None), TaskSpec(kind="classify", model=path))
    return task.encode(Docs.of(pa.array(texts, pa.large_string()))).pieces


class Feed:
    def __init__(self, shards: Sequence[Pieces]) -> None:
        self.left = list(enumerate(shards))

    @property
    def ended(self) -> bool:
        return not self.left

    def take(self, *, wait: bool) -> tuple[Any, Pieces] | None:
        return self.left.pop(0) if self.left else None


def encoder(path: str) -> tuple[TorchEncoder, list[int]]:
    """An encoder, and the rows of every call of its model."""
    made = TorchEncoder(resolve_model(path, None), Resolved("cpu", "float32", "torch", 300, ""), "scores", 2)
    rows: list[int] = []
    made._model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return made, rows


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=30))
def test_the_first_of_equal_pieces_is_found(of: list[list[int]]) -> None:
    assert first_alike(keys(pieces(of))).tolist() == [of.index(ids) for ids in of]


def test_segments_and_words_tell_pieces_apart() -> None:
    same = pieces([[5, 6, 7], [5, 6, 7]])
    typed = replace(same, type_ids=np.array([0, 0, 1, 0, 1, 1], np.uint8))
    worded = replace(same, word=np.array([0, 1, 2, 0, 1, 1], np.int32))
    assert [first_alike(keys(p)).tolist() for p in (same, typed, worded)] == [[0, 0], [0, 1], [0, 1]]


def test_a_shard_computes_each_text_once(classifier: str) -> None:
    made, rows = encoder(classifier)
    told: list[int] = []
    made.on_batch = lambda docs, tokens, executed, seconds: told.append(docs)
    several = made.forward(encoded(classifier, TEXTS * 3))
    assert sum(rows) == len(TEXTS)
    assert sum(told) == 3 * len(TEXTS), "progress counts documents, whether they were computed or not"
    once = made.forward(encoded(classifier, TEXTS))
    np.testing.assert_array_equal(several.values, np.tile(once.values, (3, 1)))
    assert several.tokens == once.tokens


def test_a_run_computes_each_text_once(classifier: str) -> None:
    made, rows = encoder(classifier)
    shards = [encoded(classifier, TEXTS), encoded(classifier, [*TEXTS[::-1], "another one"])]
    answers = [raw.values for _, raw in made.run(Feed(shards))]
    assert sum(rows) == len(TEXTS) + 1
    np.testing.assert_array_equal(answers[1][:-1], answers[0][::-1])


def test_another_run_begins_anew(classifier: str) -> None:
    made, rows = encoder(classifier)
    for _ in range(2):
        list(made.run(Feed([encoded(classifier, TEXTS)])))
    assert sum(rows) == 2 * len(TEXTS)


def test_a_text_that_fails_fails_for_all_that_have_it(classifier: str) -> None:
    made, _ = encoder(classifier)
    bad = encoded(classifier, ["terrible"])
    poison = int(bad.ids[1])

    def break_(module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        if (kwargs["input_ids"] == poison).any():
            raise ValueError("index out of range")

    made._model.register_forward_pre_hook(break_, with_kwargs=True)
    texts = ["terrible", *TEXTS, "terrible"]
    first, second = (raw for _, raw in made.run(Feed([encoded(classifier, texts), encoded(classifier, texts)])))
    for raw in (first, second):
        assert [(f.doc, f.code) for f in raw.failures] == [(0, "forward_error"), (len(texts) - 1, "forward_error")]
        assert np.isnan(raw.values).any(axis=1).nonzero()[0].tolist() == [0, len(texts) - 1]


def test_values_of_tokens_are_handed_on_too(tmp_path: Path) -> None:
    from transformers import BertForTokenClassification

    torch.manual_seed(3)
    BertForTokenClassification(tiny.bert(num_labels=4)).save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    model = resolve_model(str(tmp_path), None)
    made = TorchEncoder(model, Resolved("cpu", "float32", "torch", 300, ""), "token_scores", 2)
    shard = pieces([[101, 5, 6, 102], [101, 9, 102], [101, 5, 6, 102]])
    values = made.forward(shard).values
    assert not np.isnan(values).any()
    np.testing.assert_array_equal(values[:4], values[7:])


def halves() -> Iterator[tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    for _ in range(5):
        yield rng.integers(0, 2**63, (10, 2)).astype(np.uint64), rng.random((10, 4), np.float32)


def test_what_is_remembered_is_bounded_and_the_newest() -> None:
    known = Known(limit=20 * 4 * 4)
    blocks = list(halves())
    for names, values in blocks:
        known.add(names, values)
    found = [known.find(names) for names, _ in blocks]
    assert [int((rows >= 0).sum()) for rows in found] == [0, 0, 0, 10, 10]
    np.testing.assert_array_equal(known.values(found[4]), blocks[4][1])


@pytest.mark.parametrize("width", [1, 384])
def test_answers_that_are_no_numbers_are_not_remembered(width: int) -> None:
    known = Known()
    values = np.ones((2, width), np.float32)
    values[1, 0] = np.nan
    known.add(names := np.array([[1, 2], [3, 4]], np.uint64), values)
    assert known.find(names).tolist() == [0, -1]
