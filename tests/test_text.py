"""Batching and tokenising: pure functions, checked over everything hypothesis thinks of, and against the tokenizer itself."""

from __future__ import annotations

import itertools
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast
from transformers import AutoTokenizer

from batchnlp.text import encode as module
from batchnlp.text.batching import ALIKE, halve, pack, padding
from batchnlp.text.encode import Tokenizer, Tokens, cut, frame, offsets, ranges
from batchnlp.types import Batch

LENGTHS = st.lists(st.integers(1, 600), max_size=80).map(lambda x: np.array(x, np.int64))
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
WORDY = st.lists(
    st.sampled_from([*tiny.WORDS, "naïve", "日本語", "😀", "\u200b", "##ing", "[CLS]", "x" * 120]), max_size=90
)
TEXTS = st.lists(st.one_of(ANY_TEXT, WORDY.map(" ".join)), min_size=1, max_size=6)
quick = settings(max_examples=60, deadline=None)


# --- batching


@given(LENGTHS, st.integers(1, 3000))
def test_every_piece_is_in_exactly_one_batch(lengths: Any, budget: int) -> None:
    batches = list(pack(lengths, budget))
    index = [int(i) for batch in batches for i in batch.index]
    assert sorted(index) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 3000))
def test_the_budget_holds_unless_a_piece_is_alone(lengths: Any, budget: int) -> None:
    for batch in pack(lengths, budget):
        assert batch.length == lengths[batch.index].max()
        assert batch.tokens == len(batch.index) * batch.length
        assert batch.tokens <= budget or len(batch.index) == 1


@given(LENGTHS, st.integers(1, 3000))
def test_longest_first(lengths: Any, budget: int) -> None:
    order = [int(lengths[i]) for batch in pack(lengths, budget) for i in batch.index]
    assert order == sorted(order, reverse=True)


@given(LENGTHS, st.integers(1, 3000))
def test_batches_end_where_the_budget_does_or_lengths_fall(lengths: Any, budget: int) -> None:
    batches = list(pack(lengths, budget))
    for batch, following in itertools.pairwise(batches):
        full = batch.tokens + batch.length > budget
        assert full or (4 * batch.tokens >= budget and following.length < ALIKE * batch.length)


@given(LENGTHS, st.integers(1, 3000))
def test_even_batches_hold_everything_once_and_pad_nothing(lengths: Any, budget: int) -> None:
    batches = list(pack(lengths, budget, even=True))
    assert sorted(int(i) for batch in batches for i in batch.index) == list(range(len(lengths)))
    assert all((lengths[batch.index] == batch.length).all() for batch in batches)
    for batch, following in itertools.pairwise(batches):
        assert batch.tokens + batch.length > budget or following.length < batch.length


@given(LENGTHS.filter(len), st.integers(1, 3000))
def test_padding_is_the_share_of_executed_tokens(lengths: Any, budget: int) -> None:
    batches = list(pack(lengths, budget))
    executed = sum(len(b.index) * b.length for b in batches)
    assert padding(batches, lengths) == pytest.approx(1 - lengths.sum() / executed)
    assert padding([], lengths) == 0


@given(LENGTHS.filter(lambda x: len(x) > 1))
def test_halves_are_the_whole_each_with_its_own_length(lengths: Any) -> None:
    batch = Batch(np.argsort(-lengths, kind="stable"), int(lengths.max()))
    first, second = halve(batch, lengths)
    assert np.concatenate([first.index, second.index]).tolist() == batch.index.tolist()
    assert abs(len(first.index) - len(second.index)) <= 1
    for half in (first, second):
        assert len(half.index) > 0
        assert half.length == lengths[half.index].max()


# --- arithmetic of runs


@given(st.lists(st.integers(0, 9), max_size=30))
def test_offsets_are_running_sums(lengths: list[int]) -> None:
    got = offsets(np.array(lengths, np.int64))
    assert got.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert got.dtype == np.int64


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=30))
def test_ranges_are_the_runs_one_after_the_other(runs: list[tuple[int, int]]) -> None:
    starts = np.array([a for a, _ in runs], np.int64)
    lengths = np.array([n for _, n in runs], np.int64)
    assert ranges(starts, lengths).tolist() == [i for a, n in runs for i in range(a, a + n)]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 12), st.booleans())
def test_cut_sees_each_token_once(lengths: list[int], room: int, window: bool) -> None:
    tokens = Tokens(np.arange(sum(lengths), dtype=np.int32), offsets(np.array(lengths, np.int64)))
    windows = cut(tokens, room, window=window)
    assert (windows.length <= room).all()
    assert sorted(set(windows.text.tolist())) == list(range(len(lengths))), "an empty text has a window too"
    for text, length in enumerate(lengths):
        mine = windows.text == text
        seen = ranges(windows.start[mine], windows.length[mine]).tolist()
        start = int(tokens.starts[text])
        assert seen == list(range(start, start + (length if window else min(length, room))))


# --- against the tokenizer's own output


