"""Who is told how a run ended, what they are told, and that none of them can fail it."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from commands import QUICK, invoke, last_json
from processes import start
from prometheus_client.parser import text_string_to_metric_families
from test_signals import reads, strike

from batchnlp import __version__
from batchnlp.data.store import LocalStore
from batchnlp.engine import prometheus
from batchnlp.errors import SpecError
from batchnlp.job.load import build_spec

SECRET = "hunter2-hunter2"


@contextmanager
def listening(status: int = 200, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers all alike; its address, and what it was sent."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append({"path": self.path, "headers": dict(self.headers), "body": json.loads(body)})
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenLineage's client writes what it reads there into other variables of the environment, for good."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def run_job(tmp_path: Path, corpus: Any, classifier: str) -> Callable[..., Result]:
    """Runs a job with these hooks; three of its 25 rows have no text where it is `bad`."""

    def run(*hooks: dict[str, Any], bad: bool = False, name: str = "j", **more: Any) -> Result:
        source = tmp_path / f"in-{bad}"
        if not source.exists():
            corpus([f"tool {i}" if not bad or i > 2 else None for i in range(25)], source.name)
        tree = {
            "job": name, "source": {"path": str(source), "id": "doc_id"}, "task": {"kind": "classify", "model": classifier},
            "output": {"path": str(tmp_path / f"out-{bad}")}, "hooks": list(hooks), **more,
        }  # fmt: skip
        file = tmp_path / "job.yaml"
        file.write_text(json.dumps(tree), encoding="utf-8")
        return invoke("run", file, "--json", *QUICK)

    return run


def writes(path: Path, **more: Any) -> dict[str, Any]:
    """A command that keeps what it is told, a line each."""
    return {"command": ["sh", "-c", f"tr -d '\\n' >> {path}; echo >> {path}; echo noise"], **more}


def kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- the file


def results_file(out: Path) -> dict[str, Any]:
    (path,) = out.glob("_batchnlp/*/run_results.json")
    assert (path.parent / "plan.json").is_file()
    tree = json.loads(path.read_text())
    assert isinstance(tree, dict)
    return tree


def test_run_results_lie_beside_the_manifest(tmp_path: Path, run_job: Callable[..., Result]) -> None:
    told = last_json(run_job(date="2026-11-24"))
    assert told.pop("report").endswith("_report.html"), "which comes after it"
    tree = results_file(tmp_path / "out-False")
    assert {key: tree[key] for key in told} == told, "all that --json tells"
    assert (tree["format"], tree["event"], tree["status"], tree["exit_code"]) == (1, "success", "done", 0)
    assert (tree["job"], tree["date"], tree["rows"], tree["dead"]) == ("j", "2026-11-24", 25, 0)
    assert tree["versions"]["batchnlp"] == __version__
    assert tree["versions"]["python"] == platform.python_version()
    assert {"torch", "transformers", "pyarrow"} <= tree["versions"].keys()
    assert tree["began"] < tree["ended"]
    manifest = json.loads(next((tmp_path / "out-False").glob("_batchnlp/*/manifest.json")).read_text())
    assert tree["invocation"] == manifest["invocation"]
    assert invoke("verify", tmp_path / "out-False").exit_code == 0


def test_results_of_a_run_that_broke(
    tmp_path: Path, run_job: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchnlp.data import ledger
    from batchnlp.errors import StoppedError

    def full(*args: Any) -> bool:
        raise StoppedError("no space left below out", "make room")

    with monkeypatch.context() as patch:
        patch.setattr(ledger.Ledger, "commit", full)
        result = run_job(writes(tmp_path / "told", when=["failure"]))
    assert result.exit_code == 3
    tree = results_file(tmp_path / "out-False")
    assert (tree["event"], tree["status"], tree["exit_code"], tree["error"]) == (
        "failure",
        "stopped",
        3,
        "StoppedError",
    )
    assert tree["message"] == "no space left below out (make room)"
    (told,) = kept(tmp_path / "told")
    assert told == tree
    assert run_job().exit_code == 0
    assert results_file(tmp_path / "out-False")["status"] == "done", "of the last invocation"


def test_what_another_library_says_is_told_to_nobody(
    tmp_path: Path, run_job: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold a document's text."""
    from batchnlp.data import ledger

    def odd(*args: Any) -> bool:
        raise ValueError(f"cannot take {SECRET}")

    monkeypatch.setattr(ledger.Ledger, "commit", odd)
    assert run_job(writes(tmp_path / "told", when=["failure"])).exit_code == 70
    (told,) = kept(tmp_path / "told")
    assert (told["status"], told["error"], told["message"]) == ("error", "ValueError", "ValueError")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_before_there_is_a_plan_only_hooks_are_told(tmp_path: Path, run_job: Callable[..., Result]) -> None:
    result = run_job(writes(tmp_path / "told"), source={"path": str(tmp_path / "nothing")})
    assert result.exit_code == 2
    (told,) = kept(tmp_path / "told")
    assert (told["event"], told["status"], told["error"], told["exit_code"]) == ("failure", "error", "SourceError", 2)
    assert not (tmp_path / "out-False").exists()


