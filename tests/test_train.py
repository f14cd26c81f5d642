"""Training from the command line: what comes out is what jobs run, and what cannot be learnt is said before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import QUICK, invoke, rows_of
from learning import SPANS, record, rows, save_encoder, train, write

from batchnlp.errors import SpecError
from batchnlp.job.load import build_train, load_train
from batchnlp.job.schema import SCHEMAS, schema_text

JOBS = Path(__file__).parents[1] / "jobs"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "rows.parquet", rows())


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("start"))


def test_the_schemas_that_ship_are_those_of_the_specs() -> None:
    for name in SCHEMAS:
        assert (JOBS / name).read_text(encoding="utf-8") == schema_text(name), f"make schema writes jobs/{name}"


# --- classify


def test_a_classifier_learns_and_runs_as_a_job(tmp_path: Path, source: Path, start: str) -> None:
    out, held_out = tmp_path / "model", tmp_path / "test.parquet"
    result = train("classify", source, out, "epochs=8", "learning_rate=0.003", "batch_size=16", "patience=null",
                   flags=("--model", start, "--group-column", "owner", "--held-out", held_out))  # fmt: skip
    tree = record(result)
    assert tree["labels"] == ["data", "fonts", "games"]
    assert tree["composition"]["rows"] == 160
    assert sum(tree["composition"]["parts"].values()) == 160
    assert tree["result"]["metrics"]["test"]["accuracy"] == 1.0
    assert tree["facts"]["start"]["weights"]
    lines = [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < losses[0]
    assert not (out / "_batchnlp" / "train").exists(), "checkpoints go when all is done"
    run = invoke("classify", held_out, "-o", tmp_path / "run", "--model", out, "--id-column", "id", *QUICK)
    assert run.exit_code == 0, run.output
    truth = dict(zip(*(pq.read_table(held_out)[name].to_pylist() for name in ("id", "label")), strict=True))
    assert {row["id"]: row["label"] for row in rows_of(tmp_path / "run")} == truth
    card = (out / "README.md").read_text()
    assert f"batchnlp train classify {source} -o {out}" in card, "the command that made it"
    assert "macro_f1" in card
    parts = pq.read_table(out / "split.parquet").to_pylist()
    assert {row["id"] for row in parts if row["part"] == "test"} == truth.keys()
    side: dict[str, set[str]] = {}
    for row in parts:
        side.setdefault(f"owner{int(row['id'][1:]) // 2}", set()).add(row["part"])
    assert all(len(found) == 1 for found in side.values()), "rows of one owner stay on one side"


def test_the_same_command_again_does_nothing_and_another_one_is_refused(
    tmp_path: Path, source: Path, start: str
) -> None:
    out, few = tmp_path / "model", ("steps=2", "batch_size=8")
    first = record(train("classify", source, out, *few, flags=("--model", start)))
    weights = (out / "model.safetensors").stat().st_mtime_ns
    again = train("classify", source, out, *few, flags=("--model", start))
    assert record(again)["already"]
    assert record(again)["fingerprint"] == first["fingerprint"]
    assert (out / "model.safetensors").stat().st_mtime_ns == weights
    other = train("classify", source, out, *few, "seed=4", flags=("--model", start))
    assert other.exit_code == 2
    assert "holds another training (spec.seed changed)" in other.stderr


def test_balanced_weights_and_lora_are_ordinary_models_when_done(tmp_path: Path, source: Path, start: str) -> None:
    from safetensors import safe_open

    tree = record(train("classify", source, tmp_path / "m", "steps=4", "lora=2", "class_weights=balanced",
                        "batch_size=8", "accumulate=2", flags=("--model", start)))  # fmt: skip
    assert 0 < tree["result"]["trained_parameters"] < tree["result"]["parameters"] / 10
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert not [name for name in names if "lora" in name]
    run = invoke("classify", source, "-o", tmp_path / "run", "--model", tmp_path / "m", *QUICK)
    assert run.exit_code == 0, run.output


def test_early_stopping_keeps_the_best_checkpoint(tmp_path: Path, source: Path, start: str) -> None:
    tree = record(train("classify", source, tmp_path / "m", "steps=60", "evaluate_every=2", "patience=2",
                        "learning_rate=1e-9", flags=("--model", start)))  # fmt: skip
    told = tree["result"]
    assert told["stopped_early"]
    assert told["best_step"] == 2
    assert told["steps"] == 6, "nothing gets better, so it waits for two validations more"


# --- bad input, refused before anything is learnt

BAD: dict[str, tuple[str, dict[str, object], tuple[str, ...], str]] = {
    "no label column": ("classify", {"label": None}, (), "has no column label"),
    "text under id": ("classify", {"text": None}, (), "has no column text"),
    "missing labels": ("classify", {"label": [None, "a"] * 20}, (), "20 null_label"),
    "a single class": ("classify", {"label": ["a"] * 40}, (), "all rows have the label 'a'"),
    "a label never learnt": ("classify", {"label": ["a", "b"] * 19 + ["c", "d"]}, ("labels=[a,b,e]",), "has the label 'e'"),
    "numbers with fractions": ("classify", {"label": [0.5] * 40}, (), "is double"),
    "spans that cross": ("ner", {"entities": [[(0, 4), (2, 6)]] * 40}, (), "40 spans_cross"),
    "spans outside": ("ner", {"entities": [[(0, 4000)]] * 40}, (), "40 span_outside"),
    "spans of nothing": ("ner", {"entities": [[(3, 3)]] * 40}, (), "40 empty_span"),
    "no spans at all": ("ner", {"entities": [[]] * 40}, (), "no row to learn from has an entity"),
    "spans as text": ("ner", {"entities": ["x"] * 40}, (), "must be list<struct<label, start, end>>"),
    "empty targets": ("seq2seq", {"target": ["", " "] * 20}, (), "20 blank_target, 20 empty_target"),
    "targets as numbers": ("seq2seq", {"target": [1] * 40}, (), "is int64, not text"),
    "no pairs": ("embed", {"pair": [None] * 40}, (), "40 null_pair"),
    "too few rows": ("classify", {}, ("split.test=0.0001",), "the test part has none of the"),
    "a shape for a classifier": ("classify", {}, ("shape=llama-mini",), "shape belongs to lm and seq2seq"),
    "an unknown key": ("classify", {}, ("epoch=3",), "did you mean epochs?"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_remedy(case: str, tmp_path: Path, start: str, bart: str) -> None:
    kind, changes, settings, said = BAD[case]
    columns = dict(rows(40))
    columns |= {key: list(value) for key, value in changes.items() if isinstance(value, list)}
    spans = columns["entities"]
    if isinstance(spans[0], list):
        columns["entities"] = [
            [s if isinstance(s, dict) else {"label": "P", "start": s[0], "end": s[1]} for s in some] for some in spans
        ]
    gone = [key for key, value in changes.items() if value is None]
    arrays = {
        key: pa.array(value, SPANS) if key == "entities" and isinstance(value[0], list) else pa.array(value)
        for key, value in columns.items()
        if key not in gone
    }
    pq.write_table(pa.table(arrays), tmp_path / "rows.parquet")
    out = tmp_path / "model"
    result = train(
        kind, tmp_path / "rows.parquet", out, *settings, flags=("--model", bart if kind == "seq2seq" else start)
    )
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert result.stderr.rstrip().endswith(")") or "belongs to" in said, "every error says what to do"
    assert not (out / "model.safetensors").exists()


def test_a_label_that_is_only_held_out_is_refused(tmp_path: Path, start: str) -> None:
    columns = rows(60)
    owners = [f"owner{i // 10}" for i in range(60)]
    parts = {}
    for name in sorted(set(owners)):
        from batchnlp.train.corpus import _place
        from batchnlp.train.duplicates import digests

        parts[name] = _place(digests(pa.array([name], pa.large_string()))[0], 0)
    held = min(parts, key=lambda name: parts[name])
    columns["owner"] = owners
    columns["label"] = [
        "rare" if owner == held else label for owner, label in zip(owners, columns["label"], strict=True)
    ]
    source = write(tmp_path / "rows.parquet", columns)
    share = parts[held] + 1e-6
    result = train("classify", source, tmp_path / "m", f"split.test={share}", "split.validation=0",
                   flags=("--model", start, "--group-column", "owner"))  # fmt: skip
    assert result.exit_code == 2
    assert "the label 'rare' is in the test part (10 rows), and not in train" in result.stderr


def test_labels_that_no_row_has_are_told(tmp_path: Path, source: Path, start: str) -> None:
    result = train("classify", source, tmp_path / "m", "labels=topics.txt", flags=("--model", start))
    assert result.exit_code == 2, result.output
    assert (
        "no row has one of the labels to learn (topics.txt) (check how the column label writes them)" in result.stderr
    )


def test_a_few_rows_without_label_are_left_out_and_counted(tmp_path: Path, start: str) -> None:
    columns = rows(100)
    columns["label"][7] = None
    columns["text"][8] = " ".join(f"word{i}" for i in range(90))
    source = write(tmp_path / "rows.parquet", columns)
    result = train("classify", source, tmp_path / "m", "steps=1", "max_failed=1", flags=("--model", start))
    tree = record(result)
    assert tree["composition"]["unusable"] == {"null_label": 1}
    assert sum(part["truncated"] for part in tree["result"]["examples"].values()) == 1
    made = tree["composition"]
    assert made["rows"] == sum(made["parts"].values()) + 1 + made["copies"] + made["near_copies"]
    assert " + 1 left out (1 null_label)" in result.stderr
    assert "1 texts cut to max_length" in result.stderr, "nothing is cut in silence"


# --- the spec


def test_a_file_is_the_command(tmp_path: Path, source: Path, start: str) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(json.dumps({
        "kind": "classify", "model": start, "source": {"path": str(source), "id": "id"},
        "output": {"path": str(tmp_path / "a")}, "steps": 1, "device": "cpu", "dtype": "float32", "seed": 3,
    }))  # fmt: skip
    from_file = invoke("train", "run", file, "--json")
    one_off = train("classify", source, tmp_path / "b", "steps=1", flags=("--model", start))
    assert record(from_file)["fingerprint"] == record(one_off)["fingerprint"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert load_train(file, ["epochs=2"]).epochs == 2


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "classify"}, "model is needed for classify"),
        ({"kind": "lm"}, "model or shape is needed for lm"),
        ({"kind": "lm", "shape": "llama-mini"}, "tokenizer is needed for a shape"),
        ({"kind": "lm", "model": "m", "config": {"x": 1}}, "config belongs to a shape"),
        ({"kind": "tokenizer", "model": "m"}, "model belongs to lm and classify and ner and seq2seq and embed"),
        ({"kind": "classify", "model": "m", "batch_size": 8, "accumulate": 3}, "accumulate does not divide batch_size"),
        ({"kind": "classify", "model": "m", "split": {"validation": 0.5, "test": 0.5}}, "leave nothing to learn from"),
    ],
)
def test_a_spec_says_what_is_wrong_with_it(keys: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        build_train({"source": {"path": "x"}, "output": {"path": "y"}, **keys})
