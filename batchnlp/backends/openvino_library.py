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
