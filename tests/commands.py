"""The command line, called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from click.testing import CliRunner, Result

from batchnlp.cli.main import main

Corpus = Callable[..., Path]
BAD = [*tiny.texts(7), None, "", "   "]
SETTINGS = (
    "runner=inline",
    "dtype=float32",
    "device=cpu",
    "backend=torch",
)  # converting a model takes longer than most tests
QUICK = [word for setting in SETTINGS for word in ("--set", f"engine.{setting}")]


def invoke(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="batchnlp")


def classify(corpus: Path, out: Path, model: str, *more: object) -> Result:
    return invoke("classify", corpus, "-o", out, "--model", model, "--id-column", "doc_id", *QUICK, *more)


def last_json(result: Result) -> dict[str, Any]:
    tree = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(tree, dict)
    return tree


def rows_of(out: Path) -> list[dict[str, Any]]:
    result = invoke("collect", out, "-o", "-", "--format", "jsonl")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]
