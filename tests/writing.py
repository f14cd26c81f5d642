"""What the tests of the writing tasks share: the models by hand, with transformers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import batchnlp
from batchnlp.job.load import build_spec

ENGINE = {"device": "cpu", "dtype": "float32", "backend": "torch"}
TEXTS = ["The game server plays a network", "small", "Ünïcödé, naïve", "fast library without a kernel 7"]
LONG = "\n".join(f"{text}." for text in tiny.texts(30, longest=12, seed=4))
Corpus = Callable[..., Path]


def apply(kind: str, data: Any, model: str, **task: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batchnlp.apply(kind, data, model=model, engine=ENGINE, **task).to_pylist()
    return rows


@cache
def loaded(path: str) -> tuple[Any, Any]:
    seq2seq = json.loads((Path(path) / "config.json").read_text()).get("is_encoder_decoder")
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    return AutoTokenizer.from_pretrained(path), auto.from_pretrained(path).eval()


@torch.inference_mode()
def written(path: str, prompt: str, new: int, special: bool = True, **more: Any) -> str:
    """What the model writes after a prompt, by transformers alone."""
    tokenizer, model = loaded(path)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=special)
    out = model.generate(
        inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=new, do_sample=False, **more
    )
    start = 0 if model.config.is_encoder_decoder else inputs.input_ids.shape[1]
    return str(tokenizer.decode(out[0, start:], skip_special_tokens=True))


def length(path: str, text: str) -> int:
    return len(loaded(path)[0](text, add_special_tokens=False).input_ids)


def body(texts: list[str], **more: list[Any]) -> pa.Table:
    return pa.table({"body": texts, **more})


def spec(source: Path, model: str, tmp_path: Path, **task: Any) -> Any:
    return build_spec({
        "source": {"path": str(source)}, "task": {"model": model, **task}, "output": {"path": str(tmp_path / "out")},
        "engine": {**ENGINE, "runner": "inline"},
    })  # fmt: skip
