"""seq2seq, ner, embed: each learns something, and a job runs what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import QUICK, invoke, rows_of
from learning import record, rows, save_encoder, train, write

from batchnlp.text.encode import Tokenizer
from batchnlp.train.examples import NOTHING


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "rows.parquet", rows())


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("start"))


def test_a_tagger_finds_what_it_was_shown(tmp_path: Path, source: Path, start: str) -> None:
    held_out = tmp_path / "test.parquet"
    tree = record(train("ner", source, tmp_path / "m", "epochs=8", "learning_rate=0.005", "batch_size=16",
                        flags=("--model", start, "--held-out", held_out)))  # fmt: skip
    assert tree["labels"] == ["O", "B-PKG", "I-PKG"]
    assert tree["result"]["metrics"]["test"]["f1"] > 0.95
    assert tree["result"]["examples"]["train"]["spans_between_tokens"] == 0
    run = invoke("ner", held_out, "-o", tmp_path / "run", "--model", tmp_path / "m", "--id-column", "id", *QUICK)
    assert run.exit_code == 0, run.output
    found = {
        row["id"]: [(e["label"], e["start"], e["end"]) for e in row["entities"]] for row in rows_of(tmp_path / "run")
    }
    table = pq.read_table(held_out).to_pylist()
    right = sum(found[row["id"]] == [("PKG", e["start"], e["end"]) for e in row["entities"]] for row in table)
    assert right >= 0.9 * len(table)


def test_labels_are_on_the_tokens_of_their_spans(start: str, tmp_path: Path) -> None:
    """Windows too: a long text's spans are labelled once, in the window that owns them."""
    from batchnlp.job.train import TrainSpec
    from batchnlp.train.corpus import Rows
    from batchnlp.train.ner import Ner

    text = " ".join(["word"] * 30 + ["libgames"] + ["word"] * 60 + ["libfonts"] + ["word"] * 9)
    places = [{"label": "P", "start": text.index(w), "end": text.index(w) + 8} for w in ("libgames", "libfonts")]
    spec = TrainSpec.model_validate({"kind": "ner", "model": start, "source": {"path": "x"}, "output": {"path": "y"}})
    kind = Ner(spec)
    kind.labels = ("O", "B-P", "I-P")
    texts = pa.array([text], pa.large_string())
    found = kind.encode(Rows(pa.array([0]), texts, pa.table({"entities": [places]})), train=True)
    assert len(found) > 2
    assert found.targets is not None
    owned = found.targets.flat[found.targets.flat != NOTHING]
    tokenizer = Tokenizer.load(start)
    assert len(owned) == len(tokenizer.encode(texts).ids), "each token is learnt once"
    ids = found.inputs.flat[found.targets.flat > 0].tolist()
    pieces = tokenizer.encode(pa.array(["libgames libfonts"], pa.large_string())).ids.tolist()
    assert ids == pieces
    assert owned[owned > 0].tolist().count(1) == 2


def share_right(folder: Path) -> float:
    """Of the held-out rows `test.parquet`, those whose target the model `m` writes, as a job."""
    run = invoke("summarize", folder / "test.parquet", "-o", folder / "run", "--model", folder / "m", "--id-column", "id",
                 "--max-new-tokens", 12, *QUICK)  # fmt: skip
    assert run.exit_code == 0, run.output
    truth = {row["id"]: row["target"] for row in pq.read_table(folder / "test.parquet").to_pylist()}
    found = {row["id"]: row["summary"] for row in rows_of(folder / "run")}
    return sum(found[key] == value for key, value in truth.items()) / len(truth)


def test_a_summariser_learns_and_runs_as_a_job(tmp_path: Path, source: Path) -> None:
    words = tmp_path / "tokenizer"
    assert train("tokenizer", source, words, "vocab_size=320").exit_code == 0
    held_out = tmp_path / "test.parquet"
    settings = ("shape=t5-mini", "config={d_model: 64, d_kv: 16, d_ff: 128}", f"tokenizer={words}", "max_length=128",
                "epochs=14", "learning_rate=0.01", "batch_size=16", "prefix='title: '", "patience=null",
                "evaluate_every=56")  # fmt: skip
    tree = record(train("seq2seq", source, tmp_path / "m", *settings, flags=("--held-out", held_out)))
    assert tree["result"]["metrics"]["test"]["loss"] < 0.2
    assert share_right(tmp_path) >= 0.8, "the prefix is applied where it was learnt"


