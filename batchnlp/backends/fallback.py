"""A faster way of running a model that steps aside where it does not do the model justice."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

from batchnlp.backends.base import Backend
from batchnlp.backends.packed_attention import Unsupported
from batchnlp.errors import BatchnlpError

ADVICE = "Please check correctness of provided"  # where OpenVINO ends to say what is wrong
Made = TypeVar("Made", bound=Backend)


def fast_or_plain(fast: Callable[[], Made], plain: Callable[[], Made], otherwise: str) -> Made:
    """What `fast` makes; where it fails, what `plain` makes, whose note says `otherwise` and why."""
    try:
        return fast()
    except BatchnlpError:
        raise  # it is about the job, or the run is to end
    except Exception as error:  # noqa: BLE001 - whatever goes wrong with the canary, the plain way is right
        note = f"{otherwise}: {reason(error)}"
    gc.collect()  # a model is held by cycles, and the next one wants its memory
    made = plain()
    made.note = "; ".join(filter(None, [note, made.note]))
    return made


def reason(error: Exception) -> str:
    """Why a model is not run so, in a line: OpenVINO's errors are pages, the last line of which says what they are about."""
    if isinstance(error, Unsupported):
        return str(error)
    said = str(error).partition(ADVICE)[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:150]
