"""A fact at token 5,000 of a document, under a model of 512 tokens, is in the summary; and only because the model read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import needles
import pytest
import tiny
from transformers import AutoTokenizer
from writing import apply

FILLER = " ".join(tiny.texts(170, longest=24, seed=8))


@pytest.fixture(scope="module", params=["t5", "gpt2"])
def model(request: pytest.FixtureRequest, models: Path) -> str:
    """An encoder-decoder, and a language model with a prompt."""
    save: Callable[[Path], str] = getattr(needles, f"save_{request.param}")
    return save(models / f"needle-{request.param}")


def planted(path: str, at: int, place: str) -> str:
    """Some 9,000 tokens of filler, with a place as token `at`."""
    tokenizer = AutoTokenizer.from_pretrained(path, model_max_length=1 << 20)
    spans = tokenizer(FILLER, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert len(spans) > 8_000
    cut = spans[at][0]
    text = f"{FILLER[:cut]}{place}{FILLER[cut:]}"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert abs(ids.index(tokenizer.convert_tokens_to_ids(place)) - at) <= 2
    return text


def test_a_fact_deep_in_a_document_is_in_its_summary(model: str) -> None:
    facts = {
        5_000: "Zanzibar",
        0: "Oslo",
        510: "Oslo",
        511: "Quito",
        512: "Oslo",
        8_000: "Quito",
    }  # about the borders too
    texts = [planted(model, at, place) for at, place in facts.items()]
    rows: list[dict[str, Any]] = apply("summarize", [*texts, FILLER], model, max_new_tokens=8)
    assert [row["summary"] for row in rows] == [*facts.values(), ""]
    assert all(row["n_windows"] > 8_000 / needles.LIMIT and not row["truncated"] for row in rows)
    assert all(row["n_tokens"] == row["n_tokens_used"] for row in rows)


def test_what_was_cut_off_is_not_found_and_the_row_says_so(model: str) -> None:
    early, late = (planted(model, at, "Zanzibar") for at in (100, 5_000))
    for kind in ("summarize", "generate"):
        column = "summary" if kind == "summarize" else "text"
        rows = apply(kind, [early, late], model, max_new_tokens=8, on_long="truncate")
        assert [row[column] for row in rows] == ["Zanzibar", ""]
        assert [row["truncated"] for row in rows] == [True, True]
