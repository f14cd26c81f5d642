"""The date of a run: where a job may name it, and runs on many dates."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import QUICK, invoke, last_json, rows_of

from batchnlp.errors import SpecError
from batchnlp.job import dates
from batchnlp.job.identity import fingerprint, fingerprint_facts, job_name
from batchnlp.job.load import build_spec
from batchnlp.job.spec import JobSpec
from batchnlp.types import InputFile, ModelFiles

MODEL = ModelFiles("m", "/models/m", "local", "w1", "t1", {"hidden_size": 32}, 512)
FILES = (InputFile("/in/a.parquet", "a.parquet", 10, "1", "parquet"),)
DAYS = ("2026-11-01", "2026-11-02", "2026-11-03")


def spec(day: Any = None, *settings: str, **more: Any) -> JobSpec:
    tree = {
        "source": {"path": "in"}, "task": {"kind": "embed", "model": "m"}, "output": {"path": "out"}, **more,
        **({"date": day} if day is not None else {}),
    }  # fmt: skip
    return build_spec(tree, settings)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("in/{{ ds }}/*.parquet", "in/2026-11-24/*.parquet"),
        ("in/{{ run_date.strftime('%Y/%m') }}", "in/2026/11"),
        ("{{run_date - days(1)}}", "2026-11-23"),
        ("in/{{ (run_date - days(24)).year }}", "in/2026"),
        ("{% if run_date.weekday() == 1 %}tuesday{% endif %}", "{% if run_date.weekday() == 1 %}tuesday{% endif %}"),
        ("{{ ds }}{% if run_date.weekday() == 1 %} tuesday{% endif %}", "2026-11-24 tuesday"),
        ("no date", "no date"),
    ],
)
def test_strings_of_a_job_are_filled_in(text: str, filled: str) -> None:
    assert spec("2026-11-24", source={"path": text}).source.path == [filled]
    assert spec(date(2026, 11, 24), source={"path": ["a", text]}).source.path == ["a", filled]


def test_everywhere_but_in_the_templates_of_documents() -> None:
    found = spec(
        "2026-11-24",
        source={"path": "in", "filter": [["day", "==", "{{ ds }}"], ["day", "in", ["{{ ds }}", "x"]]]},
        task={"kind": "chat", "model": "m", "prompt": "{{ text }} of {{ ds }}", "system": "{{ ds }}"},
        sinks=[{"kind": "duckdb", "database": "{{ ds }}.db", "table": "t"}],
        output={"path": "out/{{ ds }}"},
        hooks=[{"command": ["tell", "{{ ds }}"]}],
    )
    assert found.source.filter == [("day", "==", "2026-11-24"), ("day", "in", ["2026-11-24", "x"])]
    assert (
        spec("2026-11-24", source={"path": "in", "filter": [("day", "<", "{{ ds }}")]}).source.filter[0][2]
        == "2026-11-24"
    )
    assert (found.task.prompt, found.task.system) == ("{{ text }} of {{ ds }}", "{{ ds }}")
    assert (found.sinks[0].database, found.output.path) == ("2026-11-24.db", "out/2026-11-24")
    assert found.hooks[0].command == ["tell", "2026-11-24"]
    assert spec("2026-11-24", "output.path=to/{{ ds }}").output.path == "to/2026-11-24", "flags too"


def test_a_date_is_put_in_after_the_yaml_is_parsed() -> None:
    """What a template gives is one string, whatever it looks like."""
    found = spec("2026-11-24", source={"path": "{{ '[a, b]' }}", "keep": ["{{ ds }}: x"]})
    assert found.source.path == ["[a, b]"]
    assert found.source.keep == ["2026-11-24: x"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"source": {"path": "{{ dz }}"}}, "the job: source.path: there is no {{ dz }} (did you mean ds?)"),
        (
            {"source": {"path": "{{ rundate }}"}},
            "the job: source.path: there is no {{ rundate }} (did you mean run_date?)",
        ),
        ({"output": {"path": "{{ question }}"}}, "the job: output.path: there is no {{ question }} (the names are "),
        ({"output": {"path": "{{ ds "}}, "the job: output.path is no jinja2 template: "),
        (
            {"output": {"path": "{{ run_date.nonsense }}"}},
            "the job: output.path: {{ run_date.nonsense }} cannot be filled",
        ),
        (
            {"output": {"path": "{{ ds.__class__.__mro__ }}"}},
            "the job: output.path: {{ ds.__class__.__mro__ }} cannot be",
        ),
        ({"output": {"path": "{{ 'a' * 99999999999 }}"}}, "the job: output.path: {{ 'a' * 99999999999 }} cannot be"),
        ({"job": "nightly-{{ ds }}"}, "the job: job is the same on all dates (write it without {{ }}"),
        ({"date": "24.11.2026"}, "the job: date: 24.11.2026 is no date (write it as 2026-11-24)"),
        ({"date": "2026-02-30"}, "the job: date: 2026-02-30 is no date"),
        ({"date": "20261124"}, "the job: date: 20261124 is no date"),
        (
            {"schedule": {"cron": "0 2 * *"}, "job": "j"},
            "the job: schedule.cron: a cron expression has five fields",
        ),
        (
            {"schedule": {"cron": "0 2 * * *", "timezone": "Europe/Berln"}, "job": "j"},
            "the job: schedule.timezone: there is no 'Europe/Berln'; did you mean Europe/Berlin?",
        ),
        ({"schedule": {"cron": "0 2 * * *", "zone": "UTC"}, "job": "j"}, "the job: unknown key schedule.zone"),
        ({"schedule": {"cron": "0 2 * * *"}}, "the job: job is needed beside schedule"),
    ],
)
def test_what_cannot_be_is_one_line(more: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**{"day": "2026-11-24", **more} if "date" not in more else more)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_who_is_to_blame_for_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"^--set: date: never is no date"):
        spec(None, "date=never")
    with pytest.raises(SpecError, match=r"^--set: output.path: there is no \{\{ day \}\}"):
        spec(None, "output.path=to/{{ day }}")
    monkeypatch.setenv("BATCHNLP_DATE", "2026-11-5")
    with pytest.raises(SpecError, match=r"^BATCHNLP_DATE: date: 2026-11-5 is no date"):
        spec()
    monkeypatch.setenv("BATCHNLP_DATE", "2026-11-05")
    assert spec(source={"path": "{{ ds }}"}).source.path == ["2026-11-05"]


def test_without_one_it_is_today_where_the_schedule_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 11, 24, 23, 30, tzinfo=UTC).astimezone(tz)

    monkeypatch.setattr(dates, "datetime", Clock)
    dated: dict[str, Any] = {"job": "j", "source": {"path": "{{ ds }}"}}
    for zone, day in (("UTC", "2026-11-24"), ("Asia/Tokyo", "2026-11-25"), ("America/Lima", "2026-11-24")):
        found = spec(schedule={"cron": "0 2 * * *", "timezone": zone}, **dated)
        assert (found.source.path, found.date) == ([day], date.fromisoformat(day))
    assert spec().date is None, "a job that names no date has none"


def identity(found: JobSpec) -> str:
    return fingerprint(fingerprint_facts(found, MODEL, FILES))


def test_the_date_is_part_of_what_a_run_is_where_it_changes_rows() -> None:
    one, other = "2026-11-24", "2026-11-25"
    filters = {"source": {"path": "in", "filter": [["day", "==", "{{ ds }}"]]}}
    written = {"output": {"path": "out", "partition_by": ["run_date"]}}
    for more in (filters, written):
        assert identity(spec(one, **more)) != identity(spec(other, **more))
        assert identity(spec(one, **more)) == identity(spec(one, **more))
    assert identity(spec(one)) == identity(spec(other)) == identity(spec()), "a date that nothing names is no matter"
    places = {"output": {"path": "out/{{ ds }}"}}
    assert identity(spec(one, **places)) == identity(spec(other, **places)), "nor is where it writes"
    by_night = {"job": "j", "schedule": {"cron": "0 2 * * *"}, "hooks": [{"textfile": "metrics"}]}
    assert identity(spec(**by_night)) == identity(spec()), "when it runs and who is told change no rows"
    assert job_name(spec(one, job="j", **places)) == "j"


# --- on the command line


@pytest.fixture
def job(tmp_path: Path, classifier: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job over a file a day; there is none for the third of November."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for n, day in enumerate(("2026-11-01", "2026-11-02", "2026-11-04"), 2):
        table = pa.table({"doc_id": [f"{day}/{i}" for i in range(n)], "text": [f"tool {i}" for i in range(n)]})
        pq.write_table(table, f"in/{day}.parquet")
    tree = {
        "job": "dated", "source": {"path": "in/{{ ds }}.parquet", "id": "doc_id"},
        "task": {"kind": "classify", "model": classifier}, "output": {"path": "out/{{ ds }}"},
    }  # fmt: skip
    Path("job.yaml").write_text(json.dumps(tree), encoding="utf-8")
    return tmp_path / "job.yaml"


def test_a_run_on_a_date(job: Path) -> None:
    result = invoke("run", job, "--date", "2026-11-02", "--json", *QUICK)
    assert result.exit_code == 0, result.output
    assert last_json(result)["output"].endswith("out/2026-11-02")
    assert [row["id"] for row in rows_of(Path("out/2026-11-02"))] == ["2026-11-02/0", "2026-11-02/1", "2026-11-02/2"]
    result = invoke("run", job, "--date", "yesterday", *QUICK)
    assert (result.exit_code, result.stderr) == (
        2, "batchnlp: --date: yesterday is no date (write it as 2026-11-24)\n",
    )  # fmt: skip


def test_backfill_runs_each_date_and_says_what_became_of_it(job: Path) -> None:
    assert invoke("run", job, "--date", "2026-11-02", *QUICK).exit_code == 0
    result = invoke("run", job, "--backfill", "2026-11-01", "2026-11-04", "--json", *QUICK)
    assert result.exit_code == 2, "the first that is not done"
    tree = last_json(result)
    assert (tree["status"], tree["exit_code"]) == ("error", 2)
    found = [
        (day["date"], day["status"], day.get("rows"), day.get("shards"), day["exit_code"]) for day in tree["dates"]
    ]
    assert found == [
        ("2026-11-01", "done", 2, 1, 0),
        ("2026-11-02", "done", 3, 0, 0),  # before
        ("2026-11-03", "error", None, None, 2),
        ("2026-11-04", "done", 4, 1, 0),  # a date without files keeps no other from its own
    ]
    assert "2026-11-03.parquet" in tree["dates"][2]["message"]
    assert tree["dates"][1]["message"] == "all is done already"

    pq.write_table(pa.table({"doc_id": ["x"], "text": ["late"]}), "in/2026-11-03.parquet")
    result = invoke("run", job, "--backfill", "2026-11-01", "2026-11-04", *QUICK)
    assert result.exit_code == 0, result.output
    told = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [line[:4] for line in told] == [
        ["2026-11-01", "done", "2", "0"], ["2026-11-02", "done", "3", "0"], ["2026-11-03", "done", "1", "0"],
        ["2026-11-04", "done", "4", "0"],
    ]  # fmt: skip
    assert [line[4:] for line in told].count(["all", "is", "done", "already"]) == 3


def test_what_will_hit_the_next_date_too_ends_a_backfill(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchnlp.data import ledger
    from batchnlp.errors import StoppedError

    def full(*args: Any) -> bool:
        raise StoppedError("no space left below out")

    with monkeypatch.context() as patch:
        patch.setattr(ledger.Ledger, "commit", full)
        result = invoke("run", job, "--backfill", "2026-11-01", "2026-11-02", "--json", *QUICK)
    tree = last_json(result)
    assert (result.exit_code, tree["status"]) == (3, "error")
    assert [day["status"] for day in tree["dates"]] == ["error", "not begun"]
    assert not Path("out/2026-11-02").exists()
    result = invoke("run", job, "--backfill", "2026-11-01", "2026-11-02", "--json", *QUICK)
    assert [day["status"] for day in last_json(result)["dates"]] == ["done", "done"], "the same command resumes"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["2026-11-02", "2026-11-01"], "--backfill 2026-11-02 2026-11-01 are 0 dates (from 1 to 10,000 can be run)"),
        (["1000-01-01", "2026-11-01"], "--backfill 1000-01-01 2026-11-01 are 375,"),
        (["2026-11-02", "tomorrow"], "--backfill: tomorrow is no date"),
        (["2026-11-01", "2026-11-02", "--date", "2026-11-01"], "--date and --backfill are both given"),
        (["2026-11-01", "2026-11-02", "--set", "source.path=in", "--set", "output.path=out"], "the job names no date"),
        (
            ["2026-11-01", "2026-11-02", "--set", "output.path=out"],
            "all dates would write into out (write {{ ds }} into",
        ),
    ],
)
def test_a_backfill_that_cannot_be(job: Path, words: list[str], message: str) -> None:
    result = invoke("run", job, "--backfill", *words, *QUICK)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"batchnlp: {message}")
    assert not Path("out").exists()


def test_dates_of_one_output_are_a_column_and_folders(job: Path) -> None:
    """run_date is no column of the source, and appended runs lie side by side."""
    words = ["--set", "output.path=out", "--set", "output.partition_by=[run_date]", "--mode", "append", *QUICK]
    result = invoke("run", job, "--backfill", "2026-11-01", "2026-11-02", *words)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("out").glob("run_date=*")) == [
        "run_date=2026-11-01",
        "run_date=2026-11-02",
    ]
    rows = rows_of(Path("out"))
    assert [(row["id"], row["run_date"]) for row in rows] == [
        (f"{day}/{i}", day) for day, n in (("2026-11-01", 2), ("2026-11-02", 3)) for i in range(n)
    ]
    assert invoke("verify", "out").exit_code == 0
    again = invoke("run", job, "--backfill", "2026-11-01", "2026-11-02", *words, "--json")
    assert [day["shards"] for day in last_json(again)["dates"]] == [0, 0]
    part = pq.read_schema(next(Path("out/run_date=2026-11-01").glob("*.parquet")))
    assert part.field("run_date").type == pa.date32()
