"""`batchnlp evaluate`: which rows are judged, by what, and what is refused; gates in a job."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from commands import QUICK, invoke, last_json, rows_of
from judged import labels, output
from test_cli import loaded_after
from test_retry import WORD, poison
from warehouses import Warehouse

import batchnlp
from batchnlp.evaluate import evaluation, outputs

TOPICS = ("games", "science", "web")
Row = dict[str, Any]


def evaluate(*args: object, code: int = 0) -> dict[str, Any]:
    result = invoke("evaluate", *args, "--json")
    assert result.exit_code == code, result.output
    return last_json(result)


def refused(*args: object) -> str:
    result = invoke("evaluate", *args)
    assert result.exit_code == 2, result.output
    return result.stderr.strip()


def classified(root: Path, truth: list[str | None], answers: list[str], **more: Any) -> Path:
    """A classification with the truth in a kept column."""
    columns = {
        "truth": pa.array(truth, pa.string()),
        "label": answers,
        "score": np.full(len(answers), 0.75, np.float32),
    }
    return output(root, "classify", columns, **more)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Forty documents, thirty of them right."""
    truth: list[str | None] = ["a", "b"] * 20
    answers = [t if i < 30 else "a" if t == "b" else "b" for i, t in enumerate(["a", "b"] * 20)]
    texts = [f"{'apples and pears' if t == 'a' else 'trains and buses'} {i}" for i, t in enumerate(truth)]
    return classified(tmp_path / "out", truth, answers, texts=texts)


# --- what is judged


def test_a_column_of_the_results(out: Path) -> None:
    tree = evaluate(out, "--labels", "truth")
    counts = "rows", "judged", "without_label", "without_result", "coverage"
    assert [tree[name] for name in counts] == [40, 40, 0, 0, 1]
    metrics = tree["metrics"]
    assert metrics["accuracy"]["value"] == 0.75
    assert metrics["accuracy"]["low"] < 0.75 < metrics["accuracy"]["high"]
    assert metrics["ece"]["value"] == 0, "three of four are right, and the score says so"
    assert tree["confusion"] == {"labels": ["a", "b"], "truth_by_answer": [[15, 5], [5, 15]]}
    assert [(c["label"], c["support"], c["f1"]) for c in tree["classes"]] == [("a", 20, 0.75), ("b", 20, 0.75)]
    assert json.loads(Path(tree["file"]).read_text()) == {k: v for k, v in tree.items() if k != "file"}
    assert Path(tree["file"]).parent == next((out / "_batchnlp").glob("a*")), "beside the manifest"


def test_the_same_evaluation_twice_is_the_same(out: Path) -> None:
    assert evaluate(out, "--labels", "truth") == evaluate(out, "--labels", "truth")


def test_a_file_joined_by_ids(out: Path, tmp_path: Path) -> None:
    """Rows in another order, some without a label, some labels without a result."""
    ids = [f"doc-{i}" for i in range(39, 9, -1)] + ["doc-99", "doc-98"]
    path = labels(tmp_path, {"topic": ["a", "b"] * 16}, ids)
    tree = evaluate(out, "--labels", f"{path}:topic")
    counts = "judged", "without_label", "without_result", "coverage"
    assert [tree[name] for name in counts] == [30, 10, 2, 30 / 32]
    answers = {row["id"]: row["label"] for row in rows_of(out)}
    right = [answers[i] == t for i, t in zip(ids[:30], ["a", "b"] * 15, strict=True)]
    assert tree["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.tsv"])
def test_files_of_other_formats(out: Path, tmp_path: Path, name: str) -> None:
    path, rows = tmp_path / name, [(f"doc-{i}", "ab"[i % 2]) for i in range(40)]
    lines = {
        "labels.csv": ["doc_id,topic", *(f"{i},{t}" for i, t in rows)],
        "labels.tsv": ["doc_id\ttopic", *(f"{i}\t{t}" for i, t in rows)],
        "labels.jsonl": [json.dumps({"doc_id": i, "topic": t}) for i, t in rows],
    }[name]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    assert evaluate(out, "--labels", f"{path}:topic")["metrics"]["accuracy"]["value"] == 0.75


