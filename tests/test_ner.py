"""ner gives what transformers' own pipeline gives, whole over windows, with places that hold in every script."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_readers
import torch
from conftest import Corpus
from test_backend import WORD, Poison, hooked
from test_places import whole
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

import batchnlp
from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.engine.estimate import estimate
from batchnlp.engine.planner import make_plan, prepare
from batchnlp.errors import ModelError, SpecError
from batchnlp.job.load import build_spec
from batchnlp.job.task import TaskSpec
from batchnlp.tasks.label_schemes import LabelScheme
from batchnlp.tasks.ner import Ner
from batchnlp.tasks.passages import best_of_runs
from batchnlp.types import Docs, Pieces, Resolved

ENGINE = {"device": "cpu", "dtype": "float32", "tokens_per_batch": 300}
AGGREGATIONS = ("simple", "first", "average", "max")
LIMIT = 96
BIOES = ["O", *(f"{part}-{kind}" for kind in ("PER", "LOC") for part in "BIES")]
LONG = " ".join(tiny.texts(12, seed=3))
Entity = tuple[str, int, int, float]


@pytest.fixture(scope="module", params=tiny_readers.KINDS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random token classifier with each kind of tokenizer."""
    return tiny_readers.save_reader(tmp_path_factory.mktemp("reader") / request.param, kind=request.param, limit=LIMIT)