# --- when


@pytest.mark.parametrize(
    ("bad", "code", "expected"), [(False, 0, ["success"]), (True, 1, ["threshold"])], ids=["success", "threshold"]
)
def test_each_is_told_of_its_events(
    bad: bool, code: int, expected: list[str], tmp_path: Path, run_job: Callable[..., Result]
) -> None:
    events = ["success", "failure", "threshold"]
    result = run_job(
        *(writes(tmp_path / event, when=event) for event in events),
        writes(tmp_path / "all", when=events), writes(tmp_path / "default"), bad=bad,
    )  # fmt: skip
    assert result.exit_code == code, result.output
    assert len(result.stdout.splitlines()) == 1, "what a command prints is no result of the run"
    assert [event for event in events if (tmp_path / event).exists()] == expected
    (told,) = kept(tmp_path / "all")
    assert told["event"] == expected[0]
    assert told["dead"] == (3 if bad else 0)
    assert (tmp_path / "default").exists() == bad


# --- webhooks


def test_a_webhook(run_job: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALERT_TOKEN", SECRET)
    with listening() as (address, got):
        monkeypatch.setenv("ALERT_URL", f"{address}/secret/{SECRET}")
        result = run_job(
            {"webhook": f"{address}/runs", "when": "success", "token_env": "ALERT_TOKEN"},
            {"webhook_env": "ALERT_URL", "when": "success"},
        )  # fmt: skip
    assert result.exit_code == 0
    first, second = got
    assert (first["path"], second["path"]) == ("/runs", f"/secret/{SECRET}")
    assert first["headers"]["Authorization"] == f"Bearer {SECRET}"
    assert "Authorization" not in second["headers"]
    assert first["headers"]["Content-Type"] == "application/json"
    assert first["body"]["status"] == "done"
    assert first["body"] == second["body"] == results_file(tmp_path / "out-False")
    written = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert written == []
    assert SECRET not in result.output


def test_a_redirect_does_not_take_the_token_along(
    run_job: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERT_TOKEN", SECRET)
    with listening() as (elsewhere, got), listening(307, {"Location": elsewhere}) as (address, _):
        result = run_job({"webhook": address, "when": "success", "token_env": "ALERT_TOKEN"})
    assert (result.exit_code, got) == (0, [])
    assert f"the webhook {address} could not be told: status 307\n" in result.stderr


# --- none of them can fail the run


def test_none_can_fail_the_run(run_job: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE_URL", f"http://127.0.0.1:9/{SECRET}")
    (tmp_path / "file").touch()
    with listening(500) as (address, _):
        result = run_job(
            {"command": ["no-such-program-here"], "when": "success"},
            {"command": "sh -c 'cat > /dev/null; exit 3'", "when": "success"},
            {"command": ["true"], "when": "success"},  # which does not read
            {"command": ["sleep", "600"], "when": "success", "timeout": 0.2},
            {"webhook": address, "when": "success"},
            {"webhook_env": "GONE_URL", "when": "success"},
            {"webhook_env": "UNSET_URL", "when": "success"},
            {"textfile": str(tmp_path / "file")},
            writes(tmp_path / "last", when="success"),
        )
    assert result.exit_code == 0, result.output
    assert last_json(result)["status"] == "done"
    told = [line for line in result.stderr.splitlines() if "could not be told" in line]
    assert told[:5] == [
        "the command no-such-program-here could not be told: No such file or directory",
        "the command sh could not be told: exit code 3",
        "the command sleep could not be told: killed after 0.2 s",
        f"the webhook {address} could not be told: status 500",
        "the webhook GONE_URL could not be told: ConnectError",
    ]
    assert told[5] == "the webhook UNSET_URL could not be told: the environment variable UNSET_URL is not set"
    assert told[6].startswith("the textfile could not be told: ")
    assert len(told) == 7
    assert len(kept(tmp_path / "last")) == 1, "and none keeps the next from being told"
    assert SECRET not in result.output


def test_results_that_cannot_be_written(run_job: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    replace = LocalStore.replace

    def refuse(self: LocalStore, name: str, data: bytes) -> None:
        if name.endswith("run_results.json"):
            raise OSError(30, "Read-only file system")
        replace(self, name, data)

    monkeypatch.setattr(LocalStore, "replace", refuse)
    result = run_job()
    assert result.exit_code == 0
    assert "run_results.json could not be written: [Errno 30] Read-only file system" in result.stderr


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({}, "a hook has one of command, webhook, webhook_env and textfile, not none"),
        (
            {"command": "a", "textfile": "b"},
            "a hook has one of command, webhook, webhook_env and textfile, not command and",
        ),
        ({"command": []}, "hooks.command is empty"),
        ({"command": "a", "token_env": "T"}, "hooks.token_env belongs to a webhook, not to command"),
        ({"webhook": "ftp://x"}, "hooks.webhook is no address"),
        ({"webhook": f"https://u:{SECRET}@x"}, "hooks.webhook with a secret in it would be written into the plan"),
        ({"webhook": f"https://x?key={SECRET}"}, "hooks.webhook with a secret in it would be written into the plan"),
        ({"webhook_env": f"https://x/{SECRET}"}, "hooks.webhook_env and hooks.token_env name environment variables"),
        (
            {"webhook": "https://x", "token_env": SECRET},
            "hooks.webhook_env and hooks.token_env name environment variables",
        ),
        ({"command": "a", "when": "sucess"}, "hooks.when: Input should be 'success', 'failure' or 'threshold'"),
        ({"comand": "a"}, "unknown key hooks.comand (did you mean hooks.command?)"),
    ],
)
def test_what_cannot_be_is_one_line_without_secrets(hook: dict[str, Any], message: str) -> None:
    tree = {"source": {"path": "in"}, "task": {"kind": "embed", "model": "m"}, "output": {"path": "out"}, "hooks": hook}
    with pytest.raises(SpecError) as caught:
        build_spec(tree)
    assert str(caught.value).startswith(f"the job: {message}")
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


# --- Prometheus


def metrics(folder: Path) -> dict[str, tuple[dict[str, str], float]]:
    """As Prometheus' own parser reads the one file there."""
    (file,) = folder.iterdir()
    assert file.suffix == ".prom"
    families = list(text_string_to_metric_families(file.read_text()))
    assert all(family.type == "gauge" and family.documentation for family in families)
    return {sample.name: (sample.labels, sample.value) for family in families for sample in family.samples}


def test_textfile(run_job: Callable[..., Result], tmp_path: Path) -> None:
    folder = tmp_path / "metrics"
    assert run_job({"textfile": str(folder)}).exit_code == 0
    found = metrics(folder)
    assert all(labels == {"name": "j"} for labels, _ in found.values())
    value = {name: number for name, (_, number) in found.items()}
    assert (value["batchnlp_run_exit_code"], value["batchnlp_run_rows"], value["batchnlp_run_dead_letters"]) == (
        0,
        25,
        0,
    )
    assert value["batchnlp_run_docs_per_second"] > 0
    assert value[prometheus.SUCCESS] == value["batchnlp_last_end_timestamp_seconds"]

    assert run_job({"textfile": str(folder)}, bad=True).exit_code == 1
    now = {name: number for name, (_, number) in metrics(folder).items()}
    assert (now["batchnlp_run_exit_code"], now["batchnlp_run_dead_letters"]) == (1, 3)
    assert now[prometheus.SUCCESS] == value[prometheus.SUCCESS], "the last success is not forgotten"
    assert now["batchnlp_last_end_timestamp_seconds"] > value["batchnlp_last_end_timestamp_seconds"]

    assert run_job({"textfile": str(folder)}, source={"path": "nothing"}).exit_code == 2
    then = {name: number for name, (_, number) in metrics(folder).items()}
    assert then["batchnlp_run_exit_code"] == 2
    assert "batchnlp_run_rows" not in then, "of a run that never began nothing is known"
    assert then[prometheus.SUCCESS] == value[prometheus.SUCCESS]


# --- OpenLineage


def test_openlineage(run_job: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    duck = {"kind": "duckdb", "database": str(tmp_path / "w.db"), "table": "t"}
    with listening() as (address, got):
        monkeypatch.setenv("OPENLINEAGE_URL", address)
        monkeypatch.setenv("OPENLINEAGE_API_KEY", SECRET)
        monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "analytics")
        assert run_job(sinks=[duck]).exit_code == 0
        assert run_job(bad=True).exit_code == 1
    bodies = [request["body"] for request in got]
    assert [body["eventType"] for body in bodies] == ["START", "COMPLETE", "START", "FAIL"]
    start, complete, _, fail = bodies
    assert start["run"]["runId"] == complete["run"]["runId"] != fail["run"]["runId"]
    assert {(body["job"]["namespace"], body["job"]["name"]) for body in bodies} == {("analytics", "j")}
    assert [(data["namespace"], data["name"]) for data in start["inputs"]] == [("file", str(tmp_path / "in-False"))]
    assert [(data["namespace"], data["name"]) for data in complete["outputs"]] == [
        ("file", str(tmp_path / "out-False")), ("file", f"{tmp_path / 'w.db'}/t"),
    ]  # fmt: skip
    assert complete["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 25
    assert "3 dead letters" in fail["run"]["facets"]["errorMessage"]["message"]
    assert got[0]["headers"]["Authorization"] == f"Bearer {SECRET}"


def test_lineage_that_goes_nowhere(
    run_job: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    result = run_job()
    assert result.exit_code == 0
    assert "OpenLineage could not be told: " in result.stderr
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert "OpenLineage" not in run_job().stderr


def test_lineage_without_the_library(run_job: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "openlineage.client", None)
    result = run_job()
    assert result.exit_code == 0
    told = (
        "OpenLineage could not be told: this needs the package openlineage-python (pip install 'batchnlp[openlineage]')"
    )
    assert result.stderr.count(told) == 1


# --- logs


def test_json_logs(run_job: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNLP_LOG", "json")
    result = run_job({"command": "false", "when": "success"})
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    assert lines[0]["message"] == "the command false could not be told: exit code 1"
    done, page = lines[-2:]
    told = last_json(result)
    del told["report"]  # which comes after it
    assert (done["level"], done["results"]) == ("info", told)
    assert done["message"].startswith("done: 25 rows = 25 results + 0 dead letters")
    assert page["message"].startswith("report: ")

    broken = run_job(source={"path": "nothing"})
    (line,) = [json.loads(line) for line in broken.stderr.splitlines()]
    assert line["level"] == "error"
    assert line["message"].startswith("batchnlp: ")


def test_json_logs_of_a_run_under_way(run_job: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from batchnlp.cli import show
    from batchnlp.engine.computing import Progress

    monkeypatch.setenv("BATCHNLP_LOG", "json")
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(show.Messages, "write", lambda self, text: said.append(json.loads(text)))
    with show.LiveLine() as line:
        line.update(Progress(5, 25, 1, 10.0, 5.0, 100, 110, 9.0))
        line.update(Progress(6, 25, 1, 10.1, 6.0, 100, 110, 9.0, message="told once"))
    first, second = said
    assert first["message"].startswith("5/25 rows")
    assert first["progress"]["tokens"] == 100
    assert second["message"] == "told once"


def test_another_kind_of_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BATCHNLP_LOG", "xml")
    result = invoke("status", tmp_path, "--json")
    assert (result.exit_code, last_json(result)["message"]) == (2, "the environment variable BATCHNLP_LOG is xml")


def test_a_hook_is_told_of_a_signal(tmp_path: Path, corpus: Any, classifier: str) -> None:
    """While it plans, before there is a file to write the results into."""
    (tmp_path / "huge.txt").touch()
    os.truncate(tmp_path / "huge.txt", 1 << 39)
    tree = {
        "source": {"path": str(tmp_path / "huge.txt")}, "task": {"kind": "classify", "model": classifier},
        "output": {"path": str(tmp_path / "out")}, "hooks": [writes(tmp_path / "told")],
    }  # fmt: skip
    process = start(tmp_path, tree)
    strike(process, signal.SIGTERM, lambda: reads(process.pid, "huge.txt"))
    assert process.returncode == 143
    (told,) = kept(tmp_path / "told")
    assert (told["status"], told["exit_code"], told["error"]) == ("stopped", 143, "Terminated")
