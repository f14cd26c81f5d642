"""`batchnlp evaluate` of a model that was trained here: what it is held against has learnt from the same rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, invoke, last_json
from judged import output
from learning import record, rows, save_encoder, train, write


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("start"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.parquet", rows())


def judged(out: Path, labels: str) -> dict[str, Any]:
    result = invoke("evaluate", out, "--labels", labels, "--json")
    assert result.exit_code == 0, result.output
    return last_json(result)


def run(task: str, held_out: Path, out: Path, model: Path) -> Path:
    result = invoke(task, held_out, "-o", out, "--model", model, "--id-column", "id", *QUICK)
    assert result.exit_code == 0, result.output
    return out


def test_words_learn_from_the_rows_of_the_model(tmp_path: Path, source: Path, start: str) -> None:
    held_out = tmp_path / "test.parquet"
    tree = record(
        train("classify", source, tmp_path / "m", "steps=1", flags=("--model", start, "--held-out", held_out))
    )
    out = run("classify", held_out, tmp_path / "out", tmp_path / "m")
    learnt = tree["composition"]["parts"]["train"]
    found = judged(out, f"{held_out}:label")
    count = found["judged"]
    assert (
        f"tf-idf: words and logistic regression, learnt from {learnt} of the {learnt} rows that the model learnt from, "
        f"asked about {count} of {count} judged"
    ) in found["notes"]
    assert found["baselines"]["tf-idf"]["accuracy"]["value"] > 0.9, "the words tell the topic"

    write(source, rows(seed=6))
    later = judged(out, f"{held_out}:label")["notes"]
    assert any(
        note.startswith("the baseline of words could not learn from the model's rows: the files") for note in later
    )
    assert any("every label needs 5 documents" in note for note in later), "the folds of 16 rows are tried"


def test_who_judges_by_what_was_learnt_is_told(tmp_path: Path, source: Path, start: str) -> None:
    tree = record(train("classify", source, tmp_path / "m", "steps=1", flags=("--model", start)))
    notes = judged(run("classify", source, tmp_path / "out", tmp_path / "m"), f"{source}:label")["notes"]
    learnt = tree["composition"]["parts"]["train"]
    assert any(note.startswith(f"the model has learnt from {learnt} of 160 documents") for note in notes)
    assert any("5-fold on 160" in note for note in notes), "a baseline that has seen none of what it is asked about"


def damaged(model: Path) -> None:
    (model / "training.json").write_text("{")


def trained_again(model: Path) -> None:
    weights = model / "model.safetensors"
    tree = json.loads((model / "training.json").read_text())
    tree["files"]["model.safetensors"] = "0" * 64
    (model / "training.json").write_text(json.dumps(tree))
    assert weights.is_file()


@pytest.mark.parametrize(
    ("change", "said"), [(damaged, "cannot be read"), (trained_again, "another model than the one")]
)
def test_where_nobody_can_tell_a_note_says_why(
    change: Callable[[Path], None], said: str, tmp_path: Path, source: Path, start: str
) -> None:
    held_out, model = tmp_path / "test.parquet", tmp_path / "m"
    record(train("classify", source, model, "steps=1", flags=("--model", start, "--held-out", held_out)))
    out = run("classify", held_out, tmp_path / "out", model)
    change(model)
    assert any(said in note for note in judged(out, f"{held_out}:label")["notes"])


def test_ids_that_are_there_twice_tell_nothing(tmp_path: Path, start: str) -> None:
    columns = rows()
    columns["id"] = [f"r{i % 80}" for i in range(160)]
    source = write(tmp_path / "rows.parquet", columns)
    record(train("ner", source, tmp_path / "m", "steps=1", flags=("--model", start)))
    entities = [[{"label": "PKG", "start": 0, "end": 4}]]
    columns = {"truth": entities, "entities": entities}
    out = output(tmp_path / "out", "ner", columns, texts=["some text"], model=str(tmp_path / "m"))
    found = judged(out, "truth")
    assert found["names"] == {}
    assert any("ids of the rows that the model learnt from are not unique" in note for note in found["notes"])


def test_names_that_were_learnt_are_told_from_new_ones(tmp_path: Path, source: Path, start: str) -> None:
    held_out = tmp_path / "test.parquet"
    record(train("ner", source, tmp_path / "m", "steps=1", flags=("--model", start, "--held-out", held_out)))
    texts = ["libgames and libnew here"] * 4
    known, new = ({"label": "PKG", "start": a, "end": b} for a, b in ((0, 8), (13, 19)))
    stray = {"label": "PKG", "start": 9, "end": 12}  # "and": an answer of no name that was learnt
    truth = [[known, new]] * 4
    answers = [[known, new], [known], [known, stray], []]
    columns = {"truth": truth, "entities": answers}
    out = output(tmp_path / "out", "ner", columns, texts=texts, model=str(tmp_path / "m"))
    found = judged(out, "truth")["names"]
    f1 = {name: part["metrics"]["strict_micro_f1"]["value"] for name, part in found.items()}
    assert [found[name]["entities"] for name in ("learnt", "new")] == [4, 4]
    assert f1["learnt"] == pytest.approx(2 * 3 / (3 + 4))
    assert f1["new"] == pytest.approx(2 * 1 / (2 + 4))
    shown = invoke("evaluate", out, "--labels", "truth").output
    assert "entities whose names are new (4)" in shown


def test_another_model_has_learnt_from_nothing_here(tmp_path: Path) -> None:
    entities = [[{"label": "PKG", "start": 0, "end": 4}]]
    out = output(tmp_path / "out", "ner", {"truth": entities, "entities": entities}, texts=["some text"])
    assert judged(out, "truth")["names"] == {}