@pytest.fixture(scope="module")
def bio(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_readers.save_reader(tmp_path_factory.mktemp("bio"))


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_readers.save_spotter(tmp_path_factory.mktemp("spotter"))


def apply(data: Any, model: str, **task: Any) -> pa.Table:
    return batchnlp.apply("ner", data, model=model, engine=ENGINE, **task)


def entities(table: pa.Table) -> list[list[dict[str, Any]]]:
    return list(table["entities"].to_pylist())


def assert_equal(got: list[dict[str, Any]], want: list[Entity], text: str) -> None:
    assert [(e["label"], e["start"], e["end"]) for e in got] == [w[:3] for w in want], text
    assert [e["text"] for e in got] == [text[w[1] : w[2]] for w in want]
    np.testing.assert_allclose([e["score"] for e in got], [w[3] for w in want], atol=1e-5)


@cache
def theirs(path: str, aggregation: str) -> Any:
    return pipeline("token-classification", path, tokenizer=path, aggregation_strategy=aggregation, device="cpu")  # type: ignore[call-overload]


def grouped(found: list[dict[str, Any]], text: str) -> list[Entity]:
    """The pipeline's entities with our borders, which are whole characters and no white space."""
    out = []
    for entity in found:
        start, end = whole(text, entity["start"], entity["end"])
        if text[entity["start"] : entity["end"]].strip():
            out.append((entity["entity_group"], start, end, float(entity["score"])))
    return out


def expected(path: str, text: str, aggregation: str) -> list[Entity]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of tokenizers without ##
        return grouped(theirs(path, aggregation)(text), text)


# --- one window


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_entities_are_those_of_the_pipeline(reader: str, aggregation: str) -> None:
    texts = [*tiny_readers.SCRIPTS, *tiny.texts(40, longest=12)]
    got = apply(texts, reader, aggregation=aggregation)
    assert got["n_windows"].to_pylist() == [1] * len(texts)
    lengths = []
    for text, row in zip(texts, entities(got), strict=True):
        assert_equal(row, expected(reader, text, aggregation), text)
        lengths += [e["text"].count(" ") for e in row]
    assert len(lengths) > 50, "there must be entities, else nothing is proven"
    assert max(lengths) > 0, "and some of several words"


def test_the_four_aggregations_differ(bio: str) -> None:
    texts = [f"{text} transmogrification of kernelspace" for text in tiny.texts(20, longest=9)]
    found = {json.dumps(entities(apply(texts, bio, aggregation=how))) for how in AGGREGATIONS}
    assert len(found) == 4


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_surfaces_are_slices_of_the_text_and_whole(reader: str, aggregation: str) -> None:
    texts = [*tiny_readers.SCRIPTS, " ".join(tiny_readers.SCRIPTS), *(f"\n {t} " for t in tiny_readers.SCRIPTS)]
    for text, row in zip(texts, entities(apply(texts, reader, aggregation=aggregation)), strict=True):
        for entity in row:
            surface = text[entity["start"] : entity["end"]]
            assert entity["text"] == surface
            assert surface == surface.strip() != ""
            assert (entity["start"], entity["end"]) == whole(text, entity["start"], entity["end"])


def test_scores_are_the_model_s_on_one_document_at_a_time(bio: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bio)
    model = AutoModelForTokenClassification.from_pretrained(bio).eval()
    texts = tiny.texts(30)
    for text, row in zip(texts, entities(apply(texts, bio)), strict=True):
        with torch.inference_mode():
            inputs = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
            places = inputs.pop("offset_mapping")[0].tolist()
            best = model(**inputs).logits[0].softmax(-1).max(-1).values.tolist()
        for entity in row:
            own = [p for (a, b), p in zip(places, best, strict=True) if entity["start"] <= a < b <= entity["end"]]
            assert entity["score"] == pytest.approx(np.mean(own), abs=1e-5)


# --- windows


def stitched(path: str, text: str, limit: int, aggregation: str) -> list[Entity]:
    """Each token as the window sees it in which it is farthest from a border, each window alone; then the pipeline's own
    way from tokens to entities."""
    pipe = theirs(path, aggregation)
    tokenizer, model = pipe.tokenizer, pipe.model
    plain = tokenizer(text, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
    ids, places = plain["input_ids"], plain["offset_mapping"]
    room = limit - 2
    step, scores, context = room - room // 4, [None] * len(ids), [-1] * len(ids)
    for start in range(0, max(len(ids) - room // 4, 1), step):
        run = ids[start : start + room]
        framed = torch.tensor([[tokenizer.cls_token_id, *run, tokenizer.sep_token_id]])
        with torch.inference_mode():
            answer = model(input_ids=framed).logits[0, 1:-1].softmax(-1).numpy()
        for i in range(len(run)):
            left = i if start else len(ids)
            right = len(run) - 1 - i if start + len(run) < len(ids) else len(ids)
            if min(left, right) >= context[start + i]:
                scores[start + i], context[start + i] = answer[i], min(left, right)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mask = np.zeros(len(ids))
        found = pipe.gather_pre_entities(
            text, np.array(ids), scores, np.array(places), mask, pipe_strategy(aggregation)
        )
        return grouped([e for e in pipe.aggregate(found, pipe_strategy(aggregation)) if e["entity_group"] != "O"], text)


def pipe_strategy(name: str) -> Any:
    from transformers.pipelines.token_classification import AggregationStrategy

    return AggregationStrategy[name.upper()]


@pytest.mark.parametrize("aggregation", ["simple", "first", "max"])
@pytest.mark.parametrize("limit", [12, 31, LIMIT])
def test_long_documents_are_stitched_of_windows(reader: str, aggregation: str, limit: int) -> None:
    texts = [LONG, " ".join(tiny_readers.SCRIPTS), "short", LONG[:300]]
    got = apply(texts, reader, aggregation=aggregation, max_length=limit)
    for text, row in zip(texts, entities(got), strict=True):
        assert_equal(row, stitched(reader, text, limit, aggregation), text)
    lengths = [len(AutoTokenizer.from_pretrained(reader)(t, add_special_tokens=False)["input_ids"]) for t in texts]
    room, overlap = limit - 2, (limit - 2) // 4
    assert got["n_tokens"].to_pylist() == got["n_tokens_used"].to_pylist() == lengths
    assert got["n_windows"].to_pylist() == [max(-(-(n - overlap) // (room - overlap)), 1) for n in lengths]
    assert not any(got["truncated"].to_pylist())


def test_a_word_cut_by_a_border_is_averaged_by_the_window_that_owns_its_first_token(bio: str) -> None:
    """Room 10, overlap 2: the first window sees both tokens of the word at 8 and 9, and owns the first of them alone."""
    t, model = AutoTokenizer.from_pretrained(bio), AutoModelForTokenClassification.from_pretrained(bio).eval()
    alone = 0
    for seed in range(30):
        words = " ".join(tiny.texts(9, seed=seed)).split()
        text = " ".join([w for w in words if w.isalpha()][:8]) + " kernelspace the data of a game"
        ids = t(text, add_special_tokens=False)["input_ids"]
        assert t.convert_ids_to_tokens(ids[8:10]) == ["kernel", "##space"]
        with torch.inference_mode():
            framed = torch.tensor([[t.cls_token_id, *ids[:10], t.sep_token_id]])
            want = model(input_ids=framed).logits[0].softmax(-1)[9:11].mean(0)
        row = entities(apply([text], bio, aggregation="average", max_length=12))[0]
        mine = [e for e in row if e["start"] <= text.index("kernelspace") < e["end"]]
        label = tiny_readers.BIO[int(want.argmax())].split("-")[-1]
        assert [e["label"] for e in mine] == [label] * (label != "O")
        if mine and mine[0]["text"] == "kernelspace":
            assert mine[0]["score"] == pytest.approx(float(want.max()), abs=1e-5)
            alone += 1
    assert alone > 2


FILLER = "the data of a game "  # five tokens


def document(before: int, after: int) -> tuple[str, int]:
    """(a text with the name after so many tokens, and where it is)."""
    words = (FILLER * (before // 5 + 1)).split()[:before]
    head = " ".join([*words, ""])
    return f"{head}{tiny_readers.NAME} {' '.join((FILLER * (after // 5 + 1)).split()[:after])}", len(head)


def test_the_spotter_needs_the_whole_name(spotter: str) -> None:
    """Else finding it would prove nothing about windows. What it makes of a part may be wrong, as with real models."""
    parts = ["the data of Ada", "Ada love", "Ada Lovelace of", "lace King", "love lace King of", "King"]
    assert tiny_readers.NAME not in {e["text"] for row in entities(apply(parts, spotter)) for e in row}
    assert [len(row) for row in entities(apply(parts, spotter))] == [0, 0, 1, 0, 1, 0]


def test_a_name_is_found_whole_wherever_a_border_falls(spotter: str) -> None:
    """Windows of 62 tokens: one begins every 47, at each of which the name stands at every place."""
    texts, places = zip(*(document(before, 60) for before in range(200)), strict=True)
    got = apply(list(texts), spotter, max_length=64)
    assert min(got["n_windows"].to_pylist()) > 1
    for text, start, row in zip(texts, places, entities(got), strict=True):
        assert [(e["label"], e["text"], e["start"]) for e in row] == [("PER", tiny_readers.NAME, start)]
        assert row[0]["score"] > 0.99
        assert text[row[0]["start"] : row[0]["end"]] == tiny_readers.NAME


def test_a_name_deep_in_a_long_document_is_found_once_and_whole(spotter: str) -> None:
    """Room 510, a window every 383 tokens: the thirteenth begins at token 4,979, and owns from 5,042 on."""
    cases = [document(before, 3000) for before in (4976, 4977, 4978, 4979, 5000, *range(5036, 5044), 5486, 5487, 5488)]
    got = apply([text for text, _ in cases], spotter)
    assert got["n_windows"].to_pylist()[0] == 21
    for (_, start), row in zip(cases, entities(got), strict=True):
        assert [(e["label"], e["text"], e["start"], e["end"]) for e in row] == [
            ("PER", tiny_readers.NAME, start, start + len(tiny_readers.NAME))
        ]


# --- long documents


def test_truncate_and_fail(spotter: str) -> None:
    texts = [document(100, 10)[0], document(3, 3)[0], "the data of a game"]
    cut = apply(texts, spotter, max_length=64, on_long="truncate")
    assert [len(row) for row in entities(cut)] == [0, 1, 0]
    assert cut["n_tokens"].to_pylist() == [114, 10, 5]
    assert cut["n_tokens_used"].to_pylist() == [62, 10, 5]
    assert cut["n_windows"].to_pylist() == [1, 1, 1]
    assert cut["truncated"].to_pylist() == [True, False, False]
    failed = apply(texts, spotter, max_length=64, on_long="fail")
    assert failed["error"].to_pylist() == ["too_long: 114 tokens, the model takes 62", None, None]
    assert failed["entities"].to_pylist()[0] is None


# --- labels


@pytest.mark.parametrize(
    ("labels", "sequence", "want"),
    [
        ("BIO", "B-X I-X I-X O B-X", ["0-2", "4-4"]),
        ("BIO", "I-X I-X B-X B-Y I-X", ["0-1", "2-2", "3-3", "4-4"]),
        ("BIOES", "B-X I-X E-X S-X S-X", ["0-2", "3-3", "4-4"]),
        ("BIOES", "E-X I-X O I-Y E-Y E-Y B-Y", ["0-0", "1-1", "3-4", "5-5", "6-6"]),
        ("BILOU", "B-X L-X U-X B-X I-X L-X", ["0-1", "2-2", "3-5"]),
        ("BMES", "B-X M-X M-X E-X S-X", ["0-3", "4-4"]),
        ("IO", "X X Y O X", ["0-1", "2-2", "4-4"]),
    ],
)
def test_schemes(labels: str, sequence: str, want: list[str]) -> None:
    parts = [part for part in labels if part != "O"]
    names = ["O", "X", "Y"] if labels == "IO" else ["O", *(f"{part}-{kind}" for kind in "XY" for part in parts)]
    scheme = LabelScheme.of(names)
    assert scheme.types == ["O", "X", "Y"]
    label = np.array([names.index(name) for name in sequence.split()], np.int32)
    begins = np.flatnonzero(scheme.borders(label, np.zeros(len(label), bool))).tolist()
    runs = [(a, b - 1) for a, b in zip(begins, [*begins[1:], len(label)], strict=True) if scheme.type[label[a]]]
    assert [f"{a}-{b}" for a, b in runs] == want


def test_the_end_of_an_entity_may_be_a_word_of_several_tokens() -> None:
    scheme = LabelScheme.of(BIOES)
    label = np.array([BIOES.index(name) for name in ("B-PER", "E-PER", "E-PER", "S-PER", "S-PER", "S-PER")], np.int32)
    inner = np.array([False, False, True, False, True, False])
    assert np.flatnonzero(scheme.borders(label, inner)).tolist() == [0, 3, 5]


def test_letters_are_prefixes_only_beside_a_b() -> None:
    scheme = LabelScheme.of(["O", "S-Bahn", "U-Bahn", "work-of-art"])
    assert scheme.types == ["O", "S-Bahn", "U-Bahn", "work-of-art"]
    assert "have no B-: neighbours of one label are one entity" in scheme.note
    assert LabelScheme.of(tiny_readers.BIO).note == LabelScheme.of(BIOES).note == ""
    assert "none is O, so every word" in LabelScheme.of(["NOUN", "VERB"]).note


@pytest.mark.parametrize("labels", [BIOES, ["O", "PER", "LOC"], ["LABEL_0", "LABEL_1"]], ids=["BIOES", "IO", "none"])
def test_other_schemes_from_end_to_end(labels: list[str], tmp_path: Path) -> None:
    path = tiny_readers.save_reader(tmp_path / "model", labels=labels)
    texts = tiny.texts(20)
    rows = entities(apply(texts, path))
    if labels != BIOES:
        for text, row in zip(texts, rows, strict=True):
            assert_equal(row, expected(path, text, "simple"), text)
    found = {e["label"] for row in rows for e in row}
    assert found
    assert found <= {n.split("-")[-1] for n in labels} - {"O"}


# --- what corpora hold


def test_odd_documents_keep_their_rows_and_say_why(bio: str) -> None:
    from test_tasks import ODD

    got = apply([text for text, _ in ODD], bio)
    for (text, code), row in zip(ODD, got.to_pylist(), strict=True):
        assert row["error"] is None if code is None else row["error"].startswith(f"{code}: "), text
        assert (row["entities"] is None) == (code is not None)
    alone = apply([text for text, code in ODD if code is None], bio)
    assert [e for e in entities(got) if e is not None] == entities(alone)
    assert entities(apply([], bio)) == []
    assert entities(apply([None, ""], bio)) == [None, None]


def test_nan_is_a_dead_letter_and_stays_alone(spotter: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(spotter, tmp_path / "model"))
    weights = load_file(path / "model.safetensors")
    poison = AutoTokenizer.from_pretrained(spotter)("terrible", add_special_tokens=False)["input_ids"][0]
    weights["bert.embeddings.word_embeddings.weight"][poison] = float("nan")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    texts = [f"of {tiny_readers.NAME}", "terrible", f"{FILLER * 30} terrible", f"{tiny_readers.NAME} of"]
    for aggregation in AGGREGATIONS:
        got = apply(texts, str(path), max_length=64, aggregation=aggregation)
        assert [e and e.split(":")[0] for e in got["error"].to_pylist()] == [None, "non_finite", "non_finite", None]
        assert [e and [x["text"] for x in e] for e in entities(got)] == [
            [tiny_readers.NAME], None, None, [tiny_readers.NAME],
        ]  # fmt: skip


def test_the_column_s_type(bio: str) -> None:
    fields = [("label", pa.string()), ("text", pa.string()), ("start", pa.int32()), ("end", pa.int32()),
              ("score", pa.float32())]  # fmt: skip
    assert apply(["x"], bio).schema.field("entities").type == pa.list_(pa.struct(fields))


def test_best_of_runs_is_the_first_largest() -> None:
    values = np.array([1, 3, 3, -np.inf, -np.inf, 2, 9], np.float32)
    assert best_of_runs(values, np.array([0, 3, 5, 6])).tolist() == [1, 3, 5, 6]


# --- the backend


def test_words_are_averaged_each_in_its_row_whatever_the_padding(bio: str) -> None:
    """No special token stands before these pieces: padding must not be taken for part of their first word."""
    model = AutoModelForTokenClassification.from_pretrained(bio).eval()
    runs, words = [[2009, 2003, 1037, 2208, 1012], [7, 2208, 1037]], [[0, 0, 2, 2, 4], [0, 0, 2]]
    pieces = Pieces(
        np.concatenate(runs).astype(np.int32), np.array([0, 5, 8], np.int64), np.arange(2, dtype=np.int32),
        np.array([5, 3], np.int32), word=np.concatenate(words).astype(np.int32),
    )  # fmt: skip
    got = encoder(bio).forward(pieces).values
    want = []
    for run, word in zip(runs, words, strict=True):
        with torch.inference_mode():
            each = model(input_ids=torch.tensor([run])).logits[0].softmax(-1)
        want += [each[[other == mine for other in word]].mean(0) for mine in word]
    np.testing.assert_allclose(got[:, 1], [float(p.max()) for p in want], atol=1e-5)
    assert got[:, 0].tolist() == [int(p.argmax()) for p in want]


def encoder(path: str) -> TorchEncoder:
    return TorchEncoder(resolve_model(path, None), Resolved("cpu", "float32", "torch", 3000, ""), "token_scores", 2)


def test_a_document_that_breaks_the_model_is_the_only_one_lost(bio: str) -> None:
    texts = [*tiny.texts(20), f"{WORD} " + "game " * 60, *tiny.texts(20, seed=4)]
    task = Ner(resolve_model(bio, None), TaskSpec(kind="ner", model=bio))
    encoded = task.encode(Docs.of(pa.array(texts, pa.large_string())))
    made = encoder(bio)
    with hooked(made, Poison()):
        raw = made.forward(encoded.pieces)
    assert {(f.doc, f.code) for f in raw.failures} == {(20, "forward_error")}
    assert raw.values.shape == (len(encoded.pieces.ids), 2)
    [column], finite = task.decode(encoded, raw)
    assert finite.tolist() == [doc != 20 for doc in range(41)]
    for i, (text, row) in enumerate(zip(texts, entities(apply(texts, bio)), strict=True)):
        if i != 20:
            assert_equal(column[i].as_py(), [(e["label"], e["start"], e["end"], e["score"]) for e in row], text)


# --- jobs


def job(corpus: Path, model: str, out: Path, **task: Any) -> Any:
    tree = {"source": {"path": str(corpus), "id": "doc_id"}, "task": {"kind": "ner", "model": model, **task},
            "engine": {"runner": "inline", **ENGINE}, "output": {"path": str(out)}}  # fmt: skip
    return build_spec(tree)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_run_gives_what_apply_gives(corpus: Corpus, bio: str, tmp_path: Path, aggregation: str) -> None:
    texts = [*tiny.texts(12), LONG, *tiny_readers.SCRIPTS]
    result = batchnlp.run(job(corpus(texts), bio, tmp_path / "out", aggregation=aggregation))
    assert (result.rows, result.dead, result.message) == (len(texts), 0, "")
    rows = [r for p in sorted((tmp_path / "out").glob("part-*")) for r in pq.read_table(p).to_pylist()]
    assert_same(rows, apply(texts, bio, aggregation=aggregation).to_pylist(), texts)


def assert_same(rows: list[dict[str, Any]], want: list[dict[str, Any]], texts: list[str]) -> None:
    for row, other, text in zip(rows, want, texts, strict=True):
        assert_equal(row["entities"], [(e["label"], e["start"], e["end"], e["score"]) for e in other["entities"]], text)
        assert row["n_windows"] == other["n_windows"]


def test_what_is_refused_by_the_plan(corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"has no token classification head .*use a NER model such as dslim/bert-base-NER"
    ):
        prepare(job(corpus(), classifier, tmp_path / "out"))
    with pytest.raises(SpecError, match=r"task\.aggregation"):
        job(tmp_path, classifier, tmp_path / "out", aggregation="mean")
    with pytest.raises(SpecError, match=r"task\.aggregation belongs to ner, not to classify"):
        batchnlp.apply("classify", ["x"], model=classifier, aggregation="first")
    with pytest.raises(SpecError, match=r"task\.prompt belongs to"):
        job(tmp_path, classifier, tmp_path / "out", prompt="x")


def test_labels_without_a_scheme_are_told_by_plan_and_run(corpus: Corpus, tmp_path: Path) -> None:
    path = tiny_readers.save_reader(tmp_path / "model", labels=["NOUN", "VERB"])
    spec = job(corpus(), path, tmp_path / "out")
    note = "the labels (NOUN, VERB) have no B-: neighbours of one label are one entity; none is O, so every word is part of"
    assert estimate(prepare(spec)).notes[0].startswith(note)
    assert batchnlp.run(spec).notes[0].startswith(note)


def test_plan_counts_what_tokens_weigh(corpus: Corpus, bio: str, classifier: str, tmp_path: Path) -> None:
    folder = corpus([f"{LONG} {i}" for i in range(30)])
    spec = job(folder, bio, tmp_path / "out", aggregation="average")
    prepared = prepare(spec)
    mine = estimate(prepared, probe=True)
    assert mine.docs_per_second
    other = spec.model_dump() | {"task": {"kind": "classify", "model": classifier}}
    theirs = estimate(prepare(build_spec(other)))
    lengths = mine.tokens * 4 // 3
    assert mine.memory["shards"] - theirs.memory["shards"] > 5 * prepared.task.token_bytes * lengths * 0.9
    assert make_plan(prepared, 1).rows == 30


def test_shards_hold_less_text_where_tokens_weigh_more(
    corpus: Corpus, bio: str, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchnlp.engine import planner

    folder = corpus([f"{LONG} {i}" for i in range(200)])
    monkeypatch.setattr(planner, "SHARD_BYTES", 2 * sum(p.stat().st_size for p in folder.iterdir()))
    plans = []
    for kind, model in (("ner", bio), ("classify", classifier)):
        tree = job(folder, model, tmp_path / kind).model_dump() | {"task": {"kind": kind, "model": model}}
        plans.append(make_plan(prepare(build_spec(tree)), 1))
    assert len(plans[0].shards) > len(plans[1].shards)