def test_ids_that_look_like_numbers_are_joined_as_text(tmp_path: Path) -> None:
    root = classified(tmp_path / "out", ["a"], ["a"])
    (tmp_path / "labels.csv").write_text("id,topic\n007,a\n")
    hint = "are the ids the same? 1 results, 1 labels, none of the same id"
    assert hint in refused(root, "--labels", f"{tmp_path / 'labels.csv'}:topic")


def test_null_and_blank_labels_are_counted_and_left_out(tmp_path: Path) -> None:
    root = classified(tmp_path / "out", ["a", None, "  ", "b"], ["a", "a", "a", "b"])
    tree = evaluate(root, "--labels", "truth")
    assert (tree["judged"], tree["without_label"], tree["problems"]) == (2, 1, {"blank label": 1})
    assert tree["metrics"]["accuracy"]["value"] == 1


def test_labels_that_the_model_does_not_have_are_wrong_and_named(tmp_path: Path) -> None:
    root = classified(tmp_path / "out", ["a", "b", "new", "new"], ["a", "b", "a", "b"])
    tree = evaluate(root, "--labels", "truth")
    assert tree["metrics"]["accuracy"]["value"] == 0.5
    assert "1 label answered for no document: new (2)" in tree["notes"]


def test_a_model_is_not_judged_by_itself(out: Path) -> None:
    assert "label is what the model answers, not the truth (write FILE:label" in refused(out, "--labels", "label")


def test_a_few_labels_that_are_all_missed_are_wrong_and_not_misspelt(out: Path) -> None:
    path = labels(out.parent, {"topic": ["b", "a"]}, ["doc-0", "doc-1"])
    assert evaluate(out, "--labels", f"{path}:topic")["metrics"]["accuracy"]["value"] == 0


def test_labels_of_a_model_that_is_at_hand_are_known(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "rare"}}))
    root = classified(tmp_path / "out", ["a", "b", "rare", "gone"], ["a", "b", "a", "a"], model=str(model))
    notes = evaluate(root, "--labels", "truth")["notes"]
    assert "1 label that the model does not have, counted as wrong: gone (1)" in notes


