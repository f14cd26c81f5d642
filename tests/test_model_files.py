"""Models that must not, or cannot, be loaded are refused, and a hash tells their weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.errors import ModelError
from batchnlp.job.task import TaskSpec
from batchnlp.tasks.classify import Classify
from batchnlp.types import Resolved

Damage = Callable[[Path], None]


def edit(name: str, **keys: Any) -> Damage:
    def apply_to(path: Path) -> None:
        tree = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**tree, **keys}))

    return apply_to


def only_pickles(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


REFUSED: dict[str, tuple[Damage, str]] = {
    "pickles only": (only_pickles, r"only as pickles \(pytorch_model\.bin\).*save_pretrained"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), r"has no weights.*\*\.safetensors"),
    "auto_map in the config": (edit("config.json", auto_map={"AutoModel": "evil.Model"}), r"auto_map in config\.json"),
    "auto_map in the tokenizer": (
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        r"auto_map in tokenizer_config\.json",
    ),
    "nested trust": (edit("config.json", inner={"trust_remote_code": True}), r"trust_remote_code in config\.json"),
    "python files": (lambda p: (p / "modeling_evil.py").write_text("boom"), r"brings code \(modeling_evil\.py\)"),  # type: ignore[dict-item, return-value]
    "no tokenizer": (no_tokenizer, r"has no tokenizer.*needs a tokenizer\.json"),
    "no config": (lambda p: (p / "config.json").unlink(), r"has no config\.json"),
    "broken config": (lambda p: (p / "config.json").write_text("{"), r"config\.json cannot be read"),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_or_must_not_be_loaded(name: str, classifier: str, tmp_path: Path) -> None:
    damage, message = REFUSED[name]
    path = Path(shutil.copytree(classifier, tmp_path / "model"))
    damage(path)
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(str(path), None)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_code_in_the_files_of_a_module_is_refused(encoder: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(encoder, tmp_path / "model"))
    edit("1_Pooling/config.json", auto_map={"x": "y"})(path)
    with pytest.raises(ModelError, match="auto_map"):
        resolve_model(str(path), None)


def test_a_module_nobody_knows_is_refused(encoder: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(encoder, tmp_path / "model"))
    modules = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([*modules, {"type": "evil.module.Pwn", "path": "9"}]))
    with pytest.raises(ModelError, match=r"module Pwn.*known: Pooling, Dense, Normalize"):
        resolve_model(str(path), None)


def test_an_encoder_is_no_classifier(encoder: str) -> None:
    with pytest.raises(ModelError, match=r"no classification head \(architectures: BertModel\)") as caught:
        Classify(resolve_model(encoder, None), TaskSpec(kind="classify", model=encoder))
    assert caught.value.exit_code == 2
    assert "zero-shot or embed" in caught.value.hint


def test_a_head_without_weights_is_refused_instead_of_drawn_at_random(classifier: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(classifier, tmp_path / "headless"))
    weights = {k: v for k, v in load_file(path / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the weights classifier\.bias"):
        TorchEncoder(resolve_model(str(path), None), Resolved("cpu", "float32", "torch", 3000, ""), "scores", 2)


def test_a_wrong_path_names_the_nearest(classifier: str) -> None:
    wrong = Path(classifier).with_name("clasifier")
    with pytest.raises(ModelError, match=r"did you mean .*classifier"):
        resolve_model(str(wrong), None)


def test_a_hub_name_without_network_is_one_clear_line() -> None:
    with pytest.raises(ModelError, match="no model nobody/nothing-of-this-name") as caught:
        resolve_model("nobody/nothing-of-this-name", None)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(ModelError, match="pip install no-such-model"):
        resolve_model("package:no_such_model", None)


def test_the_weights_hash_follows_the_weights(classifier: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(classifier, tmp_path / "other"))
    before = resolve_model(str(path), None).weights
    assert before == resolve_model(classifier, None).weights, "a copy is the same model"
    weights = load_file(path / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert resolve_model(str(path), None).weights != before
