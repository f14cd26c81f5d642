"""How a command that fails tells it: one line for people, and with --json one object for programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Corpus, classify, invoke, last_json

from batchnlp.cli import look
from batchnlp.data.lock import Lock
from batchnlp.data.store import LocalStore


def test_an_error_is_one_json_object_too(tmp_path: Path) -> None:
    result = invoke("status", tmp_path / "none", "--json")
    assert last_json(result) == {
        "status": "error", "exit_code": 2, "error": "OutputError", "message": f"{tmp_path / 'none'} is no directory",
        "hint": "give the output.path of a job",
    }  # fmt: skip
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == f"batchnlp: {tmp_path / 'none'} is no directory (give the output.path of a job)\n"


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["clasify", "x", "--json"], "did you mean classify?"),
        (["classify", "x", "--json"], "Missing option"),
        (["status", "x", "--json", "--ful"], "No such option"),
        (["--bogus", "status", "x", "--json"], "No such option"),
    ],
)
def test_a_wrong_call_is_a_json_object_too(args: list[str], word: str) -> None:
    result = invoke(*args)
    assert result.exit_code == last_json(result)["exit_code"] == 2
    assert word in last_json(result)["message"]
    assert word in result.stderr
    assert invoke(*[arg for arg in args if arg != "--json"]).stdout == ""


def test_a_held_output_and_a_bug_are_json_objects_too(
    tmp_path: Path, corpus: Corpus, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Lock(LocalStore(tmp_path / "out"), "somebody")
    lock.acquire()
    try:
        result = classify(corpus(), tmp_path / "out", classifier, "--json")
    finally:
        lock.release()
    assert (result.exit_code, last_json(result)["error"]) == (75, "LockedError")
    monkeypatch.setattr(look, "ledgers", lambda out: 1 // 0)
    result = invoke("status", tmp_path, "--json")
    assert (result.exit_code, last_json(result)["error"]) == (70, "ZeroDivisionError")
    assert "Traceback" in result.stderr


def test_collect_of_here_is_named_after_the_directory(
    tmp_path: Path, corpus: Corpus, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert classify(corpus(), out, classifier).exit_code == 0
    monkeypatch.chdir(out)
    assert last_json(invoke("collect", ".", "--json"))["file"] == str(tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").is_file()