@pytest.mark.parametrize("config", ["{", "[]", '{"id2label": ["a"]}', '{"id2label": {"0": [1]}}', "\xff"])
def test_a_model_that_was_damaged_since_is_judged_by_what_it_answered(config: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes(config.encode("latin-1"))
    root = classified(tmp_path / "out", ["a", "b", "rare"], ["a", "b", "a"], model=str(model))
    assert "1 label answered for no document: rare (1)" in evaluate(root, "--labels", "truth")["notes"]


def test_who_is_below_a_baseline_is_told(tmp_path: Path) -> None:
    root = classified(tmp_path / "out", ["a"] * 8 + ["b"] * 2, ["b"] * 8 + ["a"] * 2)
    said = invoke("evaluate", root, "--labels", "truth").output
    assert "the model is below a baseline: majority in accuracy, majority in macro_f1" in said
    assert "micro_f1" not in said, "of one label a document it is the accuracy"


def test_labels_of_another_name_are_refused(tmp_path: Path) -> None:
    root = classified(tmp_path / "out", ["0", "1"], ["LABEL_0", "LABEL_1"])
    assert (
        "no label is one that the model gives: it gives LABEL_0, LABEL_1, the labels are 0, 1 (name both the same;"
        in (refused(root, "--labels", "truth"))
    )


def test_one_class_is_told(tmp_path: Path) -> None:
    root = classified(tmp_path / "out", ["a"] * 6, ["a"] * 5 + ["b"])
    notes = evaluate(root, "--labels", "truth")["notes"]
    assert "all labels are a: whoever always says so is perfect; judge by more classes" in notes
    assert any(note.startswith("no baseline of words: every label needs 5 documents") for note in notes)


def test_baselines(out: Path) -> None:
    tree = evaluate(out, "--labels", "truth")
    assert tree["baselines"]["majority"]["accuracy"]["value"] == 0.5
    assert tree["baselines"]["tf-idf"]["accuracy"]["value"] == 1, "apples are not trains"
    assert any(note.startswith("tf-idf: words and logistic regression, 5-fold on 40") for note in tree["notes"])


def test_without_the_source_there_is_no_baseline_of_its_texts(out: Path, tmp_path: Path) -> None:
    (tmp_path / "out-a.parquet").unlink()
    tree = evaluate(out, "--labels", "truth")
    assert tree["baselines"].keys() == {"majority"}
    assert any(note.startswith("no baseline from the texts: ") for note in tree["notes"])


# --- other tasks


def test_several_labels(tmp_path: Path) -> None:
    columns = {"truth": [["a"], ["a", "b"], []], "label": ["a", "a", "b"], "score": np.ones(3, np.float32),
               "labels": [["a"], ["a"], []]}  # fmt: skip
    root = output(tmp_path / "out", "classify", columns)
    tree = evaluate(root, "--labels", "truth")
    assert tree["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert tree["metrics"]["micro_recall"]["value"] == pytest.approx(2 / 3)
    assert "ece" not in tree["metrics"]
    assert tree["confusion"] is None


def test_similarities_are_no_probabilities(tmp_path: Path) -> None:
    columns = {"truth": ["a", "b"], "label": ["a", "b"], "score": np.array([0.5, 0.4], np.float32)}
    root = output(tmp_path / "out", "zero-shot", columns, labels="a,b")
    tree = evaluate(root, "--labels", "truth")
    assert "ece" not in tree["metrics"]
    assert "no calibration error: zero-shot scores may be similarities; task.scores=true tells" in tree["notes"]


def entity(label: str, start: int, end: int) -> Row:
    return {"label": label, "start": start, "end": end}


def test_entities(tmp_path: Path) -> None:
    found = [{**entity("PER", 0, 3), "text": "Ann", "score": 0.9}]
    truth = [[entity("PER", 0, 3)], [entity("PER", 0, 2)], [entity("PER", 0, 99)], []]
    texts = ["Ann sings", "Annie", "Ann", "Ann"]
    root = output(tmp_path / "out", "ner", {"truth": truth, "entities": [found] * 4}, texts=texts)
    tree = evaluate(root, "--labels", "truth")
    assert (tree["judged"], tree["problems"]) == (3, {"entity outside of the text": 1})
    assert tree["metrics"]["strict_micro_precision"]["value"] == pytest.approx(1 / 3)
    assert tree["metrics"]["partial_precision"]["value"] == 0.5
    assert [(c["label"], c["support"]) for c in tree["classes"]] == [("PER", 2)]


def test_answers_and_answers_that_there_are_not(tmp_path: Path) -> None:
    columns = {"truth": [["the cat", "cat"], [], ["dog"]], "answer": ["Cat.", None, "a dog barks"]}
    root = output(tmp_path / "out", "qa", columns, question="who?")
    metrics = evaluate(root, "--labels", "truth")["metrics"]
    assert metrics["exact_match"]["value"] == pytest.approx(2 / 3)
    assert metrics["f1"]["value"] == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_summaries_beside_their_first_sentence(tmp_path: Path) -> None:
    texts = ["The cat sat. It was red.", "Dogs bark. They run.", "Nothing here."]
    columns = {"truth": ["The cat sat.", "They run.", ""], "summary": ["a cat", "They run.", "?"]}
    tree = evaluate(output(tmp_path / "out", "summarize", columns, texts=texts), "--labels", "truth")
    assert (tree["judged"], tree["problems"]) == (2, {"empty reference": 1})
    assert tree["metrics"].keys() == {"rouge1", "rouge2", "rougeL"}
    assert tree["baselines"]["lead-1"]["rougeL"]["value"] == 0.5, "right the first time"


def test_translations_tell_their_signature(tmp_path: Path) -> None:
    columns = {"truth": ["der Hund ist rot und klein"] * 2, "translation": ["der Hund ist rot und klein", "nein"]}
    tree = evaluate(output(tmp_path / "out", "translate", columns), "--labels", "truth")
    assert tree["metrics"].keys() == {"bleu", "chrf"}
    assert tree["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_perplexity_needs_no_labels(tmp_path: Path) -> None:
    half = float(np.log(0.5))
    columns = {"text": ["a", "b"], "logprobs": [[half, half], [half]]}
    root = output(tmp_path / "out", "generate", columns, logprobs=True)
    tree = evaluate(root, "--set", "gates.perplexity.max=3")
    assert tree["metrics"]["perplexity"]["value"] == pytest.approx(2)
    assert (tree["status"], tree["coverage"]) == ("passed", None)


def test_vectors_find_their_like(tmp_path: Path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2]].ravel()), 4)
    root = output(tmp_path / "out", "embed", {"truth": ["a", "a", "b", "b", "c"], "embedding": vectors})
    tree = evaluate(root, "--labels", "truth")
    assert tree["metrics"]["ndcg_at_10"]["value"] == 1
    assert (tree["judged"], tree["problems"]) == (4, {"nothing is relevant": 1})


