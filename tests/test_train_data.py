"""What a training is made of: copies, the split, the order, the numbers a checkpoint is chosen by. No model here."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnlp.job.train import SplitSpec
from batchnlp.text.encode import offsets
from batchnlp.train.corpus import Composition, Rows, split
from batchnlp.train.duplicates import copies
from batchnlp.train.examples import NOTHING, ByLength, Examples, Ragged, batches, order
from batchnlp.train.metrics import accuracy, macro_f1, span_f1
from batchnlp.train.ner import spans, wrong
from batchnlp.train.ngrams import ORDER, baselines


def large(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def rows(texts: list[str], **columns: list[str]) -> Rows:
    return Rows(pa.array(range(len(texts))), large(texts), pa.table(columns))


# --- copies


def test_the_first_of_copies_and_near_copies_stays() -> None:
    words = tiny.texts(1, 40)[0] + " " + " ".join(f"w{i}" for i in range(60))
    near = words.replace("w30", "other")
    texts = [words, "something else entirely here", f"  {words}\n", near, "something else entirely here", ""]
    exact, close = copies(large(texts), "near", 0.8)
    assert exact.tolist() == [False, False, True, False, True, False]
    assert close.tolist() == [False, False, False, True, False, False]
    assert not copies(large(texts), "exact", 0.8)[1].any()
    assert not any(found.any() for found in copies(large(texts), "keep", 0.8))


def test_texts_that_only_share_words_stay() -> None:
    exact, close = copies(large(tiny.texts(300)), "near", 0.8)
    assert not exact.any()
    assert close.sum() <= 2, "short texts of the same forty words may come near each other"


# --- the split


def test_a_row_keeps_its_part_wherever_it_stands() -> None:
    texts = tiny.texts(400)
    some = Composition(400, {}, {}, 0, 0)
    first, counts = split(rows(texts), SplitSpec(), some)
    assert sum(counts.parts.values()) == 400
    assert 15 <= counts.parts["test"] <= 70
    again, _ = split(rows([*texts[::-1], "one more"]), SplitSpec(), some)
    for name, found in first.items():
        assert set(found.text.to_pylist()) <= set(again[name].text.to_pylist())
    other, _ = split(rows(texts), SplitSpec(seed=1), some)
    assert set(other["test"].text.to_pylist()) != set(first["test"].text.to_pylist())


def test_groups_are_whole() -> None:
    texts = tiny.texts(400)
    parts, counts = split(rows(texts, owner=[f"o{i // 4}" for i in range(400)]), SplitSpec(group="owner"),
                          Composition(400, {}, {}, 0, 0))  # fmt: skip
    owners = [set(part.column("owner").to_pylist()) for part in parts.values()]
    assert not owners[0] & owners[1] | owners[0] & owners[2] | owners[1] & owners[2]
    assert sum(counts.groups.values()) == 100


# --- the order


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 20), st.integers(0, 5))
def test_every_example_is_seen_once_an_epoch(lengths: list[int], batch: int, seed: int) -> None:
    found = order(np.array(lengths), batch, np.random.default_rng(seed))
    assert sorted(found.tolist()) == list(range(len(lengths)))
    seen = np.concatenate(list(batches(np.array(lengths), 256)))
    assert sorted(seen.tolist()) == list(range(len(lengths)))


def test_the_order_depends_on_seed_and_epoch_alone_and_leaves_little_padding() -> None:
    lengths = np.random.default_rng(1).lognormal(4, 0.8, 3000).astype(np.int64) + 1
    sampler = ByLength(lengths, 16, seed=7)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    assert first == again
    assert list(sampler) != first
    groups = [lengths[first[i : i + 16]] for i in range(0, len(first), 16)]
    padded = sum(len(group) * group.max() for group in groups)
    assert padded / lengths.sum() < 1.2, "drawn without regard to length it would be 2.8"


def test_examples_survive_the_way_to_other_processes(tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    ragged = Ragged.of(np.array([1, 2, 3], np.int32), np.array([1, 2]))
    given_ = Examples(ragged, np.array([0, 1], np.int32), ragged, None, np.array([1, 0], np.int32), 1, (("bytes", 9),))
    given_.save(tmp_path / "e.npz")
    found = Examples.load(tmp_path / "e.npz")
    assert found.inputs.padded(np.array([0, 1]), 0).tolist() == [[1, 0], [2, 3]]
    assert (found.truncated, found.counts, found.positions) == (1, (("bytes", 9),), None)
    assert found.label is not None
    assert found.label.tolist() == [1, 0]


# --- what a checkpoint is chosen by


def test_the_metrics_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for _ in range(20):
        truth, found = (draw.integers(0, 5, 40).astype(np.int32) for _ in range(2))
        assert math.isclose(macro_f1(truth, found, 6), metrics.f1_score(truth, found, average="macro"), abs_tol=1e-12)
        assert math.isclose(accuracy(truth, found), metrics.accuracy_score(truth, found), abs_tol=1e-12)


def test_spans_of_bio_labels() -> None:
    labels = np.array([0, 1, 2, 1, 3, 4, 2, 2, 0, 2], np.int32)  # O, B-a I-a, B-a, B-b I-b, I-a I-a, O, I-a
    row = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1], np.int32)
    assert spans(labels, row) == [(0, 1, 1, 3), (0, 1, 3, 4), (0, 2, 4, 6), (0, 1, 6, 7), (1, 1, 7, 8), (1, 1, 9, 10)]
    assert spans(np.empty(0, np.int32), np.empty(0, np.int32)) == []
    assert span_f1([(0, 1, 1, 3)], [(0, 1, 1, 3), (0, 1, 4, 5)]) == {"precision": 0.5, "recall": 1.0, "f1": 2 / 3}


def test_what_is_wrong_with_spans() -> None:
    def span(*places: int) -> dict[str, object]:
        return {"label": "P", "start": places[0], "end": places[1]}

    assert wrong([span(0, 3), span(3, 5)], 5) == ""
    assert wrong([span(0, 3), span(2, 5)], 5) == "spans_cross"
    assert wrong([span(0, 6)], 5) == wrong([span(-1, 2)], 5) == "span_outside"
    assert wrong([span(2, 2)], 5) == "empty_span"
    assert wrong(None, 5) == wrong([{"label": None, "start": 0, "end": 1}], 5) == "null_entities"


# --- what a language model must beat


def stream(documents: list[list[int]]) -> Examples:
    lengths = np.array([len(d) for d in documents])
    flat = np.array([t for d in documents for t in d], np.int32)
    labels = flat.copy()
    labels[offsets(lengths)[:-1]] = NOTHING
    return Examples(Ragged.of(flat, lengths), np.arange(len(documents), dtype=np.int32), Ragged.of(labels, lengths))


def by_hand(train: list[list[int]], held_out: list[list[int]], n: int) -> float:
    """Witten-Bell with dictionaries."""
    vocabulary = max(max(map(max, train)), max(map(max, held_out))) + 1
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for document in train:
        for i, token in enumerate(document):
            for k in range(min(n - 1, i) + 1):
                counts[tuple(document[i - k : i])][token] += 1

    def probability(context: tuple[int, ...], token: int) -> float:
        shorter = probability(context[1:], token) if context else 1 / vocabulary
        seen = counts.get(context)
        return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen)) if seen else shorter

    asked = [(tuple(d[max(i - n + 1, 0) : i]), d[i]) for d in held_out for i in range(1, len(d))]
    return -sum(math.log2(probability(context, token)) for context, token in asked)


def test_the_baselines_are_witten_bell() -> None:
    draw = np.random.default_rng(3)
    train, held_out = ([draw.integers(0, 6, draw.integers(2, 30)).tolist() for _ in range(k)] for k in (30, 10))
    found = baselines(stream(train), stream(held_out), 100)
    assert math.isclose(found["unigram_bits_per_byte"] * 100, by_hand(train, held_out, 1), rel_tol=1e-9)
    assert math.isclose(found["fivegram_bits_per_byte"] * 100, by_hand(train, held_out, ORDER), rel_tol=1e-9)
