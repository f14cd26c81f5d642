"""Several jobs and one output: what is refused, what stands beside, what replaces, and what a failure leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import BAD, Corpus, classify, invoke, last_json, rows_of

from batchnlp import registry
from batchnlp.data.ledger import live
from batchnlp.data.lock import Lock
from batchnlp.data.store import LocalStore
from batchnlp.engine.computing import Computation
from batchnlp.errors import UsageError


def test_another_job_is_refused_and_told_what_changed(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, source = tmp_path / "out", corpus()
    classify(source, out, classifier)
    before = sorted(out.rglob("*"))
    result = classify(source, out, classifier, "--set", "task.on_long=truncate")
    assert result.exit_code == 2
    error = result.stderr.splitlines()[-1]
    assert error.startswith(
        f"batchnlp: {out} holds the results of another job; this one differs in recipe.task.on_long"
    )
    assert "--mode overwrite or append" in error
    assert sorted(out.rglob("*")) == before


def test_append_adds_and_overwrite_replaces(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    first, second = corpus(), corpus(tiny.texts(4, seed=9), "second")
    assert classify(first, out, classifier).exit_code == 0
    assert classify(second, out, classifier, "--mode", "append").exit_code == 0
    assert len(rows_of(out)) == 29
    assert len(last_json(invoke("status", out, "--json"))["runs"]) == 2
    assert invoke("verify", out).exit_code == 0
    third = classify(second, out, classifier, "--mode", "overwrite", "--set", "task.scores=true")
    assert third.exit_code == 0, third.output
    rows = rows_of(out)
    assert len(rows) == 4
    assert all("scores" in row for row in rows)
    assert len(list(out.glob("part-*"))) == len(list((out / "_batchnlp").glob("*/plan.json"))) == 1
    assert invoke("verify", out).exit_code == 0


def test_a_failed_overwrite_leaves_no_success_of_the_run_before(
    tmp_path: Path, corpus: Corpus, classifier: str
) -> None:
    out = tmp_path / "out"
    assert classify(corpus(), out, classifier).exit_code == 0
    result = classify(corpus(BAD, "bad"), out, classifier, "--mode", "overwrite")
    assert result.exit_code == 1
    live = json.loads((out / "_batchnlp" / "current.json").read_text())["live"]
    manifest = json.loads((out / "_batchnlp" / live[-1] / "manifest.json").read_text())
    assert (out / "_SUCCESS").exists() == manifest["success"], "_SUCCESS speaks for what is live"


def test_a_failed_overwrite_replaces_nothing(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, bad = tmp_path / "out", corpus(BAD, "bad")
    assert classify(corpus(), out, classifier).exit_code == 0
    want = rows_of(out)
    result = classify(bad, out, classifier, "--mode", "overwrite")
    assert result.exit_code == 1
    assert rows_of(out) == want
    assert invoke("verify", out).exit_code == 0
    assert (out / "_SUCCESS").exists()
    again = classify(bad, out, classifier, "--mode", "overwrite", "--set", "limits.max_failed=50%")
    assert again.exit_code == 0, again.output
    assert len(rows_of(out)) == 7
    assert len(list(out.glob("part-*"))) == 1


def live_of(out: Path) -> list[str]:
    return live(LocalStore(out))


@pytest.fixture
def cut_short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs commit nothing and end, as after a signal."""
    with monkeypatch.context() as patch:
        patch.setattr(Computation, "run", lambda *args: None)
        yield


@pytest.mark.parametrize("mode", ["append", "overwrite"])
def test_a_first_run_that_is_cut_short_is_seen(
    tmp_path: Path, corpus: Corpus, classifier: str, mode: str, cut_short: None
) -> None:
    out, source = tmp_path / "out", corpus()
    classify(source, out, classifier, "--mode", mode)
    status = last_json(invoke("status", out, "--json"))
    assert (status["status"], status["shards_done"], status["live"]) == ("incomplete", 0, True)
    assert invoke("verify", out).exit_code == 1


class Unreachable:
    """A runner that cannot start."""

    def __init__(self, *args: Any) -> None:
        raise UsageError("no Ray cluster at nowhere")


