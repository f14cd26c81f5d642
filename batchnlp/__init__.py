"""Run Hugging Face models over whole corpora, and prove that no document was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["apply", "run"]

if TYPE_CHECKING:
    from batchnlp.engine.api import apply, run


def __getattr__(name: str) -> Any:
    """`run` and `apply` are imported at first use, because `--help` must not wait for pyarrow."""
    if name in __all__:
        from batchnlp.engine import api

        return getattr(api, name)
    raise AttributeError(f"module 'batchnlp' has no attribute {name!r}")
