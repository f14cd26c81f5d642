"""Failpoints: where they strike, and that they are free and harmless otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from batchnlp import failpoints

CODE = "from batchnlp import failpoints as f\nfor i in range(3):\n    print(i, flush=True)\n    f.reach('read', ['a', 'b'])"


def play(setting: str) -> tuple[int, int]:
    """(exit code, how often the point was reached) of a process with this setting."""
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), failpoints.VARIABLE: setting}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, len(done.stdout.split())


@pytest.mark.parametrize(
    ("setting", "want"),
    [
        ("", (0, 3)), ("encode=kill", (0, 3)), ("read=kill", (-9, 1)), ("read=exit@2", (1, 2)),
        ("read=kill?c", (0, 3)), ("read=kill@2?b", (-9, 2)), ("read=raise", (1, 1)), ("read=sleep:0.01", (0, 3)),
    ],
)  # fmt: skip
def test_where_they_strike(setting: str, want: tuple[int, int]) -> None:
    assert play(setting) == want


def test_once_over_all_processes(tmp_path: Path) -> None:
    assert [play(f"read=exit#{tmp_path / 'once'}")[1] for _ in range(3)] == [1, 3, 3]


def test_a_point_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'raed=kill' is no failpoint; the names are load, read"):
        failpoints._parse("raed=kill")