@pytest.mark.parametrize("mode", ["new", "append", "overwrite"])
def test_a_job_that_could_not_start_hinders_no_other(
    tmp_path: Path, corpus: Corpus, classifier: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan is there by then, and it alone."""
    out, source = tmp_path / "out", corpus()
    with monkeypatch.context() as patch:
        patch.setitem(registry.RUNNERS, "inline", f"{__name__}:Unreachable")
        result = classify(source, out, classifier)
    assert (result.exit_code, result.stderr) == (2, "batchnlp: no Ray cluster at nowhere\n")
    assert not list(out.glob("*.parquet"))
    other = classify(source, out, classifier, "--mode", mode, "--set", "task.on_long=truncate")
    assert other.exit_code == 0, other.output
    assert invoke("verify", out).exit_code == 0
    assert len(list(out.glob("_batchnlp/*/plan.json"))) == len(live_of(out)) == 1
    again = classify(source, out, classifier)
    assert "holds the results of another job" in again.stderr, "that one has begun"


def test_an_overwrite_cut_short_leaves_what_stands_and_status_tells_of_both(
    tmp_path: Path, corpus: Corpus, classifier: str, request: pytest.FixtureRequest
) -> None:
    out, source = tmp_path / "out", corpus()
    assert classify(source, out, classifier).exit_code == 0
    want, before = rows_of(out), live_of(out)
    request.getfixturevalue("cut_short")
    classify(source, out, classifier, "--mode", "overwrite", "--set", "task.on_long=truncate")
    assert (rows_of(out), live_of(out)) == (want, before)
    assert invoke("verify", out).exit_code == 0
    runs = last_json(invoke("status", out, "--json"))["runs"]
    assert [(run["status"], run["live"]) for run in runs] == [("done", True), ("incomplete", False)]
    assert "incomplete, not live" in invoke("status", out).stdout


def test_the_same_job_again_keeps_its_place_among_appended_ones(
    tmp_path: Path, corpus: Corpus, classifier: str
) -> None:
    out, first, second = tmp_path / "out", corpus(), corpus(tiny.texts(4, seed=9), "second")
    for source in (first, second, first):
        assert classify(source, out, classifier, "--mode", "append").exit_code == 0
    assert [row["id"] for row in rows_of(out)] == [f"doc-{i:03}" for i in (*range(25), *range(4))]


def test_an_appended_run_over_the_limit_takes_success_away_until_it_is_within(
    tmp_path: Path, corpus: Corpus, classifier: str
) -> None:
    out, bad = tmp_path / "out", corpus(BAD, "bad")
    assert classify(corpus(), out, classifier).exit_code == 0
    for limit, code in (("0", 1), ("50%", 0), ("0", 1)):
        more = ["--mode", "append", "--set", f"limits.max_failed={limit}"]
        assert classify(bad, out, classifier, *more).exit_code == code
        assert (out / "_SUCCESS").exists() == (code == 0), limit
        assert invoke("verify", out).exit_code == 0


def test_a_failed_overwrite_says_what_lies_where(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    assert classify(corpus(), out, classifier).exit_code == 0
    result = classify(corpus(BAD, "bad"), out, classifier, "--mode", "overwrite")
    assert "the results of before stand, and part files of this run lie beside them" in result.stderr


def test_of_two_jobs_at_once_in_a_fresh_output_the_second_is_refused(
    tmp_path: Path, corpus: Corpus, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one came and went between the look and the lock."""
    out, source = tmp_path / "out", corpus()

    acquire = Lock.acquire

    def late(self: Lock) -> None:
        monkeypatch.setattr(Lock, "acquire", acquire)
        assert classify(source, out, classifier, "--set", "task.on_long=truncate").exit_code == 0
        acquire(self)

    monkeypatch.setattr(Lock, "acquire", late)
    result = classify(source, out, classifier)
    assert result.exit_code == 2
    assert "this one differs in recipe.task.on_long" in result.stderr
    assert len(list(out.glob("_batchnlp/*/plan.json"))) == len(list(out.glob("part-*"))) == 1


@pytest.mark.parametrize("name", ["plan.json", "commits/00000.json"])
def test_a_damaged_control_file_is_one_line_and_its_hint_works(
    tmp_path: Path, corpus: Corpus, classifier: str, name: str
) -> None:
    out, source = tmp_path / "out", corpus()
    assert classify(source, out, classifier).exit_code == 0
    path = next(out.glob(f"_batchnlp/*/{name}"))
    path.write_text("{")
    result = invoke("collect", out)
    assert result.exit_code == 3, result.output
    assert result.stderr.splitlines()[-1].startswith(f"batchnlp: {path} is damaged")
    assert "Traceback" not in result.stderr
    assert invoke("verify", out).exit_code == 1
    target = path.parent if name == "plan.json" else path
    assert f"(remove {target if name == 'plan.json' else 'it'} and run the job again" in result.stderr
    LocalStore(out).remove(str(target))
    assert classify(source, out, classifier).exit_code == 0
    assert invoke("verify", out).exit_code == 0


def test_a_damaged_manifest_is_written_anew(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, source = tmp_path / "out", corpus()
    assert classify(source, out, classifier).exit_code == 0
    want = rows_of(out)
    path = next(out.glob("_batchnlp/*/manifest.json"))
    path.write_text("{")
    assert rows_of(out) == want, "collect reads the commits"
    assert invoke("verify", out).exit_code == 1
    assert classify(source, out, classifier).exit_code == 0
    assert invoke("verify", out).exit_code == 0


@pytest.mark.parametrize("name", ["plan.json", "manifest.json", "commits/00000.json"])
def test_status_tells_what_it_can_and_names_the_damage(
    tmp_path: Path, corpus: Corpus, classifier: str, name: str
) -> None:
    """Also of a run that is not live; and what is damaged keeps no other job from taking its place."""
    out, first = tmp_path / "out", corpus()
    assert classify(first, out, classifier).exit_code == 0
    assert classify(corpus(BAD, "bad"), out, classifier, "--mode", "overwrite").exit_code == 1
    for control in (path.parent for path in list(out.glob("_batchnlp/*/plan.json"))):
        whole = (control / name).read_text()
        (control / name).write_text("{")
        runs = {run["run"]: run for run in last_json(invoke("status", out, "--json"))["runs"]}
        hurt = runs.pop(control.name[:8])
        assert hurt["status"] == "damaged"
        assert f"{control / name} is damaged" in hurt["damage"][0]
        assert len(hurt["damage"]) == 1
        assert [run["damage"] for run in runs.values()] == [[]]
        shown = invoke("status", out)
        assert shown.exit_code == 0
        assert f"{control / name} is damaged" in shown.stdout
        (control / name).write_text(whole)
    (out / "_batchnlp" / live_of(out)[0] / name).write_text("{")
    last = classify(first, out, classifier, "--mode", "overwrite", "--set", "task.on_long=truncate")
    assert last.exit_code == 0, last.output
    assert invoke("verify", out).exit_code == 0
    assert len(list(out.glob("part-*"))) == 1


def test_another_job_is_refused_although_the_plan_is_damaged(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, source = tmp_path / "out", corpus()
    assert classify(source, out, classifier).exit_code == 0
    next(out.glob("_batchnlp/*/plan.json")).write_text("{")
    result = classify(source, out, classifier, "--set", "task.on_long=truncate")
    assert result.exit_code == 2
    assert "this one differs in what its damaged plan does not tell" in result.stderr


def test_a_run_that_is_done_says_why_there_is_no_success(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    assert classify(corpus(), out, classifier).exit_code == 0
    next(out.glob("_batchnlp/*/manifest.json")).unlink()
    result = classify(corpus(tiny.texts(4, seed=9), "second"), out, classifier, "--mode", "append")
    assert result.exit_code == 0
    assert "no _SUCCESS yet: another run here is not complete" in result.stderr


def test_an_overwrite_says_which_runs_go(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, source = tmp_path / "out", corpus()
    assert classify(source, out, classifier).exit_code == 0
    assert classify(corpus(tiny.texts(4, seed=9), "second"), out, classifier, "--mode", "append").exit_code == 0
    first, second = (name[:8] for name in live_of(out))
    result = classify(source, out, classifier, "--mode", "overwrite", "--set", "task.on_long=truncate", "--json")
    lines = result.stderr.splitlines()
    job = last_json(invoke("status", out, "--json"))["job"]
    assert lines[0] == (
        f"when this run is done, it replaces run {first} ({job}, 25 rows), run {second} ({job}, 4 rows)"
    )
    assert f"replaced: run {first}, run {second}" in lines
    assert last_json(result)["replaced"] == [first, second]
    again = classify(source, out, classifier, "--mode", "overwrite", "--set", "task.on_long=truncate")
    assert "replace" not in again.stderr


def test_a_plan_made_anew_leaves_no_part_of_the_old_one(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    """Readers that take all part files would count its rows twice."""
    out, source = tmp_path / "out", corpus()
    keep = ["--keep", "lang", "--set", "output.partition_by=lang"]
    assert classify(source, out, classifier, *keep, "--set", "source.rows_per_shard=5").exit_code == 0
    mine = out / "lang=en" / "part-mine.parquet"
    mine.write_bytes(b"")
    for control in list(out.glob("_batchnlp/*/plan.json")):
        LocalStore(out).remove(str(control.parent))  # as the hint of a damaged plan says
    assert classify(source, out, classifier, *keep, "--set", "source.rows_per_shard=10").exit_code == 0
    found = {path.name for path in out.rglob("part-*.parquet")} - {mine.name}
    assert {name[:10] for name in found} == {"part-00000", "part-00001", "part-00002"}
    assert mine.exists()
    assert invoke("verify", out).exit_code == 0


def test_a_run_computed_again_in_part_is_not_complete_meanwhile(
    tmp_path: Path, corpus: Corpus, classifier: str, request: pytest.FixtureRequest
) -> None:
    out, source = tmp_path / "out", corpus()
    assert classify(source, out, classifier).exit_code == 0
    next(out.glob("_batchnlp/*/commits/00000.json")).unlink()
    request.getfixturevalue("cut_short")
    classify(source, out, classifier)
    assert last_json(invoke("status", out, "--json"))["status"] == "incomplete"
    assert not (out / "_SUCCESS").exists()
