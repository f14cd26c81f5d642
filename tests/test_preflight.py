"""What would end a run half-way is refused before it starts."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from huggingface_hub import errors
from transformers import AutoConfig, AutoModel

import batchnlp
from batchnlp.backends.model_files import OFFSET_POSITIONS, resolve_model
from batchnlp.engine.planner import Prepared, prepare
from batchnlp.errors import ModelError, SourceError
from batchnlp.job.load import build_spec


def answer(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    """An error of the hub as it comes from an answer over the net."""
    response = types.SimpleNamespace(headers={}, request=None)
    return kind("500 for page", response=response)  # type: ignore[arg-type]


def preflight(path: Path, model: str, kind: str = "classify", **more: Any) -> Prepared:
    """`more` has flags with `__` for the dot."""
    tree = {
        "source": {"path": str(path)}, "task": {"kind": kind, "model": model}, "output": {"path": str(path) + ".out"},
    }  # fmt: skip
    return prepare(build_spec(tree, flags={key.replace("__", "."): value for key, value in more.items()}))


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table({"text": ["a game"], **columns}), path / "a.parquet")
    return path / "a.parquet"


# --- columns


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(2), pa.dictionary(pa.int8(), pa.binary())])
def test_a_binary_id_is_refused(tmp_path: Path, classifier: str, kind: pa.DataType) -> None:
    path = table(tmp_path, key=pa.array([b"\xff\x00"], pa.binary()).cast(kind))
    with pytest.raises(
        SourceError, match=r"the id column key is .*binary.*\(choose numbers or strings as source\.id\)"
    ):
        preflight(path, classifier, source__id="key")


@pytest.mark.parametrize("value", [b"\xff", 0.5, ["a"], {"a": 1}], ids=str)
def test_what_makes_no_directory_name_is_no_partition(tmp_path: Path, classifier: str, value: Any) -> None:
    path = table(tmp_path, key=[value])
    with pytest.raises(SourceError, match=r"output\.partition_by names 'key', which is .*partition by strings"):
        preflight(path, classifier, source__keep="key", output__partition_by="key")


def test_strings_whole_numbers_booleans_and_dates_are_partitions(tmp_path: Path, classifier: str) -> None:
    day = pa.array([0], pa.int32()).cast(pa.date32())
    path = table(tmp_path, s=pa.array(["x"]).dictionary_encode(), n=[1], b=[True], d=day, none=pa.nulls(1))
    preflight(path, classifier, source__keep="s,n,b,d,none", output__partition_by="s,n,b,d,none")


def test_a_kept_column_that_parquet_cannot_hold_is_named(tmp_path: Path, classifier: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a game", "meta": {}}\n')
    with pytest.raises(
        SourceError, match=r"the column 'meta' is struct<>, which Parquet cannot hold: .*no child field"
    ):
        preflight(tmp_path / "a.jsonl", classifier, source__keep="meta")


# --- models


def test_embed_with_a_decoder_whose_width_has_another_name(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=30522, n_embd=16, n_layer=1, n_head=2, n_positions=32)).save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    got = batchnlp.apply("embed", ["a game", "of the new kernel"], model=str(tmp_path), engine={"dtype": "float32"})
    assert got.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    assert got["error"].null_count == 2


def test_embed_with_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    config = T5Config(vocab_size=30522, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="has a decoder beside its encoder"):
        preflight(table(tmp_path), str(tmp_path), "embed")


@pytest.mark.parametrize(
    ("kind", "pad"),
    [
        *((kind, pad) for kind in sorted(OFFSET_POSITIONS - {"layoutlmv3", "xmod"}) for pad in (1, 3)),
        ("roberta", -1), ("bert", 0), ("electra", 3), ("distilbert", 3), ("nystromformer", 1),
    ],
)  # fmt: skip
def test_the_limit_is_exactly_what_the_model_has_positions_for(tmp_path: Path, kind: str, pad: int) -> None:
    """One less would cut documents for nothing, one more would end every long document."""
    sizes = {
        "vocab_size": 30522, "hidden_size": 24, "dim": 24, "hidden_dim": 24, "intermediate_size": 24, "embedding_size": 24,
        "num_hidden_layers": 1, "n_layers": 1, "num_attention_heads": 2, "n_heads": 2, "attention_window": 4,
        "entity_vocab_size": 9,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes, max_position_embeddings=40, pad_token_id=pad, eos_token_id=102)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    limit = resolve_model(str(tmp_path), None).max_length
    got = batchnlp.apply("embed", ["game " * 100, "short"], model=str(tmp_path), engine={"dtype": "float32"})
    assert got["error"].to_pylist() == [None, None]
    with torch.inference_mode():
        model = AutoModel.from_pretrained(tmp_path).eval()
        model(input_ids=torch.full((1, limit), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 7))


def test_a_limit_of_the_tokenizer_can_be_raised_where_positions_have_none(classifier: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(classifier, tmp_path / "model"))
    tree = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**tree, "model_type": "deberta-v2"}))
    assert resolve_model(str(path), None).max_length == tiny.LIMIT
    assert resolve_model(str(path), None, 500).max_length == 500


def test_a_model_file_that_cannot_be_read_is_named(tmp_path: Path, classifier: str) -> None:
    shutil.copytree(classifier, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"model cannot be read: No such file or directory: .*/nowhere \(make it"):
        resolve_model(str(tmp_path / "model"), None)


# --- the hub


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (errors.LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder"), "HF_HUB_OFFLINE is set"),
        (errors.OfflineModeIsEnabled("Cannot reach https://..."), "HF_HUB_OFFLINE is set"),
        (answer(errors.RepositoryNotFoundError), "a private one needs HF_TOKEN"),
        (answer(errors.GatedRepoError), "agreed to its terms"),
        (answer(errors.RevisionNotFoundError), "but not that revision"),
        (answer(errors.HfHubHTTPError), "the hub fails: 500 for page"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_hub_says_comes_to_one_clause(error: Exception, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"^no model org/none at revision main \(") as caught:
        resolve_model("org/none", "main")
    assert hint in str(caught.value)
    assert len(str(caught.value)) < 200
