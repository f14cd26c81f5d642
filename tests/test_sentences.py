"""Where sentences end, and that nothing between them is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnlp.text.sentences import sentences, windows


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('Dr. Smith said: "Go!" Then he left.', ['Dr. Smith said: "Go!"', "Then he left."]),
        ("In Washington, D.C. on Jan. 5. He went.", ["In Washington, D.C. on Jan. 5.", "He went."]),
        ("J. R. R. Tolkien wrote. So am I. Pi is 3.14.", ["J. R. R. Tolkien wrote.", "So am I.", "Pi is 3.14."]),
        ("e.g. this, z.B. das... and so on.", ["e.g. this, z.B. das... and so on."]),
        ("1. First.\n2. Second", ["1. First.", "2. Second"]),
        ("今天天气很好。我们去公园吧！好吗？", ["今天天气很好。", "我们去公园吧！", "好吗？"]),
        ("「行こう。」彼は言った。", ["「行こう。」", "彼は言った。"]),
        ("a\r\nb\n\n\n  c", ["a", "b", "c"]),
        ("यह एक वाक्य है। दूसरा।", ["यह एक वाक्य है।", "दूसरा।"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert [text[a:b] for a, b in sentences(text)] == parts


@given(st.text(alphabet="aB.!?。 \n\t\u3000\"'1", max_size=80))
def test_between_sentences_is_only_white_space(text: str) -> None:
    at = 0
    for start, end in sentences(text):
        assert not text[at:start].strip()
        assert start < end
        at = end
    assert not text[at:].strip()


@given(st.text(alphabet="ab. \n", min_size=1, max_size=120), st.integers(1, 9))
def test_windows_are_the_whole_text_in_order_and_fit(text: str, room: int) -> None:
    spans = np.array([(i, i + 1) for i in range(len(text))], np.int32)  # a token a character
    found = windows(text, spans, room)
    assert "".join(text[a:b] for a, b in found) == text
    assert all(b - a <= room for a, b in found)


def test_a_window_ends_with_a_sentence_where_one_ends() -> None:
    text = "Aaa bbb ccc. Ddd eee fff ggg"
    spans = np.array([(i, i + 1) for i in range(len(text))], np.int32)
    assert [text[a:b] for a, b in windows(text, spans, 18)] == ["Aaa bbb ccc.", " Ddd eee fff ggg"]
    assert [text[a:b] for a, b in windows(text[13:], spans[:-13], 10)]