def test_an_encoder_becomes_an_encoder_decoder(tmp_path: Path, source: Path, start: str) -> None:
    held_out = tmp_path / "test.parquet"
    settings = ("max_length=48", "epochs=30", "learning_rate=0.003", "warmup=0.2", "batch_size=16", "patience=null",
                "evaluate_every=120", "dropout=0")  # fmt: skip
    tree = record(train("seq2seq", source, tmp_path / "m", *settings, flags=("--model", start, "--held-out", held_out)))
    assert tree["result"]["metrics"]["test"]["loss"] < 0.2
    assert share_right(tmp_path) >= 0.8, "written to its end, and no further"


def test_no_target_is_longer_than_the_decoder_has_places(tmp_path: Path, start: str) -> None:
    columns = rows()
    columns["target"] = ["word " * 200] * 160
    source = write(tmp_path / "rows.parquet", columns)
    tree = record(train("seq2seq", source, tmp_path / "m", "steps=1", "max_target_length=300", "batch_size=4",
                        flags=("--model", start)))  # fmt: skip
    assert tree["result"]["examples"]["train"]["targets_truncated"] == tree["composition"]["parts"]["train"]


def test_its_encoder_is_the_encoder(start: str) -> None:
    import torch
    from transformers import AutoModel

    from batchnlp.train.warm import encoder_decoder

    encoder = AutoModel.from_pretrained(start).eval()
    model = encoder_decoder(encoder, begin=2, end=3, pad=0).eval()
    ids, mask = torch.arange(5, 25).reshape(2, 10), torch.ones(2, 10, dtype=torch.long)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        found = model.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(found[mask > 0], expected[mask > 0], atol=1e-3)
    names = {name for name, weight in model.named_parameters() if "encoder_attn" in name and weight.std() > 0}
    assert len(names) >= 3 * encoder.config.num_hidden_layers, "the decoder looks at the source from the first step on"


@pytest.mark.parametrize("kind", ["start", "bart", "llama", "t5"])
def test_without_dropout_learning_is_what_judging_is(kind: str, request: pytest.FixtureRequest) -> None:
    import torch
    import transformers

    from batchnlp.train.fit import set_dropout

    heads = {"start": "AutoModel", "llama": "AutoModelForCausalLM"}
    head = getattr(transformers, heads.get(kind, "AutoModelForSeq2SeqLM"))
    model = head.from_pretrained(request.getfixturevalue(kind))
    set_dropout(model, 0.4)
    inputs = {"input_ids": torch.arange(5, 25).reshape(2, 10)}
    inputs |= {"labels": inputs["input_ids"]} if kind != "start" else {}
    with torch.no_grad():
        model.eval()
        judged = model(**inputs)
        model.train()
        assert not torch.equal(states(model(**inputs)), states(judged)), "it was there"
        set_dropout(model, 0.0)
        assert torch.allclose(states(model(**inputs)), states(judged), atol=1e-5)


def states(outputs: Any) -> Any:
    """What a model with or without a head tells."""
    return outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]


@pytest.mark.parametrize("model", ["bart", "t5"])
def test_encoder_decoders_go_on_learning(
    model: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(model)
    tree = record(train("seq2seq", source, tmp_path / "m", "steps=3", "lora=2", "batch_size=4", "max_target_length=4",
                        flags=("--model", path)))  # fmt: skip
    assert tree["result"]["examples"]["train"]["targets_truncated"] > 0
    run = invoke("summarize", source, "-o", tmp_path / "run", "--model", tmp_path / "m", "--max-new-tokens", 3,
                 "--id-column", "id", "--set", "source.filter=[[id, <, r005]]", *QUICK)  # fmt: skip
    assert run.exit_code == 0, run.output


def test_pairs_come_near_each_other(tmp_path: Path, source: Path, start: str, encoder: str) -> None:
    tree = record(train("embed", source, tmp_path / "m", "steps=40", "evaluate_every=10", "learning_rate=0.003",
                        "patience=null", flags=("--model", start)))  # fmt: skip
    lines = [line for line in (tmp_path / "m" / "curves.jsonl").read_text().splitlines() if "eval_mrr" in line]
    assert len(lines) == 4
    assert tree["result"]["metrics"]["test"]["mrr"] > 0.3
    run = invoke("embed", source, "-o", tmp_path / "run", "--model", tmp_path / "m", "--id-column", "id", *QUICK)
    assert run.exit_code == 0, run.output
    row = rows_of(tmp_path / "run")[0]
    assert sum(x * x for x in row["embedding"]) == pytest.approx(1, abs=1e-3), "saved with its normalisation"
    kept = record(train("embed", source, tmp_path / "k", "steps=1", flags=("--model", encoder)))
    assert "modules.json" in kept["files"]
