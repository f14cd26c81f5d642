"""qa gives what the model gives when it is asked about one window at a time, and says where there is no answer."""

from __future__ import annotations

import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_readers
import torch
from conftest import Corpus
from test_places import whole
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import batchnlp
from batchnlp.engine.estimate import estimate
from batchnlp.engine.planner import prepare
from batchnlp.errors import ModelError, SourceError, SpecError
from batchnlp.job.load import build_spec
from batchnlp.tasks.qa import MAX_ANSWER, best_end

ENGINE = {"device": "cpu", "dtype": "float32", "tokens_per_batch": 300}
LIMIT = 96
QUESTION = "which package plays music?"
LONG = " ".join(tiny.texts(12, seed=3))
FILLER = "the data of a game "  # five tokens


@pytest.fixture(scope="module", params=tiny_readers.KINDS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random reader with each kind of tokenizer."""
    path = tmp_path_factory.mktemp("reader") / request.param
    return tiny_readers.save_reader(path, labels=None, kind=request.param, limit=LIMIT)


@pytest.fixture(scope="module")
def random_reader(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_readers.save_reader(tmp_path_factory.mktemp("qa"), labels=None, limit=LIMIT)


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_readers.save_spotter(tmp_path_factory.mktemp("spotter"), answers=True)


def apply(data: Any, model: str, **task: Any) -> pa.Table:
    return batchnlp.apply("qa", data, model=model, engine=ENGINE, **({"question": QUESTION} | task))


# --- the reference


@cache
def loaded(path: str) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(path), AutoModelForQuestionAnswering.from_pretrained(path).eval()


class Answer(NamedTuple):
    start: int
    end: int
    score: float
    none: float


def plain(path: str, text: str) -> list[int]:
    return list(loaded(path)[0](text, add_special_tokens=False, truncation=False)["input_ids"])


def probabilities(path: str, question: str, run: list[int]) -> np.ndarray:
    """[1 + tokens, 2] of the first token and a window's: the softmax of the pipeline that transformers once had."""
    tokenizer, model = loaded(path)
    asked = plain(path, question)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    between = [sep] if tokenizer.cls_token == "[CLS]" else [sep, sep]
    ids = torch.tensor([[cls, *asked, *between, *run, sep]])
    kinds = torch.zeros_like(ids)
    first = 1 + len(asked) + len(between)
    kinds[0, first:] = 1 if between == [sep] else 0
    with torch.inference_mode():
        out = model(input_ids=ids, token_type_ids=kinds)
    logits = torch.stack([out.start_logits[0], out.end_logits[0]], -1)
    return logits[[0, *range(first, first + len(run))]].softmax(0).numpy()


def expected(path: str, question: str, text: str, limit: int = LIMIT) -> Answer:
    """Every span of every window, one by one; a span counts where its first token is farthest from the window's borders."""
    tokenizer, _ = loaded(path)
    found = tokenizer(text, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
    ids, places = found["input_ids"], found["offset_mapping"]
    room = limit - (3 if tokenizer.cls_token == "[CLS]" else 4) - len(plain(path, question))
    starts = range(0, max(len(ids) - room // 4, 1), room - room // 4)
    none, best = 1.0, Answer(0, 0, -1.0, 0.0)
    for start, after in pairwise([*starts, None]):
        assert start is not None
        run = ids[start : start + room]
        p = probabilities(path, question, run)
        none = min(none, float(p[0, 0] * p[0, 1]))
        first = start + (room // 4) // 2 if start else 0
        stop = len(ids) if after is None else after + (room // 4) // 2
        for i in range(first, stop):
            for j in range(i, min(i + MAX_ANSWER, start + len(run))):
                score = float(p[1 + i - start, 0] * p[1 + j - start, 1])
                blank = not text[slice(*places[i])].strip() or not text[slice(*places[j])].strip()
                if score > best.score and not blank:
                    best = Answer(*whole(text, places[i][0], places[j][1]), score, 0.0)
    return best._replace(none=none)


def assert_equal(row: dict[str, Any], want: Answer, text: str) -> None:
    assert row["score"] == pytest.approx(want.score, abs=1e-5)
    assert row["no_answer_score"] == pytest.approx(want.none, abs=1e-5)
    if want.score > want.none:
        assert (row["start"], row["end"]) == (want.start, want.end), text
        assert row["answer"] == text[want.start : want.end]
    else:
        assert row["answer"] is row["start"] is row["end"] is None


# --- equality


def test_answers_are_the_model_s_on_one_document_at_a_time(reader: str) -> None:
    texts = [*tiny_readers.SCRIPTS, *tiny.texts(30, longest=12)]
    rows = apply(texts, reader).to_pylist()
    for text, row in zip(texts, rows, strict=True):
        assert_equal(row, expected(reader, QUESTION, text), text)
    assert len({row["answer"] for row in rows} - {None}) > 10, "they must differ, else nothing is proven"


@pytest.mark.parametrize("limit", [40, 61, LIMIT])
def test_long_documents_are_read_in_windows(reader: str, limit: int) -> None:
    texts = [LONG, " ".join(tiny_readers.SCRIPTS), "short", LONG[:300], LONG[200:]]
    if len(plain(reader, QUESTION)) > limit - 14:
        pytest.skip("the question leaves no room")
    got = apply(texts, reader, max_length=limit)
    for text, row in zip(texts, got.to_pylist(), strict=True):
        assert_equal(row, expected(reader, QUESTION, text, limit), text)
    lengths = [len(plain(reader, text)) for text in texts]
    assert got["n_tokens"].to_pylist() == got["n_tokens_used"].to_pylist() == lengths, "the question does not count"
    assert max(got["n_windows"].to_pylist()) > 2


def test_a_question_for_each_row(random_reader: str) -> None:
    texts = [*tiny.texts(20, longest=30), LONG]
    questions = [f"{text} ?" for text in tiny.texts(21, longest=12, seed=8)]
    table = pa.table({"text": texts, "ask": questions, "other": range(21)})
    got = apply(table, random_reader, question=None, question_column="ask")
    assert got.column_names[:3] == ["text", "ask", "other"]
    for text, question, row in zip(texts, questions, got.to_pylist(), strict=True):
        assert_equal(row, expected(random_reader, question, text), text)
    room = [LIMIT - 3 - len(plain(random_reader, q)) for q in questions]
    lengths = [len(plain(random_reader, text)) for text in texts]
    assert got["n_tokens"].to_pylist() == lengths
    windows = [max(-(-(n - r // 4) // (r - r // 4)), 1) for n, r in zip(lengths, room, strict=True)]
    assert got["n_windows"].to_pylist() == windows


def test_an_answer_may_have_thirty_tokens_and_ends_in_its_window() -> None:
    end = np.full(50, -9.0, np.float32)
    end[[3, 29, 30, 45]] = [-5, -2, -1, 0]
    best, more = best_end(end, np.r_[np.arange(48, 0, -1), 2, 1])
    assert (best[0], more[0]) == (-2, 29)
    assert (best[1], more[1]) == (-1, 29)
    assert (best[46], more[46]) == (-9, 0)
    best, more = best_end(end[:6], np.array([3, 2, 1, 3, 2, 1]))
    assert more.tolist() == [0, 0, 0, 0, 0, 0]


# --- needles


def document(before: int, after: int) -> tuple[str, int]:
    """(a text with the name after so many tokens, and where it is)."""
    words = (FILLER * (before // 5 + 1)).split()[:before]
    head = " ".join([*words, ""])
    return f"{head}{tiny_readers.NAME} {' '.join((FILLER * (after // 5 + 1)).split()[:after])}", len(head)


def test_an_answer_is_found_whole_wherever_a_border_falls(spotter: str) -> None:
    """Room 57 beside the question, so that a window begins every 43 tokens."""
    texts, places = zip(*(document(before, 60) for before in range(180)), strict=True)
    got = apply(list(texts), spotter, question="who?", max_length=62)
    assert min(got["n_windows"].to_pylist()) > 1
    for start, row in zip(places, got.to_pylist(), strict=True):
        assert (row["answer"], row["start"]) == (tiny_readers.NAME, start)
        assert row["score"] > 0.99
        assert row["no_answer_score"] < 0.01


def test_an_answer_deep_in_a_long_document_is_found(spotter: str) -> None:
    """Room 507, a window every 381 tokens: the fourteenth begins at token 4,953, and owns from 5,016 on."""
    cases = [document(before, 3000) for before in (4950, 4951, 4952, 4953, 5000, *range(5010, 5018), 5459, 5460)]
    got = apply([text for text, _ in cases], spotter, question="who?")
    for (_, start), row in zip(cases, got.to_pylist(), strict=True):
        assert (row["answer"], row["start"], row["end"]) == (tiny_readers.NAME, start, start + len(tiny_readers.NAME))


def test_no_answer_is_a_result(spotter: str) -> None:
    texts = ["the data of a game", document(3, 3)[0], FILLER * 60]
    got = apply(texts, spotter, question="who?")
    assert got["error"].to_pylist() == [None] * 3
    assert got["answer"].to_pylist() == [None, tiny_readers.NAME, None]
    assert got["start"].to_pylist() == [None, 12, None]
    assert got["end"].to_pylist() == [None, 29, None]
    assert [round(score, 2) for score in got["score"].to_pylist()] == [0, 1, 0]
    assert [round(score, 2) for score in got["no_answer_score"].to_pylist()] == [1, 0, 1]


def test_truncate_and_fail(spotter: str) -> None:
    texts = [document(100, 10)[0], document(3, 3)[0]]
    cut = apply(texts, spotter, question="who?", max_length=64, on_long="truncate")
    assert cut["answer"].to_pylist() == [None, tiny_readers.NAME]
    assert cut["n_tokens"].to_pylist() == [114, 10]
    assert cut["n_tokens_used"].to_pylist() == [59, 10]
    assert cut["truncated"].to_pylist() == [True, False]
    failed = apply(texts, spotter, question="who?", max_length=64, on_long="fail")
    assert failed["error"].to_pylist() == ["too_long: 114 tokens, the model takes 59", None]


def test_fail_goes_by_the_room_beside_the_row_s_own_question(spotter: str) -> None:
    table = pa.table({"text": ["game " * 50] * 2, "question": ["who?", "who of the game of the data and more?"]})
    got = apply(table, spotter, question=None, question_column="question", max_length=60, on_long="fail")
    assert got["error"].to_pylist() == [None, "too_long: 50 tokens, the model takes 47"]


# --- what corpora hold


def test_rows_without_a_question_are_dead_letters(random_reader: str) -> None:
    asked = ["which?", None, "", " \t", "\x00", "music " * 200, "which?", None]
    text = ["a music game"] * 6 + [None, ""]
    got = apply(pa.table({"text": text, "q": asked}), random_reader, question=None, question_column="q")
    codes = [error and error.split(":")[0] for error in got["error"].to_pylist()]
    assert codes == [None, *["no_question"] * 4, "question_too_long", "null_text", "empty_text"]
    assert got["error"].to_pylist()[5] == "question_too_long: the question has 200 tokens, the model takes 96"
    assert_equal(got.to_pylist()[0], expected(random_reader, "which?", "a music game"), "a music game")
    none = pa.table({"text": ["a"], "q": pa.nulls(1, pa.string())})
    assert apply(none, random_reader, question=None, question_column="q")["answer"].to_pylist() == [None]


def test_odd_documents_keep_their_rows_and_say_why(random_reader: str) -> None:
    from test_tasks import ODD

    got = apply([text for text, _ in ODD], random_reader).to_pylist()
    for (text, code), row in zip(ODD, got, strict=True):
        assert row["error"] is None if code is None else row["error"].startswith(f"{code}: "), text
        assert (row["score"] is None) == (code is not None)
        if code is None:
            assert_equal(row, expected(random_reader, QUESTION, text), text)
    assert len(apply([], random_reader)) == 0
    assert apply([None, ""], random_reader)["answer"].to_pylist() == [None, None]


def test_nan_is_a_dead_letter_and_stays_alone(spotter: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(spotter, tmp_path / "model"))
    weights = load_file(path / "model.safetensors")
    poison = AutoTokenizer.from_pretrained(spotter)("terrible", add_special_tokens=False)["input_ids"][0]
    weights["bert.embeddings.word_embeddings.weight"][poison] = float("nan")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    texts = [document(3, 3)[0], "terrible", f"{FILLER * 30} terrible", document(9, 3)[0]]
    got = apply(texts, str(path), question="who?", max_length=64)
    assert [e and e.split(":")[0] for e in got["error"].to_pylist()] == [None, "non_finite", "non_finite", None]
    assert got["answer"].to_pylist() == [tiny_readers.NAME, None, None, tiny_readers.NAME]


# --- jobs


def job(corpus: Path, model: str, out: Path, **task: Any) -> Any:
    tree = {"source": {"path": str(corpus), "id": "doc_id"}, "task": {"kind": "qa", "model": model, **task},
            "engine": {"runner": "inline", **ENGINE}, "output": {"path": str(out)}}  # fmt: skip
    return build_spec(tree)


def test_a_run_gives_what_apply_gives(corpus: Corpus, random_reader: str, tmp_path: Path) -> None:
    texts = [*tiny.texts(12), LONG, *tiny_readers.SCRIPTS, None]
    spec = job(corpus(texts), random_reader, tmp_path / "out", question_column="lang").model_dump()
    spec["limits"]["max_failed"] = "50%"
    result = batchnlp.run(spec)
    langs = [("en", "de", None)[i % 3] for i in range(len(texts))]
    want = apply(pa.table({"text": texts, "q": langs}), random_reader, question=None, question_column="q")
    good = [row for row in want.to_pylist() if row["error"] is None]
    assert result.codes == {"no_question": sum(lang is None for lang in langs[:-1]), "null_text": 1}
    rows = [r for p in sorted((tmp_path / "out").glob("part-*")) for r in pq.read_table(p).to_pylist()]
    assert list(rows[0]) == ["id", "answer", "start", "end", "score", "no_answer_score", "n_tokens", "n_tokens_used",
                             "n_windows", "truncated"]  # fmt: skip
    for row, other in zip(rows, good, strict=True):
        assert (row["answer"], row["start"], row["end"]) == (other["answer"], other["start"], other["end"])
        assert row["score"] == pytest.approx(other["score"], abs=1e-5)


def test_plan_measures(corpus: Corpus, random_reader: str, tmp_path: Path) -> None:
    found = estimate(prepare(job(corpus(), random_reader, tmp_path / "out", question_column="lang")), probe=True)
    assert found.docs_per_second
    assert found.dead == {"no_question": 8}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({}, r"task\.question is needed for qa, or task\.question_column for a question in each row"),
        (
            {"question": "x", "question_column": "y"},
            r"task\.question and task\.question_column are both given; leave one",
        ),
        ({"question": "  "}, r"task\.question is blank; ask something"),
        ({"question": "x", "aggregation": "max"}, r"task\.aggregation belongs to ner, not to qa"),
        ({"question": "x", "labels": "a,b"}, r"task\.labels belongs to zero-shot, not to qa"),
    ],
)
def test_wishes_that_cannot_be_are_refused(random_reader: str, task: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        batchnlp.apply("qa", ["x"], model=random_reader, **task)


def test_a_question_belongs_to_qa(classifier: str) -> None:
    with pytest.raises(SpecError, match=r"task\.question belongs to qa, not to classify"):
        batchnlp.apply("classify", ["x"], model=classifier, question="x")


def test_what_is_refused_by_the_plan(corpus: Corpus, classifier: str, random_reader: str, tmp_path: Path) -> None:
    folder, out = corpus(), tmp_path / "out"
    with pytest.raises(ModelError, match=r"has no question answering head .*deepset/roberta-base-squad2"):
        prepare(job(folder, classifier, out, question="x"))
    with pytest.raises(
        SpecError, match=r"task\.question has 90 tokens, which leaves 3 of 96 for the document \(shorten"
    ):
        prepare(job(folder, random_reader, out, question="music " * 90))
    with pytest.raises(SpecError, match=r"the tokenizer finds nothing in task\.question"):
        prepare(job(folder, random_reader, out, question="\x00"))
    with pytest.raises(SourceError, match=r"has no column lan, only .*did you mean lang|did you mean lang"):
        prepare(job(folder, random_reader, out, question_column="lan"))
    pq.write_table(pa.table({"text": ["a"], "doc_id": ["1"], "q": [7]}), tmp_path / "numbers.parquet")
    with pytest.raises(SourceError, match=r"the question column q is int64, not text \(choose another"):
        prepare(job(tmp_path / "numbers.parquet", random_reader, out, question_column="q"))
    with pytest.raises(SourceError, match="did you mean lang"):
        apply(pa.table({"text": ["a"], "lang": ["x"]}), random_reader, question=None, question_column="lan")
    with pytest.raises(SourceError, match="the question column q is list"):
        apply(pa.table({"text": ["a"], "q": [["x"]]}), random_reader, question=None, question_column="q")
