"""The door to OpenVINO."""

from __future__ import annotations

import sys
from typing import Any

from batchnlp.errors import MissingExtraError


def load_openvino() -> Any:
    """The library, without the package that would report its usage over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        raise MissingExtraError.of("openvino", "openvino") from None
    return openvino


def reason(error: Exception) -> str:
    """Why it does not run a model, in a line: its own errors are pages, the last line of which says what it is about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:150]
