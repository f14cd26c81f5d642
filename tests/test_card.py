"""The model card: read back by the hub's own library, and led back to by the runs with the model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import tiny
import yaml
from commands import Corpus, classify, last_json
from test_evaluate import evaluate, grouped

from batchnlp.engine.judge import judge_output
from batchnlp.evaluate.card import Card, Data, Results, render, sha256_of, write
from batchnlp.evaluate.outputs import Output
from batchnlp.job.load import build_spec


def card(tmp_path: Path) -> Card:
    out = grouped(tmp_path / "judged", biased=True)
    evaluate(out, "--labels", "truth")
    output = Output.at(str(out))
    made = judge_output(build_spec(output.tree["spec"], ["evaluate.labels=truth", "evaluate.groups=lang"]), output)
    return Card(
        name="sections", task="classify", intended_use="Sections of packages | and nothing else.",
        data=Data("debian", "f" * 64, {"train": 1000, "test": 200}, {"duplicates <removed>": 12}),
        tokenizer="WordPiece, `t1`", parameters=22_000_000, commands=["batchnlp train classify spec.yaml"],
        versions={"torch": "2"}, base_model="org/base", license="apache-2.0", languages=["en"], settings={"epochs": 3},
        results=[Results.of(made, "debian, test")], limitations="English only.",
    )  # fmt: skip


def test_a_card_says_all_of_it(tmp_path: Path) -> None:
    text = render(card(tmp_path))
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    tree = yaml.safe_load(head)
    assert (tree["pipeline_tag"], tree["base_model"], tree["license"]) == (
        "text-classification",
        "org/base",
        "apache-2.0",
    )
    (entry,) = tree["model-index"]
    values = {m["type"]: m["value"] for result in entry["results"] for m in result["metrics"]}
    assert values["accuracy"] == 0.8
    assert entry["results"][0]["dataset"]["name"] == "debian, test"
    for part in (
        "f" * 64,
        "22,000,000",
        "batchnlp train classify spec.yaml",
        "| epochs | 3 |",
        "| torch | 2 |",
        "English only.",
    ):
        assert part in body
    assert "| metric | this model | majority | tf-idf |" in body
    assert "| accuracy | 0.8000 (0." in body
    assert "| fr | 20 | insufficient |" in body
    assert "| demographic\\_parity" not in body
    assert "| demographic_parity_difference | 0.5000 (" in body
    assert "duplicates &lt;removed>" in body, "what others wrote is no markup"


def test_a_run_records_the_card_of_its_model(tmp_path: Path, corpus: Corpus) -> None:
    model = tiny.save_classifier(tmp_path / "model", ("a", "b"))
    assert sha256_of(model) is None
    first = last_json(classify(corpus(), tmp_path / "one", model, "--json"))
    digest = write(model, card(tmp_path))
    assert digest == sha256_of(model) == hashlib.sha256((tmp_path / "model" / "README.md").read_bytes()).hexdigest()
    second = last_json(classify(tmp_path / "corpus", tmp_path / "two", model, "--json"))
    assert second["run"] == first["run"], "a card changes no result"
    (manifest,) = (tmp_path / "two" / "_batchnlp").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["model"]["card"] == digest
    (manifest,) = (tmp_path / "one" / "_batchnlp").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["model"]["card"] == ""
