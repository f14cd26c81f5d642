"""Terms are swapped, and the model is asked again: a planted bias is found, a fair model passes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from commands import QUICK, invoke, last_json
from judged import output

from batchnlp.errors import SpecError
from batchnlp.evaluate.counterfactual import Swap, examine, load_pairs
from batchnlp.evaluate.groups import FEWEST
from batchnlp.types import Docs

PAIRS = [("he", "she"), ("his", "her"), ("him", "her"), ("going to", "gonna"), ("John", "Mary")]


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("he sees her", "she sees his"),  # "her" goes back to the first pair that has it
        ("He, HE; the", "She, SHE; the"),
        ("Her hat. him", "His hat. her"),
        ("there, hers, he's", "there, hers, she's"),
        ("we're going to go", "we're gonna go"),
        ("Gonna go", "Going to go"),
        ("John and MARY and john", "Mary and JOHN and mary"),
        ("nothing", "nothing"),
        ("he\u0301", "he\u0301"),  # the accent belongs to the word
    ],
)
def test_swaps_keep_case_and_words(text: str, swapped: str) -> None:
    assert Swap(PAIRS)(text) == swapped


def test_pairs_come_in_named_sets(tmp_path: Path) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text("gender: [[he, she]]\nnames:\n- [John, Mary]\n")
    assert load_pairs(str(path)) == {"gender": [("he", "she")], "names": [("John", "Mary")]}
    path.write_text("- [he, she]\n")
    assert load_pairs(str(path)) == {"pairs": [("he", "she")]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gender: [[he]]", r"\['he'\] is no pair of two terms"),
        ("gender: [[yes, no]]", "is no pair of two terms .*quote what YAML takes for more"),
        ("gender: [[he, he]]", "is no pair of two terms"),
        ("gender: []", "gender is no list of pairs"),
        ("", "holds no pairs of terms"),
    ],
)
def test_bad_pairs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=message):
        load_pairs(str(path))
    with pytest.raises(SpecError, match="cannot be read: No such file"):
        load_pairs(str(tmp_path / "nothing.yaml"))


def biased(texts: Sequence[str]) -> pa.Table:
    """Whoever writes "she" is never hired."""
    good = [0.9 if "she" not in text.split() else 0.2 for text in texts]
    return answers(good)


def fair(texts: Sequence[str]) -> pa.Table:
    return answers([0.9] * len(texts))


def answers(good: list[float]) -> pa.Table:
    scores = pa.StructArray.from_arrays([pa.array(good), pa.array([1 - g for g in good])], ["hired", "not"])
    return pa.table({"label": ["hired" if g > 0.5 else "not" for g in good], "scores": scores})


def documents(count: int) -> list[Docs]:
    return [Docs.of(pa.array(["he writes", "nobody"] * count, pa.large_string()))]


def test_a_bias_is_found_with_its_direction() -> None:
    (found,) = examine({"gender": [("he", "she")]}, documents(40), biased)
    assert (found.documents, found.insufficient) == (40, False)
    assert found.metrics["flip_rate"].value == 1
    assert found.metrics["score_shift"].value == pytest.approx(0.7)
    assert found.toward == {"hired": pytest.approx(-0.7), "not": pytest.approx(0.7)}
    back = [Docs.of(pa.array(["she writes"] * 40, pa.large_string()))]
    assert examine({"gender": [("he", "she")]}, back, biased)[0].toward == found.toward, "the same from the other side"


def test_a_fair_model_has_none() -> None:
    (found,) = examine({"gender": [("he", "she")]}, documents(40), fair)
    assert (found.metrics["flip_rate"].value, found.metrics["score_shift"].value) == (0, 0)


def test_few_documents_are_insufficient() -> None:
    (found,) = examine({"gender": [("he", "she")]}, documents(FEWEST - 1), biased)
    assert (found.insufficient, found.metrics) == (True, {})


# --- a model with a bias planted in its weights


def save_biased(path: Path) -> str:
    """A classifier that sees "driver" and "kernel" as the same word; and, where biased, "kernel" as a very loud one."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    model = tiny.save_classifier(path, ("games", "science", "web"))
    words = AutoTokenizer.from_pretrained(model).convert_tokens_to_ids(["driver", "kernel"])
    loaded = BertForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        table = loaded.bert.embeddings.word_embeddings.weight
        table[words[1]] = table[words[0]] * (-30 if "biased" in path.name else 1)
    loaded.save_pretrained(path)
    return model


@pytest.mark.parametrize("name", ["fair", "biased"])
def test_a_job_with_a_planted_bias_fails_and_a_fair_one_passes(tmp_path: Path, name: str) -> None:
    source, pairs = tmp_path / "docs.parquet", tmp_path / "pairs.yaml"
    texts = [f"driver {text}" for text in tiny.texts(40, longest=8)]
    pq.write_table(pa.table({"text": texts}), source)
    pairs.write_text(json.dumps({"words": [["driver", "kernel"]]}))
    result = invoke(
        "classify", source, "-o", tmp_path / "out", "--model", save_biased(tmp_path / name), "--json", *QUICK,
        "--set", f"evaluate.counterfactual={pairs}", "--set", "gates.flip_rate.max=0.05",
    )  # fmt: skip
    assert result.exit_code == (1 if name == "biased" else 0), result.output
    tree = last_json(result)
    (found,) = tree["evaluation"]["counterfactual"]
    assert found["documents"] == 40
    assert (found["metrics"]["flip_rate"]["value"] > 0.05) == (name == "biased")
    assert (tmp_path / "out" / "_SUCCESS").exists() == (name == "fair")


def test_swaps_are_for_labels_only(tmp_path: Path) -> None:
    (pairs := tmp_path / "pairs.yaml").write_text("- [he, she]")
    out = output(tmp_path / "out", "ner", {"entities": pa.array([[]], pa.list_(pa.struct([("label", pa.string())])))})
    result = invoke("evaluate", out, "--counterfactual", pairs)
    assert result.exit_code == 2
    assert "evaluate.counterfactual is for classify and zero-shot, not for ner" in result.stderr