# --- two models


def test_two_models_on_the_same_documents(out: Path, tmp_path: Path) -> None:
    other = classified(tmp_path / "other", [None] * 40, ["a", "b"] * 20)
    tree = evaluate(other, "--labels", f"{labels(tmp_path, {'t': ['a', 'b'] * 20})}:t", "--against", out)
    found = tree["against"]["metrics"]["accuracy"]
    assert (found["ours"], found["theirs"], found["difference"]) == (1, 0.75, 0.25)
    assert 0 < found["low"] < 0.25 < found["high"]
    assert found["p"] < 0.01
    assert tree["against"]["mcnemar"] == {"only_ours_right": 10, "only_theirs_right": 0, "p": pytest.approx(2 / 2**10)}


def test_two_models_at_two_tasks_are_refused(out: Path, tmp_path: Path) -> None:
    other = output(tmp_path / "other", "qa", {"answer": ["x"]}, question="?")
    assert "holds qa, not classify (compare two models at one task)" in refused(
        out, "--labels", "truth", "--against", other
    )


# --- groups


def grouped(root: Path, *, biased: bool) -> Path:
    """Two hundred documents of two languages; the biased model finds no b in German."""
    truth: list[str | None] = ["a", "b"] * 100
    lang = ["en"] * 100 + ["de"] * 80 + ["fr"] * 20
    answers = [str("a" if biased and where == "de" else t) for t, where in zip(truth, lang, strict=True)]
    columns = {"truth": truth, "lang": lang, "label": answers, "score": np.ones(200, np.float32)}
    return output(root, "classify", columns)


BOUNDS = ["--set", "gates.equalized_odds_difference.max=0.1", "--set", "gates.demographic_parity_difference.max=0.1"]


def test_a_biased_model_is_flagged_and_a_fair_one_passes(tmp_path: Path) -> None:
    ask = ["--labels", "truth", "--groups", "lang", *BOUNDS]
    fair = evaluate(grouped(tmp_path / "fair", biased=False), *ask)
    assert fair["status"] == "passed"
    biased = evaluate(grouped(tmp_path / "biased", biased=True), *ask, code=1)
    assert biased["status"] == "failed"
    (by,) = biased["groups"]
    assert by["differences"]["equalized_odds_difference"]["value"] == 1
    assert by["differences"]["demographic_parity_difference"]["value"] == 0.5
    groups = {g["group"]: g for g in by["groups"]}
    assert (groups["de"]["documents"], groups["de"]["metrics"]["accuracy"]["value"]) == (80, 0.5)
    assert (groups["fr"]["insufficient"], groups["fr"]["metrics"]) == (True, {})
    assert [g["passed"] for g in biased["gates"]] == [False, False]


def test_the_table_says_insufficient(tmp_path: Path) -> None:
    result = invoke(
        "evaluate", grouped(tmp_path / "out", biased=True), "--labels", "truth", "--groups", "lang", *BOUNDS
    )
    assert result.exit_code == 1
    assert [line.split()[:3] for line in result.stdout.splitlines() if line.startswith("fr ")] == [
        ["fr", "20", "insufficient"]
    ]
    assert "FAILED" in result.stdout


def test_a_gate_on_what_could_not_be_judged_does_not_pass(tmp_path: Path) -> None:
    root = grouped(tmp_path / "out", biased=False)
    gate = ["--set", "gates={'accuracy:lang=fr': {min: 0.5}, 'f1:b': {min: 0.5}, accuracy_difference: {max: 0.1}}"]
    verdicts = {v["metric"]: v for v in evaluate(root, "--labels", "truth", "--groups", "lang", *gate, code=1)["gates"]}
    assert [name for name, v in verdicts.items() if not v["passed"]] == ["accuracy:lang=fr"]
    assert "could not be judged" in verdicts["accuracy:lang=fr"]["why"]


