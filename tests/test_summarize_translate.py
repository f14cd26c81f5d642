"""summarize and translate: rounds and sentences, against `model.generate` called by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_writers
from writing import LONG, TEXTS, Corpus, apply, length, loaded, spec, written

import batchnlp
from batchnlp.errors import SpecError
from batchnlp.text.sentences import windows

# --- summarize


def test_summarize_is_the_model_on_what_fits(bart: str, t5: str, llama: str, gpt2: str) -> None:
    chat = loaded(llama)[0].apply_chat_template(
        [{"role": "user", "content": f"Sum up: {TEXTS[0]}"}], tokenize=False, add_generation_prompt=True
    )
    want = {
        bart: written(bart, TEXTS[0], 6),
        t5: written(t5, "summarize: " + TEXTS[0], 6),
        gpt2: written(gpt2, TEXTS[0] + "\n\nTL;DR:", 6),
    }
    for path, summary in want.items():
        assert apply("summarize", TEXTS[:1], path, max_new_tokens=6)[0]["summary"] == summary.strip()
    got = apply("summarize", TEXTS[:1], llama, max_new_tokens=6, prompt="Sum up: {{ text }}")[0]
    assert got["summary"] == written(llama, chat, 6, special=False).strip()


def test_a_long_document_is_summarized_by_map_and_reduce(bart: str) -> None:
    """By hand: the windows' summaries, joined, are summarized again."""
    row, short = apply("summarize", [LONG, "short"], bart, max_new_tokens=8)
    assert row["n_windows"] > 2
    assert row["n_tokens"] == row["n_tokens_used"] == length(bart, LONG)
    assert row["n_new_tokens"] <= 8
    assert short["summary"] == written(bart, "short", 8).strip()
    tokenizer = loaded(bart)[0]
    spans = np.array(tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True).offset_mapping, np.int32)
    parts = [LONG[a:b] for a, b in windows(LONG, spans, tiny_writers.POSITIONS - 2)]
    joined = "\n".join(s for part in parts if (s := written(bart, part, 8).strip()))
    assert length(bart, joined) <= tiny_writers.POSITIONS - 2, "one more round is enough here"
    assert row["summary"] == written(bart, joined, 8).strip()


def test_rounds_are_bounded_and_what_is_left_out_is_told(bart: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchnlp.tasks.summarize.ROUNDS", 2)
    row = apply("summarize", [LONG], bart, max_new_tokens=40, min_new_tokens=40)[0]
    assert row["error"] is None
    assert row["truncated"]
    assert row["n_tokens_used"] < row["n_tokens"]
    cut = apply("summarize", [LONG], bart, max_new_tokens=8, on_long="truncate")[0]
    assert (cut["n_windows"], cut["truncated"]) == (1, True)
    assert apply("summarize", [LONG], bart, on_long="fail")[0]["error"].startswith("too_long")


# --- translate

PARAGRAPHS = "The game server.  A small tool!\n\n\tFast (and secure)?\r\n\r\nthe end\n"


@pytest.mark.parametrize("name", ["bart", "t5", "coded"])
def test_translate_goes_by_sentence_and_keeps_the_white_space(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    wish: dict[str, Any] = {"coded": {"source_language": "fra_Latn", "target_language": "deu_Latn"},
            "t5": {"source_language": "en", "target_language": "German"}}.get(name, {})  # fmt: skip
    row = apply("translate", [PARAGRAPHS], path, max_new_tokens=6, **wish)[0]
    parts = ["The game server.", "A small tool!", "Fast (and secure)?", "the end"]

    def one(part: str) -> str:
        if name != "coded":
            return written(path, ("translate English to German: " if name == "t5" else "") + part, 6).strip()
        tokenizer = loaded(path)[0]
        target = tokenizer.convert_tokens_to_ids("deu_Latn")
        return written(path, f"fra_Latn{part}</s>", 6, special=False, forced_bos_token_id=target).strip()

    want = PARAGRAPHS
    for part in parts:
        want = want.replace(part, one(part), 1)
    assert row["translation"] == want
    assert (row["n_windows"], row["truncated"]) == (4, False)
    assert row["n_tokens"] == sum(length(path, part) for part in parts)


def test_a_sentence_over_the_limit_is_cut_cut_off_or_fails(coded: str) -> None:
    long = "word " * 150 + "end. Short one."
    wish = {"source_language": "eng_Latn", "target_language": "deu_Latn", "max_new_tokens": 4}
    row = apply("translate", [long, "Short one."], coded, **wish)[0]
    assert (row["truncated"], row["error"]) == (False, None)
    assert row["n_windows"] > 3
    cut = apply("translate", [long], coded, on_long="truncate", **wish)[0]
    assert (cut["truncated"], cut["n_windows"]) == (True, 2)
    failed = apply("translate", [long, "Short one."], coded, on_long="fail", **wish)
    assert failed[0]["error"].startswith("too_long")
    assert failed[1]["translation"] is not None


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "task.source_language is needed: .* knows many languages"),
        ({"source_language": "eng_Latn"}, "task.target_language is needed"),
        ({"source_language": "eng_latn", "target_language": "deu_Latn"}, r"'eng_latn' \(did you mean eng_Latn\?\)"),
        ({"source_language": "eng_Latn", "target_language": "de"}, r"'de' \(did you mean deu_Latn\?\)"),
    ],
)
def test_language_codes_that_the_model_does_not_know(coded: str, wish: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        apply("translate", ["x"], coded, **wish)


def test_languages_in_words_and_languages_that_mean_nothing(t5: str, bart: str) -> None:
    with pytest.raises(SpecError, match=r"task\.source_language is needed: the model is told of languages in words"):
        apply("translate", ["x"], t5)
    with pytest.raises(SpecError, match=r"'germn' is no language known here \(did you mean german\?\)"):
        apply("translate", ["x"], t5, source_language="en", target_language="germn")
    with pytest.raises(SpecError, match=r"task\.target_language means nothing to "):
        apply("translate", ["x"], bart, target_language="de")


# --- a whole run


def test_a_run_gives_what_apply_gives_whatever_the_shards(corpus: Corpus, bart: str, tmp_path: Path) -> None:
    texts = [*tiny.texts(11), None]
    texts[0], texts[4] = LONG, f"{LONG} And more."  # in one shard, and in two: the second round is seeded by row too
    texts.insert(1, "small")
    job = spec(corpus(texts), bart, tmp_path, kind="summarize", max_new_tokens=8, sample=True)
    tree = job.model_dump()
    tree["source"] |= {"rows_per_shard": 3, "id": "doc_id"}
    tree["limits"]["max_failed"] = 1
    result = batchnlp.run(tree)
    assert (result.rows, result.dead, result.status) == (13, 1, "done")
    parts = {p.name: pq.read_table(p) for p in (tmp_path / "out").glob("part-*.parquet")}
    got = {row["id"]: row for part in parts.values() for row in part.to_pylist()}
    tree["source"]["rows_per_shard"] = None
    tree["output"]["path"] = str(tmp_path / "again")
    batchnlp.run(tree)
    again = [row for p in (tmp_path / "again").glob("part-*.parquet") for row in pq.read_table(p).to_pylist()]
    assert {row["id"]: row for row in again} == got
    assert got["doc-000"]["n_windows"] > 2