@cache
def ours() -> Tokenizer:
    return Tokenizer.load(str(tiny.minilm()))


@cache
def theirs() -> Any:
    return AutoTokenizer.from_pretrained(tiny.minilm())


def framed(texts: list[str], room: int, *, window: bool) -> tuple[Any, list[list[int]]]:
    tokens = ours().encode(pa.array(texts, pa.large_string()))
    windows = cut(tokens, room, window=window)
    ids, starts = frame(tokens, windows, ours().single)
    return windows, [ids[a:b].tolist() for a, b in pairwise(starts)]


@quick
@given(TEXTS, st.integers(3, 40))
def test_truncation_equals_the_tokenizer(texts: list[str], limit: int) -> None:
    _, got = framed(texts, limit - 2, window=False)
    assert got == theirs()(texts, truncation=True, max_length=limit)["input_ids"]


@quick
@given(TEXTS, st.integers(3, 40))
def test_windows_equal_the_tokenizer_s_overflow(texts: list[str], limit: int) -> None:
    windows, got = framed(texts, limit - 2, window=True)
    want = theirs()(texts, truncation=True, max_length=limit, stride=0, return_overflowing_tokens=True)
    assert got == want["input_ids"]
    assert windows.text.tolist() == want["overflow_to_sample_mapping"]


@quick
@given(ANY_TEXT, ANY_TEXT.filter(len))
def test_pairs_equal_the_tokenizer(a: str, b: str) -> None:
    from batchnlp.tasks.zero_shot import _pairs

    first, second = (ours().encode(pa.array([x], pa.large_string())) for x in (a, b))
    ids, starts, kinds = _pairs(first.ids, first.starts[:-1], first.lengths, second.ids, second.starts, ours().pair())
    want = theirs()(a, b)
    assert ids.tolist() == want["input_ids"]
    assert kinds.tolist() == want["token_type_ids"]
    assert starts.tolist() == [0, len(ids)]


@quick
@given(st.lists(WORDY.map(" ".join), min_size=1, max_size=3), st.lists(ANY_TEXT, min_size=1, max_size=3))
def test_every_window_meets_every_label(texts: list[str], labels: list[str]) -> None:
    from batchnlp.tasks.zero_shot import _pairs

    a, b = (ours().encode(pa.array(x, pa.large_string())) for x in (texts, labels))
    ids, starts, kinds = _pairs(a.ids, a.starts[:-1], a.lengths, b.ids, b.starts, ours().pair())
    want = theirs()([t for t in texts for _ in labels], labels * len(texts))
    assert [ids[i:j].tolist() for i, j in pairwise(starts)] == want["input_ids"]
    assert kinds.tolist() == [k for row in want["token_type_ids"] for k in row]


def test_truncation_and_padding_of_the_file_are_switched_off() -> None:
    """MiniLM's tokenizer.json truncates to 128 tokens and pads: both would lose or invent tokens in silence."""
    tokens = ours().encode(pa.array(["game " * 1000, "a"], pa.large_string()))
    assert tokens.lengths.tolist() == [1000, 1]


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array([*tiny.texts(20), "", "日本語", *tiny.texts(3)], pa.large_string())
    want = ours().encode(texts)
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    got = ours().encode(texts)
    assert got.ids.tolist() == want.ids.tolist()
    assert got.starts.tolist() == want.starts.tolist()
    sliced = ours().encode(texts.slice(5, 9))
    assert sliced.ids.tolist() == want.ids[want.starts[5] : want.starts[14]].tolist()


def test_a_byte_level_tokenizer_without_type_ids_frames_alike() -> None:
    """RoBERTa's shape: byte-level BPE, <s> a </s></s> b </s>, all type ids zero."""
    from tokenizers import models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2} | {c: i + 3 for i, c in enumerate(alphabet)}
    fast = Fast(models.BPE(vocab=vocab, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    want_one, want_two = fast.encode("né 日").ids, fast.encode("né", "日本").ids
    tokenizer = Tokenizer(fast)
    tokens = tokenizer.encode(pa.array(["né 日"], pa.large_string()))
    ids, _ = frame(tokens, cut(tokens, 100, window=True), tokenizer.single)
    assert ids.tolist() == want_one
    pair, a, b = tokenizer.pair(), *(tokenizer._plain(x).tolist() for x in ("né", "日本"))
    assert [*pair.before, *a, *pair.between, *b, *pair.after] == want_two
    assert (len(pair.between), pair.type_ids) == (2, (0, 0))


def test_a_tokenizer_without_special_tokens_frames_with_nothing() -> None:
    from tokenizers import models, pre_tokenizers

    fast = Fast(models.WordLevel({"[UNK]": 0, "game": 1}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(fast)
    assert tokenizer.single.size == 0
    tokens = tokenizer.encode(pa.array(["game game what", ""], pa.large_string()))
    ids, starts = frame(tokens, cut(tokens, 2, window=True), tokenizer.single)
    assert ids.tolist() == [1, 1, 0]
    assert starts.tolist() == [0, 2, 3, 3]
