"""stdout and stderr whose other end may be gone, as in `batchnlp ... 2>&1 | head -1`; stderr as a log of JSON lines, where
BATCHNLP_LOG=json asks for it. Nothing heavy is imported here."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO


def discard(stream: TextIO) -> None:
    """Let what is still in the stream, and what follows, go nowhere: it would only fail again at the end."""
    with suppress(OSError):  # of a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def logs_json() -> bool:
    """Whether what is said on stderr is for a log collector."""
    return os.environ.get("BATCHNLP_LOG") == "json"


def log_line(message: str, level: str = "info", **facts: Any) -> str:
    """A line of such a log."""
    record = {"time": datetime.now(UTC).isoformat(), "level": level, "message": message.strip(), **facts}
    return json.dumps(record, default=str) + "\n"


class Messages:
    """stderr, on which no run depends: once it is closed, or its disk full, what is said is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream would."""
        try:
            return self._stream.write(text)
        except OSError:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        """As the stream would."""
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)
