"""The door to the libraries of the extra `evaluate`: where one is missing, the message says how to get it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from batchnlp.errors import MissingExtraError

PACKAGES = {"scipy": "scipy", "sklearn": "scikit-learn", "sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}


def need(module: str) -> Any:
    """The module, or MissingExtraError."""
    package = PACKAGES[module.partition(".")[0]]
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise MissingExtraError.of(package, "evaluate") from None


def check() -> None:
    """MissingExtraError where any of them is not installed; imports none."""
    for module, package in PACKAGES.items():
        if find_spec(module) is None:
            raise MissingExtraError.of(package, "evaluate")
