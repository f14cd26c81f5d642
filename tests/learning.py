"""Rows from which something can be learnt in seconds, and trainings from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
from click.testing import Result
from commands import invoke

TOPICS = {
    "games": "game plays server driver",
    "fonts": "font picture graphical small",
    "data": "data files writes reads",
}
FAST = ("device=cpu", "dtype=float32", "seed=3")


def rows(count: int = 160, seed: int = 5) -> dict[str, list[Any]]:
    """Documents with a topic that shows in their words, a title, an owner, and the places of a name."""
    draw = np.random.default_rng(seed)
    out: dict[str, list[Any]] = {name: [] for name in ("id", "text", "label", "target", "pair", "owner", "entities")}
    for i in range(count):
        topic = list(TOPICS)[i % 3]
        words = [*draw.choice(TOPICS[topic].split(), 3), *draw.choice(tiny.WORDS, draw.integers(4, 25)), f"n{i}"]
        text = " ".join(words)
        name = f"lib{topic}"
        text = f"{text} {name} end"
        start = text.index(name)
        values = f"r{i:03}", text, topic, f"about {topic}", " ".join(words[:3]), f"owner{i // 2}"
        for key, value in zip(out, values, strict=False):
            out[key].append(value)
        out["entities"].append([{"label": "PKG", "start": start, "end": start + len(name)}])
    return out


SPANS = pa.list_(pa.struct([("label", pa.string()), ("start", pa.int32()), ("end", pa.int32())]))


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    """As Parquet."""
    arrays = {k: pa.array(v, SPANS) if k == "entities" else pa.array(v) for k, v in columns.items()}
    pq.write_table(pa.table(arrays), path)
    return path


def train(kind: str, source: Path, out: Path, *settings: str, flags: tuple[object, ...] = ()) -> Result:
    chosen = settings if kind == "tokenizer" else (*FAST, *settings)
    words = [word for setting in chosen for word in ("--set", setting)]
    return invoke("train", kind, source, "-o", out, "--id-column", "id", *flags, *words, "--json")


def record(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    tree = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(tree, dict)
    return tree


def save_encoder(path: Path) -> str:
    """An encoder that has learnt nothing, of ordinary weights."""
    import torch
    from transformers import BertModel

    torch.manual_seed(1)
    config = tiny.bert()
    config.initializer_range = 0.02
    BertModel(config).save_pretrained(path)
    tiny.save_tokenizer(path)
    return str(path)
