"""Cron expressions, and when they are due: also on the days on which clocks are set."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchnlp.job.cron import Cron
from batchnlp.schedule.exports.systemd import calendar
from batchnlp.schedule.times import due, missed

BERLIN = ZoneInfo("Europe/Berlin")  # forward on 2026-03-29 at 02:00, back on 2026-10-25 at 03:00
HAVANA = ZoneInfo("America/Havana")  # at midnight, so that a day begins at 01:00, and one has two midnights
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")  # by half an hour


def times(text: str, zone: ZoneInfo, after: datetime, count: int) -> list[str]:
    """The next times, with their offset from UTC."""
    return [moment.strftime("%m-%d %H:%M %z") for moment in islice(due(Cron.parse(text), zone, after), count)]


def at(text: str, zone: ZoneInfo = BERLIN) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0 2 * * *", "0 2 * * *"),
        ("*/15 * * * *", "0,15,30,45 * * * *"),
        ("5,0 9-17/4 * jan-MAR mon-fri", "0,5 9,13,17 * 1-3 1-5"),
        ("0 0 * * 5-7", "0 0 * * 0,5,6"),
        ("0 0 * * 0,7", "0 0 * * 0"),
        ("0 0 1 * sun", "0 0 1 * 0"),
        ("0 0 1-31 * mon", "0 0 1-31 * 1"),  # either: all days, and * would mean Mondays
        ("0 0 29 2 *", "0 0 29 2 *"),
    ],
)
def test_expressions_in_numbers(text: str, numbers: str) -> None:
    assert str(Cron.parse(text)) == numbers
    assert Cron.parse(numbers) == Cron.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 2 * *", r"a cron expression has five fields .* has 4"),
        ("@daily", r"five fields .* has 1"),
        ("60 2 * * *", r"'60' is no minute \(0 to 59\)"),
        ("0 24 * * *", r"'24' is no hour \(0 to 23\)"),
        ("0 2 * * frid", "'frid' is no day of the week"),
        ("0 2 * foo *", "'foo' is no month"),
        ("0 2-1 * * *", "'2-1' ends before it begins"),
        ("*/0 * * * *", "step of 0"),
        ("5/10 * * * *", "a step needs a range before it, as 5-59/10"),
        ("*-3 * * * *", r"'\*-3' is no minute"),
        ("0 2 L * *", "'L' is no day of the month"),
        ("0 2 -1 * *", "'-1' is no day of the month"),
        ("0 2 30 2 *", "names a day that is in none of its months"),
        ("0 2 31 4,6 *", "names a day that is in none of its months"),
        ("0 2 */2 * mon", "schedulers differ"),
    ],
)
def test_what_schedulers_would_read_differently_or_not_at_all(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cron.parse(text)


def test_a_fixed_time_that_is_there_twice_counts_once() -> None:
    for text, shown in (("30 2 * * *", "02:30"), ("0 2 * * *", "02:00"), ("59 2 * * *", "02:59")):
        assert times(text, BERLIN, at("2026-10-24T12:00"), 3) == [
            f"10-25 {shown} +0200", f"10-26 {shown} +0100", f"10-27 {shown} +0100",
        ]  # fmt: skip
    first = next(due(Cron.parse("30 2 * * *"), BERLIN, at("2026-10-24T12:00")))
    hour_later = (first.astimezone(UTC) + timedelta(hours=1)).astimezone(BERLIN)
    assert hour_later.strftime("%H:%M") == "02:30", "the clock shows it again"
    assert times("30 2 * * *", BERLIN, hour_later, 1) == ["10-26 02:30 +0100"]
    assert times("0 0 * * *", HAVANA, at("2026-10-31T12:00", HAVANA), 2) == ["11-01 00:00 -0400", "11-02 00:00 -0500"]


def test_a_fixed_time_that_does_not_exist_is_the_next_that_does() -> None:
    after = at("2026-03-28T12:00")
    assert times("30 2 * * *", BERLIN, after, 2) == ["03-29 03:00 +0200", "03-30 02:30 +0200"]
    assert times("0 2,3 * * *", BERLIN, after, 3) == ["03-29 03:00 +0200", "03-30 02:00 +0200", "03-30 03:00 +0200"]
    assert times("0 0 * * *", HAVANA, at("2026-03-07T12:00", HAVANA), 2) == ["03-08 01:00 -0400", "03-09 00:00 -0400"]
    assert times("15 2 * * *", LORD_HOWE, at("2026-10-03T12:00", LORD_HOWE), 2) == [
        "10-04 02:30 +1100", "10-05 02:15 +1100",
    ]  # fmt: skip


def test_a_rhythm_goes_on_as_time_does() -> None:
    assert times("*/30 * * * *", BERLIN, at("2026-10-25T01:45"), 6) == [
        "10-25 02:00 +0200", "10-25 02:30 +0200", "10-25 02:00 +0100", "10-25 02:30 +0100", "10-25 03:00 +0100",
        "10-25 03:30 +0100",
    ]  # fmt: skip
    assert times("*/30 * * * *", BERLIN, at("2026-03-29T01:15"), 3) == [
        "03-29 01:30 +0100", "03-29 03:00 +0200", "03-29 03:30 +0200",
    ]  # fmt: skip
    assert times("0 */12 * * mon", BERLIN, at("2026-10-25T13:00"), 3) == [
        "10-26 00:00 +0100", "10-26 12:00 +0100", "11-02 00:00 +0100",
    ]  # fmt: skip


def test_days_by_number_or_by_weekday() -> None:
    after = at("2026-11-01T00:00", ZoneInfo("UTC"))
    shown = times("0 2 13 * fri", ZoneInfo("UTC"), after, 5)
    assert [text[:5] for text in shown] == ["11-06", "11-13", "11-20", "11-27", "12-04"], "the 13th is a Friday"
    assert times("0 0 29 2 *", ZoneInfo("UTC"), after, 1) == ["02-29 00:00 +0000"]
    assert next(due(Cron.parse("0 0 29 2 *"), ZoneInfo("UTC"), after)).year == 2028


YEAR = st.integers(0, 366 * 24 * 60).map(lambda minutes: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes))
ZONES = st.sampled_from([BERLIN, HAVANA, LORD_HOWE, ZoneInfo("UTC"), ZoneInfo("Africa/Casablanca")])


@given(YEAR, ZONES, st.integers(0, 23), st.integers(0, 59))
def test_a_fixed_time_is_once_every_local_day(after: datetime, zone: ZoneInfo, hour: int, minute: int) -> None:
    found = list(islice(due(Cron.parse(f"{minute} {hour} * * *"), zone, after), 40))
    days = [moment.date() for moment in found]
    assert days == [days[0] + timedelta(days=n) for n in range(40)]
    assert all(a.astimezone(UTC) < b.astimezone(UTC) for a, b in pairwise(found))
    assert found[0].astimezone(UTC) > after


@given(YEAR, ZONES)
def test_what_is_due_does_not_depend_on_when_one_looks(after: datetime, zone: ZoneInfo) -> None:
    for text in ("17 2 * * *", "*/20 1-3 * * *", "0 0,12 * * sun"):
        cron = Cron.parse(text)
        found = list(islice(due(cron, zone, after), 6))
        assert [next(due(cron, zone, moment)) for moment in found[:-1]] == found[1:]


def test_what_was_missed() -> None:
    cron, zone = Cron.parse("0 2 * * *"), BERLIN
    assert missed(cron, zone, at("2026-05-01T02:00"), at("2026-05-02T01:59")) is None
    found = missed(cron, zone, at("2026-05-01T02:00"), at("2026-05-04T02:00"))
    assert found is not None
    assert (found.first, found.last, found.count) == (at("2026-05-02T02:00"), at("2026-05-04T02:00"), 3)
    assert missed(cron, zone, at("2026-05-04T02:00"), at("2026-05-01T02:00")) is None, "the clock was set back"


def test_days_that_a_job_runs_on() -> None:
    assert list(islice(Cron.parse("0 2 31 * *").dates(date(2026, 4, 1)), 2)) == [date(2026, 5, 31), date(2026, 7, 31)]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize(
    "text", ["0 2 * * *", "*/15 * * * *", "5,0 9-17/4 * 1-3 mon-fri", "30 6 1,15 * *", "0 0 29 2 *", "0 12 * * 0"]
)
def test_systemd_means_the_same(text: str) -> None:
    """Another program's idea of the expression that we export, in a zone whose clocks are not set."""
    (expression,) = calendar(Cron.parse(text))
    command = ["systemd-analyze", "calendar", "--iterations=20", "--base-time=2026-05-31 23:59:30 UTC"]
    done = subprocess.run([*command, f"{expression} UTC"], capture_output=True, text=True, check=True)
    words = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if "Next elapse" in line or "Iter" in line]
    after = datetime(2026, 5, 31, 23, 59, 30, tzinfo=UTC)
    expected = [
        m.strftime("%a %Y-%m-%d %H:%M:%S UTC") for m in islice(due(Cron.parse(text), ZoneInfo("UTC"), after), 20)
    ]
    assert words == expected
