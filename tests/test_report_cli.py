"""`batchnlp report`, and the page that a run leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tiny
from commands import BAD, Corpus, classify, invoke, last_json
from report_outputs import Night, labelled

from batchnlp.report import gather


def output(root: Path, print_: str = "a1" * 32) -> Night:
    return Night(root, labelled(["a", "b"], [0.6, 0.4], 40), print_=print_).work().finish()


def test_a_run_leaves_its_page(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, source = tmp_path / "out", corpus()
    result = classify(source, out, classifier, "--json", "--keep", "text")
    file = out / "_report.html"
    assert last_json(result)["report"] == str(file)
    assert f"report: {file}" in result.stderr
    text = file.read_text(encoding="utf-8")
    assert "25 rows in = 25 results + 0 dead letters." in text
    assert "docs/s" in text
    assert not any(document in text for document in tiny.texts(25) if len(document) > 30), "no document is in it"
    made = os.stat(file).st_mtime_ns
    again = classify(source, out, classifier, "--json", "--keep", "text")
    assert (last_json(again)["report"], os.stat(file).st_mtime_ns) == (str(file), made), "there was nothing to tell"
    file.unlink()
    assert classify(source, out, classifier, "--keep", "text").exit_code == 0
    assert file.exists(), "a page that is not there is written, whatever there was to do"
    assert invoke("verify", out).exit_code == 0


def test_a_page_tells_of_the_last_thing_that_happened(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    """A limit that is judged anew computes nothing, and is news all the same."""
    out, source = tmp_path / "out", corpus(BAD)
    for limit, code, word in (("50%", 0, "Done"), ("0", 1, "Failed"), ("50%", 0, "Done")):
        assert classify(source, out, classifier, "--set", f"limits.max_failed={limit}").exit_code == code
        assert f'<div class="word">{word}' in (out / "_report.html").read_text(encoding="utf-8")


def test_a_run_without_a_page(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    result = classify(corpus(), tmp_path / "out", classifier, "--json", "--set", "output.report=false")
    assert (result.exit_code, last_json(result)["report"]) == (0, None)
    assert not (tmp_path / "out" / "_report.html").exists()


@pytest.mark.parametrize("fault", ["a directory is in the way", "a bug"])
def test_a_page_that_cannot_be_written_fails_no_run(
    tmp_path: Path, corpus: Corpus, classifier: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if fault == "a bug":
        monkeypatch.setattr(gather, "timeline", lambda work: 1 / 0)
        said = "no report: ZeroDivisionError"
    else:
        (out / "_report.html").mkdir(parents=True)
        said = f"no report: cannot write {out}/_report.html: it is a directory (name a file with -o)"
    result = classify(corpus(), out, classifier, "--json")
    assert (result.exit_code, last_json(result)["report"]) == (0, None)
    assert said in result.stderr
    assert (out / "_SUCCESS").exists()


def test_report_writes_into_the_output_or_where_it_is_told(tmp_path: Path) -> None:
    run = output(tmp_path / "out")
    result = invoke("report", run.root, "--json")
    assert result.exit_code == 0
    assert last_json(result) == {
        "status": "done", "run": "a1a1a1a1", "verdict": "Done", "notable": [], "file": f"{run.root}/_report.html",
    }  # fmt: skip
    assert "Done: 40 rows in = 40 results + 0 dead letters." in result.stderr
    result = invoke("report", run.root, "-o", tmp_path / "night.html")
    assert result.exit_code == 0
    assert (tmp_path / "night.html").exists()
    assert invoke("report", run.root, "-o", "-").stdout.startswith("<!doctype html>")


@pytest.mark.parametrize("state", ["unfinished", "failed", "damaged"])
def test_report_ends_as_status_does(tmp_path: Path, state: str) -> None:
    run = Night(tmp_path, labelled(["a", "b"], [0.6, 0.4], 40), dead=5)
    if state == "unfinished":
        run.work([0, 1])
    else:
        run.work().finish(success=state != "failed")
    if state == "damaged":
        next(tmp_path.glob("part-*.parquet")).unlink()
    result = invoke("report", run.root, "--json")
    status = invoke("status", run.root, "--json")
    assert result.exit_code == status.exit_code == 0
    assert last_json(result)["status"] == last_json(status)["status"]
    assert (
        last_json(result)["verdict"] == {"unfinished": "Not complete", "failed": "Failed", "damaged": "Damaged"}[state]
    )


def test_what_is_no_output_has_no_report(tmp_path: Path) -> None:
    for args, said in (
        ([tmp_path], f"{tmp_path} holds no run of batchnlp (give the output.path of a job)"),
        ([tmp_path / "no"], f"{tmp_path}/no is no directory"),
        ([tmp_path, tmp_path], "2 outputs are given (give one, or two with --compare)"),
        (["--compare", tmp_path], "1 output is given (give one, or two with --compare)"),
    ):
        result = invoke("report", *args)
        assert result.exit_code == 2
        assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_columns_that_are_not_there_are_refused(tmp_path: Path) -> None:
    result = invoke("report", output(tmp_path).root, "--columns", "body")
    assert result.exit_code == 2
    assert "'body' is no kept column (there are: none)" in result.stderr


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    result = invoke("report", output(tmp_path / "out").root, "-o", tmp_path)
    assert result.exit_code == 2
    assert f"cannot write {tmp_path}: it is a directory (name a file with -o)" in result.stderr


def test_compare_writes_beside_the_second(tmp_path: Path) -> None:
    a, b = output(tmp_path / "a"), output(tmp_path / "b", "b2" * 32)
    result = invoke("report", "--compare", a.root, b.root, "--json")
    assert result.exit_code == 0
    assert last_json(result) == {"status": "alike", "notable": [], "file": f"{b.root}/_comparison.html"}
    assert "40 (100 %) have the same" in (tmp_path / "b" / "_comparison.html").read_text(encoding="utf-8")
