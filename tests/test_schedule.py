"""Jobs by the clock: at their time, one at a time, once after a pause. The clock is a variable, a run is a number, but for the
last test, in which both are real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from commands import invoke, last_json
from processes import DEADLINE

from batchnlp.engine.signals import Interrupt
from batchnlp.errors import CorruptError, SpecError
from batchnlp.schedule import loop
from batchnlp.schedule.jobs import Entry, scheduled
from batchnlp.schedule.loop import Scheduler, serve
from batchnlp.schedule.state import State

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def write_job(
    path: Path, cron: str = "0 2 * * *", zone: str = "Europe/Berlin", name: str = "nightly", **more: Any
) -> Path:
    tree = {
        "job": name, "schedule": {"cron": cron, "timezone": zone}, "source": {"path": "in/{{ ds }}"},
        "task": {"kind": "embed", "model": "m"}, "output": {"path": "out/{{ ds }}"}, **more,
    }  # fmt: skip
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


@dataclass
class Run:
    """A run that ends when it is told to."""

    entry: Entry
    at: datetime
    code: int | None = None
    terminated: bool = False

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.terminated = True


@dataclass
class Night:
    """A scheduler over a folder of jobs, and all that it does."""

    folder: Path
    now: datetime
    runs: list[Run] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """As after a crash: nothing is left but the file."""
        self.state = State(str(self.folder / "state.json"))
        self.scheduler = Scheduler(
            [str(self.folder)], self.state, self.said.append, lambda: self.now, lambda entry, at: self._start(entry, at)
        )

    def _start(self, entry: Entry, at: datetime) -> Run:
        self.runs.append(Run(entry, at))
        return self.runs[-1]

    def at(self, text: str, zone: str = "+01:00") -> float:
        """Look at that time."""
        self.now = datetime.fromisoformat(f"{text}{zone}").astimezone(UTC)
        return self.scheduler.step()

    def times(self) -> list[str]:
        return [run.at.strftime("%Y-%m-%d %H:%M %z") for run in self.runs]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    write_job(tmp_path / "job.yaml")
    return Night(tmp_path, datetime(2026, 11, 23, 12, tzinfo=UTC))


def test_a_job_runs_at_its_time_and_once(night: Night) -> None:
    assert night.at("2026-11-24T01:00") == loop.IDLE, "nothing before it was met is missed"
    assert night.said == ["nightly: scheduled; next 2026-11-24 02:00 CET"]
    assert night.at("2026-11-24T01:59:50") == 10.0, "looks again when it is time"
    assert night.runs == []
    assert night.at("2026-11-24T02:00:00.5") == loop.BUSY
    assert night.times() == ["2026-11-24 02:00 +0100"]
    assert night.runs[0].entry.file == str(night.folder / "job.yaml")
    night.runs[0].code = 0
    night.at("2026-11-24T02:10")
    assert night.said[1:] == [
        "nightly: the run of 2026-11-24 02:00 CET begins", "nightly: the run of 2026-11-24 02:00 CET ended with exit code 0",
    ]  # fmt: skip
    night.at("2026-11-24T23:00")
    night.at("2026-11-25T02:00")
    assert night.times() == ["2026-11-24 02:00 +0100", "2026-11-25 02:00 +0100"]


def test_no_overlap(night: Night) -> None:
    night.at("2026-11-24T01:00")
    night.at("2026-11-24T02:00")
    for hour in ("02:00", "02:01", "09:00"):
        night.at(f"2026-11-25T{hour}")
    assert len(night.runs) == 1
    told = "nightly: the run of 2026-11-24 02:00 CET is not done; that of 2026-11-25 02:00 CET begins after it"
    assert night.said.count(told) == 1, "said once, however often it looks"
    night.runs[0].code = 1
    night.at("2026-11-25T09:30")
    assert night.times()[1:] == ["2026-11-25 02:00 +0100"]


def test_what_was_missed_is_made_up_for_once(night: Night) -> None:
    night.at("2026-11-20T12:00")
    night.at("2026-11-21T02:00")
    night.runs[0].code = 0
    night.at("2026-11-21T02:05")
    night.restart()
    night.at("2026-11-24T09:00")
    assert night.times()[1:] == ["2026-11-24 02:00 +0100"], "with the date of the latest"
    assert night.said[-1] == (
        "nightly: missed before it, and not made up for: 2 runs since 2026-11-22 02:00 CET; batchnlp run "
        f"{night.folder / 'job.yaml'} --backfill 2026-11-22 2026-11-23 does"
    )
    night.runs[1].code = 0
    night.at("2026-11-24T09:05")
    night.at("2026-11-24T12:00")
    assert len(night.runs) == 2


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_a_crash_or_a_stop_ended_is_run_again(night: Night, ended: bool) -> None:
    """It resumes; what was done is not done again."""
    night.at("2026-11-24T01:00")
    night.at("2026-11-24T02:00")
    if ended:
        night.scheduler.stop()
        assert night.runs[0].terminated
        assert not night.scheduler.drained()
        night.runs[0].code = 143
        assert night.scheduler.drained()
    night.restart()
    night.at("2026-11-24T02:20")
    assert night.times() == ["2026-11-24 02:00 +0100"] * 2


def test_an_output_in_use_is_waited_for(night: Night) -> None:
    night.at("2026-11-24T01:00")
    night.at("2026-11-24T02:00")
    night.runs[0].code = 75
    night.at("2026-11-24T02:00:30")
    night.at("2026-11-24T02:01")
    assert len(night.runs) == 1
    night.at("2026-11-24T02:01:31")
    assert night.times() == ["2026-11-24 02:00 +0100"] * 2


def test_the_clock_is_set_back(tmp_path: Path) -> None:
    """By law, when 02:30 is there twice; and by hand."""
    write_job(tmp_path / "job.yaml", cron="30 2 * * *")
    night = Night(tmp_path, datetime(2026, 10, 24, 12, tzinfo=UTC))
    night.at("2026-10-24T12:00", "+02:00")
    night.at("2026-10-25T02:30", "+02:00")
    night.runs[0].code = 0
    for moment, zone in (("02:59", "+02:00"), ("02:30", "+01:00"), ("02:59", "+01:00"), ("12:00", "+01:00")):
        night.at(f"2026-10-25T{moment}", zone)
    night.at("2026-10-25T02:20", "+01:00")  # by hand
    night.at("2026-10-25T02:30", "+01:00")
    assert night.times() == ["2026-10-25 02:30 +0200"]
    night.at("2026-10-26T02:30")
    assert len(night.runs) == 2
    night.at("2026-10-20T12:00", "+02:00")  # a clock that was far ahead would keep the job from its nights
    assert night.said[-1] == "nightly: the clock was set back; next 2026-10-21 02:30 CEST"


def test_a_time_that_does_not_exist(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml", cron="30 2 * * *")
    night = Night(tmp_path, datetime(2026, 3, 28, 12, tzinfo=UTC))
    night.at("2026-03-28T12:00")
    night.at("2026-03-29T01:59")
    assert night.runs == []
    night.at("2026-03-29T03:00", "+02:00")
    assert night.times() == ["2026-03-29 03:00 +0200"]


def test_jobs_come_change_and_break_while_it_runs(night: Night) -> None:
    night.at("2026-11-24T01:00")
    (night.folder / "half.yaml").write_text("job: [")
    write_job(night.folder / "other.yaml", cron="*/10 * * * *", name="other")
    write_job(night.folder / "twin.yaml")
    for minute in ("01:01", "01:02"):
        night.at(f"2026-11-24T{minute}")
    assert [line.partition(":")[0] for line in night.said[1:]] == ["left out", "left out", "other"], night.said
    assert "half.yaml is not valid YAML" in night.said[1]
    assert "are both the job nightly (give each a name of its own" in night.said[2]
    write_job(night.folder / "job.yaml", cron="5 1 * * *")
    night.at("2026-11-24T01:06")
    assert night.said[-1] == "nightly: schedule changed; next 2026-11-25 01:05 CET", (
        "what it would have been is not missed"
    )
    night.at("2026-11-24T01:10")
    assert [run.entry.name for run in night.runs] == ["other"]
    (night.folder / "other.yaml").unlink()
    night.runs[0].code = 0
    night.at("2026-11-24T01:20")
    assert len(night.runs) == 1


def test_folders_hold_other_files_too(tmp_path: Path) -> None:
    write_job(tmp_path / "b.yaml", name="b")
    write_job(tmp_path / "a.yml", name="a")
    write_job(tmp_path / "by-hand.yaml", name="c", schedule=None)
    (tmp_path / "notes.txt").write_text("no job")
    assert [entry.name for entry in scheduled([str(tmp_path), str(tmp_path / "b.yaml")])] == ["a", "b"]
    with pytest.raises(SpecError, match="no job file"):
        scheduled([str(tmp_path / "nothing.yaml")])


def test_a_damaged_state_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(CorruptError, match=r"state.json is damaged: .* \(remove it; then nothing counts as missed\)"):
        State(str(tmp_path / "state.json"))


# --- the commands


def test_list(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml")
    write_job(tmp_path / "often.yaml", cron="* * * * *", zone="UTC", name="often")
    state = tmp_path / "state.json"
    night = Night(tmp_path, datetime(2026, 11, 23, 12, tzinfo=UTC))
    night.at("2026-11-24T01:00")
    night.at("2026-11-24T02:00")
    for run in night.runs:
        run.code = 3
    night.at("2026-11-24T02:01")
    result = invoke("schedule", "list", tmp_path, "--state", state)
    assert result.exit_code == 0, result.output
    head, first, second = result.stdout.splitlines()
    assert head.split() == ["job", "next", "then", "then", "last", "file"]
    assert first.startswith("often"), "the soonest first"
    assert "2026-11-24 02:00 CET: exit code 3" in second
    tree = last_json(invoke("schedule", "list", tmp_path, "--state", state, "--json"))
    assert tree["status"] == "done"
    often, nightly = tree["jobs"]
    assert (often["job"], often["cron"], often["timezone"]) == ("often", "* * * * *", "UTC")
    assert len(often["next"]) == 3
    assert (nightly["last"], nightly["exit_code"]) == ("2026-11-24T01:00:00+00:00", 3)
    assert json.loads(state.read_text())["format"] == 1


def test_list_without_a_schedule(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml", schedule=None)
    result = invoke("schedule", "list", tmp_path / "job.yaml", "--json")
    assert (result.exit_code, last_json(result)["error"]) == (2, "SpecError")
    assert "has a schedule (add one to it: schedule: {cron:" in result.stderr
    result = invoke("schedule", "lst", tmp_path)
    assert result.exit_code == 2
    assert "did you mean list?" in result.stderr


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "batchnlp",
        "schedule",
        "run",
        str(folder),
        "--state",
        str(folder / "s/state.json"),
    ]
    return subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, cwd=folder)


def told(process: subprocess.Popen[str], what: str) -> str:
    """Its words, until these are among them."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if what in line:
            return "".join(lines)
    raise AssertionError(f"it ended without {what!r}: {lines}")


