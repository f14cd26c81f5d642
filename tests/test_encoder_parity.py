"""Encoders of ten architectures: in whatever batch, order, window or shard, the answers of the model called alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_encoders as small
import tiny
import torch
from transformers import AutoTokenizer

import batchnlp
from batchnlp.backends import openvino_encoder
from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.types import Pieces, Resolved

ENGINE = {"device": "cpu", "dtype": "float32", "backend": "torch"}
LENGTHS = [tiny.LIMIT, 1, 2, 7, 7, 7, 19, 20, 33, tiny.LIMIT, 3, 12]
TEXTS = [*tiny.texts(10), "game " * 130, "music and data " * 40]


def pieces_of(rows: list[list[int]], segments: list[list[int]] | None) -> Pieces:
    starts = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    flat = [np.concatenate(table) for table in (rows, segments) if table is not None]
    doc = np.arange(len(rows), dtype=np.int32)
    return Pieces(
        flat[0].astype(np.int32), starts, doc, np.ones(len(rows), np.int32),
        flat[1].astype(np.uint8) if len(flat) > 1 else None,
    )  # fmt: skip


def sequences(name: str) -> tuple[list[list[int]], list[list[int]] | None]:
    """(token ids, segment ids for models that have segments)."""
    rng = np.random.RandomState(3)
    rows = [rng.randint(1000, small.VOCABULARY, n).tolist() for n in LENGTHS]
    halves = [[0] * (n // 2) + [1] * (n - n // 2) for n in LENGTHS]
    return rows, halves if name in small.SEGMENTS else None


@torch.inference_mode()
def alone(model: Any, kind: str, ids: list[int], segments: list[int] | None = None) -> torch.Tensor:
    """What the model answers to one sequence by itself, without a mask: [1, width], or [tokens, width], as Raw has it."""
    more = {} if segments is None else {"token_type_ids": torch.tensor([segments])}
    out = model(input_ids=torch.tensor([ids]), **more)
    if kind == "vectors":
        return out.last_hidden_state.mean(1)
    if kind == "span_scores":
        return torch.stack([out.start_logits[0], out.end_logits[0]], 1)
    if kind == "token_scores":
        best = out.logits[0].softmax(-1).max(-1)
        return torch.stack([best.indices, best.values], 1)
    return out.logits


@pytest.mark.parametrize("kind", small.HEADS)
@pytest.mark.parametrize("name", small.CONFIGS)
def test_no_batch_and_no_order_changes_an_answer(name: str, kind: str, tmp_path: Path) -> None:
    model = small.save(name, kind, tmp_path)
    files = resolve_model(str(tmp_path), None)
    assert files.max_length == tiny.LIMIT, "the longest sequence has a position for each of its tokens"
    rows, segments = sequences(name)
    each = [alone(model, kind, ids, segments and segments[i]).numpy() for i, ids in enumerate(rows)]
    want = np.concatenate(each)
    assert np.ptp(want, axis=0).min() > 0.1, "the answers must differ, else nothing is proven"
    orders = [np.arange(len(rows)), np.random.RandomState(5).permutation(len(rows))]
    for budget, order in ((1, orders[0]), (100, orders[1]), (10_000, orders[0]), (10_000, orders[1])):
        made = TorchEncoder(files, Resolved("cpu", "float32", "torch", budget, ""), kind, 1)
        raw = made.forward(pieces_of([rows[i] for i in order], segments and [segments[i] for i in order]))
        assert not raw.failures
        assert (raw.executed > raw.tokens) == (budget > 1), "only batches of one are not padded"
        np.testing.assert_allclose(raw.values, np.concatenate([each[i] for i in order]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", small.CONFIGS_UNMASKED)
def test_where_padding_changes_answers_there_is_none(name: str, tmp_path: Path) -> None:
    model = small.save(name, "scores", tmp_path)
    rows, _ = sequences(name)
    made = TorchEncoder(
        resolve_model(str(tmp_path), None), Resolved("cpu", "float32", "torch", 10_000, ""), "scores", 1
    )
    assert "one length" in made.note
    raw = made.forward(pieces_of(rows, None))
    assert raw.executed == raw.tokens
    want = torch.cat([alone(model, "scores", ids) for ids in rows])
    np.testing.assert_allclose(raw.values, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_a_head_that_wants_the_end_token_has_it_when_the_model_is_tried(backend: str, tmp_path: Path) -> None:
    """As facebook/bart-large-mnli."""
    model = small.save("bart", "scores", tmp_path)
    rows = [[*ids[:-1], 102] for ids in sequences("bart")[0]]
    files, resolved = resolve_model(str(tmp_path), None), Resolved("cpu", "float32", backend, 200, "")
    made = TorchEncoder(files, resolved, "scores", 1)
    if backend == "openvino":
        made = openvino_encoder.make(files, resolved, "scores", 1)
    assert "one length" not in made.note
    raw = made.forward(pieces_of(rows, None))
    assert not raw.failures
    want = torch.cat([alone(model, "scores", ids) for ids in rows])
    np.testing.assert_allclose(raw.values, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", small.CONFIGS)
def test_windows_are_those_of_the_model_alone(name: str, tmp_path: Path) -> None:
    """The whole way, from text to probabilities, by hand: windows up to the last position, weighted by their tokens."""
    model = small.save(name, "scores", tmp_path)
    got = batchnlp.apply("classify", TEXTS, model=str(tmp_path), engine=ENGINE, scores=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for row, text in zip(got.to_pylist(), TEXTS, strict=True):
        parts = tokenizer(text, truncation=True, max_length=tiny.LIMIT, return_overflowing_tokens=True).input_ids
        chances = [torch.softmax(alone(model, "scores", ids)[0], -1).numpy() for ids in parts]
        want = np.average(chances, axis=0, weights=[len(ids) - 2 for ids in parts])
        assert row["n_windows"] == len(parts)
        np.testing.assert_allclose(list(row["scores"].values()), want, atol=1e-5)
    assert got["n_windows"].to_pylist()[-2:] == [3, 3]


@pytest.mark.parametrize("name", [name for name in small.CONFIGS if name not in small.ONE_SEGMENT])
def test_pairs_are_told_apart_as_the_model_does_it(name: str, tmp_path: Path) -> None:
    """MiniLM's tokenizer gives the second text of a pair the segment 1; models without segments do not hear of it."""
    model = small.save(name, "scores", tmp_path)
    labels, texts = ["sport", "law and order"], TEXTS[:5]
    got = batchnlp.apply("zero-shot", texts, model=str(tmp_path), engine=ENGINE, labels=labels, scores=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for row, text in zip(got.to_pylist(), texts, strict=True):
        logits = []
        for label in labels:
            pair = tokenizer(text, f"This example is {label}.")
            segments = pair.token_type_ids if name in small.SEGMENTS else None
            logits.append(float(alone(model, "scores", pair.input_ids, segments)[0, 2]))
        want = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(list(row["scores"].values()), want, atol=1e-5)


@pytest.mark.parametrize("name", ["roberta", "deberta-v2"])
def test_no_cut_into_shards_changes_an_answer(name: str, tmp_path: Path) -> None:
    """Two replicas over such shards: test_runs."""
    small.save(name, "vectors", tmp_path / "model")
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), tmp_path / "docs.parquet")
    want = batchnlp.apply("embed", TEXTS, model=str(tmp_path / "model"), engine=ENGINE)["embedding"].to_pylist()
    for rows in (1, 5):
        out = tmp_path / f"out-{rows}"
        result = batchnlp.run({
            "source": {"path": str(tmp_path / "docs.parquet"), "id": "id", "rows_per_shard": rows},
            "task": {"kind": "embed", "model": str(tmp_path / "model")}, "output": {"path": str(out)},
            "engine": {**ENGINE, "runner": "inline", "tokens_per_batch": 120},
        })  # fmt: skip
        assert result.shards == -(-len(TEXTS) // rows)
        got = pa.concat_tables(map(pq.read_table, sorted(out.glob("part-*.parquet")))).sort_by("id")
        np.testing.assert_allclose(got["embedding"].to_pylist(), want, atol=1e-5)