def test_groups_of_the_labels_file(out: Path, tmp_path: Path) -> None:
    path = labels(tmp_path, {"t": ["a", "b"] * 20, "half": [1] * 30 + [None] * 10})
    (by,) = evaluate(out, "--labels", f"{path}:t", "--groups", "half")["groups"]
    assert [(g["group"], g["documents"]) for g in by["groups"]] == [("(none)", 10), ("1", 30)]


# --- refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "nothing says what"),
        (["--labels", "truht"], "no column 'truht' in the results (did you mean truth?)"),
        (["--labels", "nowhere.csv:x"], "no file"),
        (["--labels", __file__], f"names no column (write {__file__}:COLUMN)"),
        (["--labels", "truth", "--groups", "lnag"], "no column 'lnag' in the results"),
        (["--labels", "truth", "--set", "gates.makro_f1.min=1"], "gates.makro_f1: this evaluation has no makro_f1 (did you mean"),
        (["--labels", "truth", "--set", "gates.f1.min=1"], "gates.f1: of which label? (write f1:LABEL, or macro_f1)"),
        (["--labels", "truth", "--set", "gates.accuracy.mn=1"], "gates.accuracy.mn (did you mean gates.accuracy.min?)"),
        (["--labels", "truth", "--set", "gates.accuracy=1"], "gates.accuracy is a section, not 1"),
        (["--labels", "truth", "--set", "gates.accuracy={}"], "a gate needs min, max or drop"),
        (["--labels", "score"], "score is what the model answers, not the truth"),
        (["--labels", "truth", "--set", "gates.flip_rate.max=0"], "gates.flip_rate: this evaluation has no flip_rate"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_the_remedy(out: Path, more: list[str], message: str) -> None:
    assert message in refused(out, *more)


def test_labels_for_the_wrong_task_are_refused(tmp_path: Path) -> None:
    root = output(
        tmp_path / "out",
        "ner",
        {"truth": ["PER"], "entities": pa.array([[]], pa.list_(pa.struct([("label", pa.string())])))},
    )
    assert "truth is string, which is not what ner gives (it takes entities: lists of {label, start, end})" in refused(
        root, "--labels", "truth"
    )


def test_an_id_with_two_labels_is_refused(out: Path, tmp_path: Path) -> None:
    path = labels(tmp_path, {"t": ["a", "b"]}, ["doc-1", "doc-1"])
    assert "the id 'doc-1' is there twice (give each document one label" in refused(out, "--labels", f"{path}:t")


def test_a_missing_library_names_the_extra(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchnlp.evaluate import library

    monkeypatch.setattr(library, "find_spec", lambda name: None if name == "sacrebleu" else object())
    assert "this needs the package sacrebleu (pip install 'batchnlp[evaluate]')" in refused(out, "--labels", "truth")


def test_judging_an_output_loads_no_model(out: Path) -> None:
    code, modules = loaded_after("evaluate", out, "--labels", "truth")
    assert code == 0
    assert not modules & {"torch", "transformers", "ray"}


def test_runs_of_two_tasks_in_one_output_are_refused(out: Path) -> None:
    output(out, "qa", {"answer": ["x"]}, question="?", run="b")
    assert "holds runs with different columns" in refused(out, "--labels", "truth")


def test_an_output_that_is_not_complete_is_refused(out: Path) -> None:
    next(out.glob("_batchnlp/a*/manifest.json")).unlink()
    assert "is not complete (run the job again first)" in refused(out, "--labels", "truth")


def test_appended_runs_are_judged_together(out: Path) -> None:
    classified(out, ["a"] * 10, ["a"] * 10, run="b")
    tree = evaluate(out, "--labels", "truth")
    assert (tree["judged"], len(tree["runs"])) == (50, 2)
    assert outputs.Output.at(str(out)).read(["label"]).num_rows == 50


# --- gates in a job


@pytest.fixture
def source(tmp_path: Path, classifier: str) -> Path:
    """Documents whose label the classifier gets right, but for two of twenty."""
    texts = tiny.texts(20)
    given = batchnlp.apply(
        "classify", texts, model=classifier, engine={"dtype": "float32", "device": "cpu", "backend": "torch"}
    )
    truth = given["label"].to_pylist()
    truth[:2] = [next(t for t in TOPICS if t != label) for label in truth[:2]]
    path = tmp_path / "docs.parquet"
    pq.write_table(pa.table({"doc_id": [f"d{i}" for i in range(20)], "text": texts, "truth": truth}), path)
    return path


def job(source: Path, out: Path, model: str, warehouse: Warehouse, **more: Any) -> list[object]:
    sink = {"kind": "duckdb", "database": warehouse.database, "table": "t"}
    sets = {"evaluate.labels": "truth", "sinks": json.dumps([sink]), **more}
    return ["classify", source, "-o", out, "--model", model, "--id-column", "doc_id", "--keep", "truth", "--json", *QUICK,
            *(word for key, value in sets.items() for word in ("--set", f"{key}={value}"))]  # fmt: skip


def test_what_is_below_its_gates_reaches_no_warehouse(tmp_path: Path, source: Path, classifier: str) -> None:
    warehouse, out = Warehouse("duckdb", tmp_path), tmp_path / "out"
    result = invoke(*job(source, out, classifier, warehouse, **{"gates.accuracy.min": 0.95}))
    assert result.exit_code == 1, result.output
    tree = last_json(result)
    assert (tree["status"], tree["sinks"], tree["evaluation"]["status"]) == ("failed", [], "failed")
    assert tree["message"] == "below its gates: accuracy 0.9, min 0.95: failed"
    assert not Path(warehouse.database).exists()
    assert not (out / "_SUCCESS").exists()
    loaded = invoke("load", out, "--to", "duckdb", "--set", f"database={warehouse.database}", "--set", "table=t")
    assert loaded.exit_code == 2
    assert "is below its gates: accuracy 0.9, min 0.95: failed" in loaded.stderr
    again = invoke(*job(source, out, classifier, warehouse, **{"gates.accuracy.min": 0.9}))
    assert again.exit_code == 0, again.output
    tree = last_json(again)
    assert (tree["shards"], tree["sinks"][0]["rows"]) == (0, 20), "nothing is computed again"
    assert (out / "_SUCCESS").exists()
    assert "accuracy 0.9, min 0.9\n" in again.stderr
    assert invoke("verify", out).exit_code == 0


def test_who_is_told_that_a_gate_is_not_kept(tmp_path: Path, source: Path, classifier: str) -> None:
    """The hook, run_results.json, the page, and status all say why."""
    out, told = tmp_path / "out", tmp_path / "told.json"
    hooks = json.dumps([{"command": ["cp", "/dev/stdin", str(told)]}])
    args = job(source, out, classifier, Warehouse("duckdb", tmp_path), hooks=hooks, **{"gates.accuracy.min": 0.95})
    assert invoke(*args).exit_code == 1
    why = "accuracy 0.9, min 0.95: failed"
    (results,) = out.glob("_batchnlp/*/run_results.json")
    for file in (told, results):
        tree = json.loads(file.read_text())
        assert (tree["event"], tree["status"], tree["exit_code"]) == ("threshold", "failed", 1)
        assert tree["message"] == f"below its gates: {why}"
        assert [verdict["why"] for verdict in tree["evaluation"]["gates"]] == [why]
    assert f"20 rows in = 20 results + 0 dead letters; below its gates: {why}." in (out / "_report.html").read_text()
    assert last_json(invoke("status", out, "--json"))["gates"] == why
    assert re.search(rf"below its gates +{why}", invoke("status", out).stdout)
    told.unlink()
    assert invoke(*args, "--set", "gates.accuracy.min=0.9").exit_code == 0
    assert not told.exists(), "by default nobody is told of a success"


def test_a_retry_is_judged_like_a_run(
    tmp_path: Path, source: Path, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead letters are what the model gets wrong; the gate was set after the plan was made."""
    warehouse, out, table = Warehouse("duckdb", tmp_path), tmp_path / "out", pq.read_table(source)
    texts = [f"{text} {WORD}" if i < 2 else text for i, text in enumerate(table["text"].to_pylist())]
    pq.write_table(table.set_column(1, "text", [texts]), source)
    with poison(monkeypatch):
        sets = {"limits.max_failed": 10, "gates.accuracy.min": 0.95}
        assert invoke(*job(source, out, classifier, warehouse, **{"limits.max_failed": 1})).exit_code == 1
        assert invoke(*job(source, out, classifier, warehouse, **sets)).exit_code == 0
    assert len(warehouse.rows()) == 18
    result = invoke("retry", out)
    assert result.exit_code == 1, result.output
    why = "below its gates: accuracy 0.9, min 0.95: failed"
    assert f"2 of 2 dead letters have results now; {why}" in result.stderr
    assert not (out / "_SUCCESS").exists()
    assert len(warehouse.rows()) == 18
    assert invoke("retry", out).exit_code == 0, "there is nothing to do"
    assert len(warehouse.rows()) == 18
    sets["gates.accuracy.min"] = 0.9
    again = invoke(*job(source, out, classifier, warehouse, **sets))
    assert again.exit_code == 0, again.output
    assert len(warehouse.rows()) == 20
    assert invoke("verify", out).exit_code == 0


def test_a_worse_model_replaces_nothing(tmp_path: Path, source: Path, classifier: str) -> None:
    """Overwrite, and a gate against the last run: the old results and the warehouse stand."""
    warehouse, out, gate = Warehouse("duckdb", tmp_path), tmp_path / "out", {"gates.accuracy.drop": 0.05}
    worse = tiny.save_classifier(tmp_path / "worse", TOPICS[::-1])
    assert invoke(*job(source, out, classifier, warehouse, **gate)).exit_code == 0
    before = rows_of(out)
    for _ in range(2):  # a failed run is no measure for the next
        result = invoke(*job(source, out, worse, warehouse, **gate), "--mode", "overwrite")
        assert result.exit_code == 1, result.output
        assert "drop 0.05 from 0.9: failed" in last_json(result)["message"]
    assert rows_of(out) == before
    assert warehouse.rows() == sorted(before, key=lambda row: str(row["id"]))
    same = last_json(invoke(*job(source, out, classifier, warehouse, **gate), "--mode", "overwrite"))
    assert same["evaluation"]["gates"][0]["why"] == "accuracy 0.9: no earlier run to hold it against", "not even itself"


def test_a_gate_that_cannot_be_judged_is_refused_before_the_work(tmp_path: Path, source: Path, classifier: str) -> None:
    warehouse, out = Warehouse("duckdb", tmp_path), tmp_path / "out"
    for more in ({"gates.makro_f1.min": 1}, {"evaluate.labels": "nothing"}, {"evaluate.labels": "none.csv:x"}):
        result = invoke(*job(source, out, classifier, warehouse, **more))
        assert result.exit_code == 2, result.output
        assert not out.exists()


def test_labels_that_are_gone_after_the_run_stop_it(
    tmp_path: Path, source: Path, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse, out, path = Warehouse("duckdb", tmp_path), tmp_path / "out", tmp_path / "labels.parquet"
    pq.write_table(pq.read_table(source, columns=["doc_id", "truth"]), path)
    args, kept = job(source, out, classifier, warehouse, **{"evaluate.labels": f"{path}:truth"}), path.read_bytes()
    preflight = evaluation.preflight

    def gone(*given: Any) -> Any:
        found = preflight(*given)
        path.unlink(missing_ok=True)
        return found

    with monkeypatch.context() as patched:
        from batchnlp.engine import planner

        patched.setattr(planner, "preflight", gone)
        result = invoke(*args)
    assert result.exit_code == 3, result.output
    assert "the results are whole, but not judged: no file" in result.stderr
    assert not Path(warehouse.database).exists()
    path.write_bytes(kept)
    again = last_json(invoke(*args))
    assert (again["status"], again["shards"], again["evaluation"]["metrics"]["accuracy"]["value"]) == ("done", 0, 0.9)


def test_a_job_is_run_and_then_judged(tmp_path: Path, source: Path, classifier: str) -> None:
    spec = {
        "source": {"path": str(source), "id": "doc_id", "keep": ["truth"]}, "task": {"kind": "classify", "model": classifier},
        "engine": {"runner": "inline", "dtype": "float32", "device": "cpu", "backend": "torch"},
        "output": {"path": str(tmp_path / "out")}, "gates": {"accuracy": {"min": 0.95}},
    }  # fmt: skip
    (tmp_path / "job.yaml").write_text(json.dumps({**spec, "evaluate": {"labels": "truth"}}))
    tree = evaluate(tmp_path / "job.yaml", code=1)
    assert tree["metrics"]["accuracy"]["value"] == 0.9
    assert tree["baselines"].keys() >= {"majority"}
    assert (tmp_path / "out").is_dir()
    assert evaluate(tmp_path / "job.yaml", "--set", "gates={}")["status"] == "passed"