def test_one_at_a_time_and_an_end_by_signal(tmp_path: Path) -> None:
    write_job(tmp_path / "job.yaml")
    process = start(tmp_path)
    try:
        told(process, "nightly: scheduled; next ")
        other = subprocess.run(
            [sys.executable, "-m", "batchnlp", "schedule", "run", "job.yaml", "--state", "s/state.json"],
            capture_output=True, text=True, cwd=tmp_path, timeout=DEADLINE, check=False,
        )  # fmt: skip
        assert other.returncode == 75, other.stderr
        assert f"in use by process {process.pid} on" in other.stderr
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 143
    finally:
        process.kill()


def test_a_stop_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    """A real process that takes its time to end."""
    write_job(tmp_path / "job.yaml", cron="* * * * *", zone="UTC")
    code = "import signal, sys, time\nsignal.signal(15, lambda *a: sys.exit(9))\nprint('ready', flush=True)\ntime.sleep(600)"
    processes: list[subprocess.Popen[str]] = []

    def slow(entry: Entry, at: datetime) -> subprocess.Popen[str]:
        processes.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None
        processes[-1].stdout.readline()
        interrupt.signal = signal.SIGTERM
        return processes[-1]

    interrupt, state = Interrupt(), State(str(tmp_path / "state.json"))
    (entry,) = scheduled([str(tmp_path)])
    state.meet(entry, datetime.now(UTC) - HOUR)
    serve(Scheduler([str(tmp_path)], state, lambda text: None, start=slow), interrupt)
    assert [process.poll() for process in processes] == [9]
    seen = state.seen("nightly")
    assert seen is not None
    assert seen.ended is None, "to be resumed at the next start"


