"""Where tokens are in their texts: whole characters in every script, whatever the tokenizer's habits; overlapping windows."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import regex
import tiny
import tiny_readers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from batchnlp.text import encode as module
from batchnlp.text.encode import Tokenizer, Tokens, cut, frame, offsets, ranges
from batchnlp.text.surface import surfaces

quick = settings(max_examples=60, deadline=None)
CLUSTERS = [
    *"aé\u0301\u0302 👨👩🏽🇩🇪🇫한각\u05e9\u05b0\n\t日©İﬁ\u00a0x",
    "👨\u200d👩",
    "❤\ufe0f",
    "ᄀ\u1161\u11a8",
    "\u0e01\u0e33",
    "ﾊﾞ",
    "i\u0307",
]
SIGNS = st.lists(st.sampled_from(CLUSTERS), max_size=30).map("".join)
WORDS = st.lists(st.sampled_from([*tiny.WORDS, *tiny_readers.SCRIPTS]), max_size=12).map(" ".join)
TEXTS = st.lists(st.one_of(SIGNS, WORDS), min_size=1, max_size=5)


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind == "wordpiece":
        return Tokenizer.load(str(tiny.minilm()))
    return Tokenizer({"bytes": tiny_readers._bytes, "unigram": tiny_readers._unigram}[kind]())


def whole(text: str, start: int, end: int) -> tuple[int, int]:
    """The run without white space around it, widened to grapheme clusters; conjuncts (after a virama) may be parted."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    parts = r"\X", r"(?<=\u094d)(?=\p{Lo})"
    borders = [*(found.start() for part in parts for found in regex.finditer(part, text)), len(text)]
    return max(b for b in borders if b <= start), min(b for b in borders if b >= end)


@pytest.mark.parametrize("kind", tiny_readers.KINDS)
@quick
@given(texts=TEXTS)
def test_places_are_whole_characters_without_the_space_around(kind: str, texts: list[str]) -> None:
    t = tokenizer(kind)
    got = t.encode(pa.array(texts, pa.large_string()), places=True)
    assert got.places is not None
    assert got.ids.tolist() == t.encode(pa.array(texts, pa.large_string())).ids.tolist()
    for i, text in enumerate(texts):
        raw = t.fast.encode(text, add_special_tokens=False).offsets
        mine = slice(int(got.starts[i]), int(got.starts[i + 1]))
        starts, ends = got.places.start[mine].tolist(), got.places.end[mine].tolist()
        assert len(raw) == len(starts)
        for (a, b), start, end in zip(raw, starts, ends, strict=True):
            if text[a:b].strip():
                assert (start, end) == whole(text, a, b), (text, text[a:b])
            else:
                assert start >= end, "white space alone is nowhere"


def test_blocks_and_neighbours_change_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = pa.array([" a ", "\u0301x", "", "🇩", "🇪 b", *tiny_readers.SCRIPTS], pa.large_string())
    want = tokenizer("bytes").encode(texts, places=True).places
    for block in (1, 40):
        monkeypatch.setattr(module, "BLOCK_BYTES", block)
        got = tokenizer("bytes").encode(texts, places=True).places
        assert got is not None
        assert want is not None
        for name in ("start", "end", "word"):
            assert getattr(got, name).tolist() == getattr(want, name).tolist()


@given(TEXTS, st.data())
def test_surfaces_are_python_s_slices(texts: list[str], data: Any) -> None:
    runs = []
    for row, text in enumerate(texts):
        for _ in range(data.draw(st.integers(0, 3))):
            start = data.draw(st.integers(0, len(text)))
            runs.append((row, start, data.draw(st.integers(start, len(text)))))
    columns = [np.array([run[i] for run in runs], np.int32) for i in range(3)]
    padded = pa.array(["日本", None, *texts, None], pa.large_string()).slice(2, len(texts))
    assert surfaces(padded, *columns).to_pylist() == [texts[row][a:b] for row, a, b in runs]


def test_surfaces_of_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchnlp.text import surface

    monkeypatch.setattr(surface, "BLOCK_BYTES", 10)
    texts = [*tiny_readers.SCRIPTS, None, *tiny_readers.SCRIPTS]
    row = np.array([i for i, text in enumerate(texts) if text for _ in range(2)], np.int32)
    start = np.zeros(len(row), np.int32)
    end = np.array([min(i % 2 * 5 + 1, len(texts[r] or "")) for i, r in enumerate(row)], np.int32)
    want = [(texts[r] or "")[:b] for r, b in zip(row, end, strict=True)]
    assert surfaces(pa.array(texts, pa.large_string()), row, start, end).to_pylist() == want


# --- overlapping windows


@given(st.lists(st.integers(0, 60), max_size=12), st.integers(1, 20), st.data())
def test_every_token_has_the_window_that_shows_most_around_it(lengths: list[int], room: int, data: Any) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    tokens = Tokens(np.arange(sum(lengths), dtype=np.int32), offsets(np.array(lengths, np.int64)))
    w = cut(tokens, room, window=True, overlap=overlap)
    assert (w.length <= room).all()
    assert ranges(w.start + w.skip, w.own).tolist() == list(range(sum(lengths))), "each once, in order"
    for start, length, skip, own, text in zip(w.start, w.length, w.skip, w.own, w.text, strict=True):
        for token in range(start + skip, start + skip + own):
            mine = context(token, start, length, tokens, text)
            others = [
                context(token, s, n, tokens, text)
                for s, n, t in zip(w.start, w.length, w.text, strict=True)
                if t == text and s <= token < s + n
            ]
            assert mine >= max(others) - (overlap >= room / 2) * room, (token, mine, others)


def context(token: int, start: int, length: int, tokens: Tokens, text: int) -> int:
    """Tokens to the nearer border of the window that is not the text's own."""
    first, last = int(tokens.starts[text]), int(tokens.starts[text + 1])
    left = token - start if start > first else 1 << 30
    right = start + length - 1 - token if start + length < last else 1 << 30
    return min(left, right)


@quick
@given(TEXTS, st.integers(6, 40))
def test_overlapping_windows_equal_the_tokenizer_s_stride(texts: list[str], limit: int) -> None:
    room = limit - 2
    tokens = tokenizer("wordpiece").encode(pa.array(texts, pa.large_string()))
    windows = cut(tokens, room, window=True, overlap=room // 4)
    ids, starts = frame(tokens, windows, tokenizer("wordpiece").single)
    theirs = AutoTokenizer.from_pretrained(tiny.minilm())
    want = theirs(texts, truncation=True, max_length=limit, stride=room // 4, return_overflowing_tokens=True)
    assert [ids[a:b].tolist() for a, b in pairwise(starts)] == want["input_ids"]
    assert windows.text.tolist() == want["overflow_to_sample_mapping"]


def test_room_and_overlap_may_differ_from_text_to_text() -> None:
    tokens = Tokens(np.arange(30, dtype=np.int32), np.array([0, 10, 30], np.int64))
    w = cut(tokens, np.array([4, 8]), window=True, overlap=np.array([1, 2]))
    assert [(t, s, n) for t, s, n in zip(w.text, w.start, w.length, strict=True)] == [
        (0, 0, 4), (0, 3, 4), (0, 6, 4), (1, 10, 8), (1, 16, 8), (1, 22, 8),
    ]  # fmt: skip
    assert w.own.tolist() == [3, 3, 4, 7, 6, 7]