def test_a_real_run_at_a_real_time(tmp_path: Path, corpus: Any, classifier: str) -> None:
    """The minute is nearly over when it starts; a job in a process of its own, with the date of its time."""
    corpus(name="in")
    write_job(
        tmp_path / "job.yaml", cron="* * * * *", zone="Pacific/Kiritimati", source={"path": str(tmp_path / "in"), "id": "doc_id"},
        task={"kind": "classify", "model": classifier}, output={"path": str(tmp_path / "out/{{ ds }}")},
        engine={"runner": "inline", "dtype": "float32", "device": "cpu", "backend": "torch"},
    )  # fmt: skip
    real = datetime.now(UTC)
    ahead = real.replace(second=58, microsecond=0) - real  # the clock says :58 now
    state, said, interrupt = State(str(tmp_path / "state.json")), [], Interrupt()
    fired: list[timedelta] = []

    def tell(text: str) -> None:
        said.append(text)
        if text.endswith("begins"):
            fired.append(datetime.now(UTC) - real)
        if "ended" in text:
            interrupt.signal = signal.SIGTERM

    scheduler = Scheduler([str(tmp_path / "job.yaml")], state, tell, lambda: datetime.now(UTC) + ahead)
    limit = time.monotonic() + DEADLINE
    step = scheduler.step
    scheduler.step = lambda: step() if time.monotonic() < limit else pytest.fail(f"it never ended: {said}")  # type: ignore[method-assign]
    serve(scheduler, interrupt)
    assert fired[0] >= timedelta(seconds=1), "not before its time"
    seen = state.seen("nightly")
    assert seen is not None
    assert (seen.exit_code, seen.last.second) == (0, 0), said
    day = seen.last.astimezone(scheduled([str(tmp_path)])[0].schedule.zone).date()
    assert os.listdir(tmp_path / "out") == [str(day)]
    assert (tmp_path / "out" / str(day) / "_SUCCESS").is_file()
