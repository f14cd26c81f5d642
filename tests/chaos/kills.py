"""Processes that are killed: workers in each of their phases, the driver at any time and around its records, both."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from functools import partial

import psutil

from chaos.jobs import IN_FLIGHT, Ended, Job, commits, replicas, unless, wait_for_commits
from chaos.table import Outcome, Place, row

PHASES = {
    "load": "while it loads its model", "read": "while it reads", "encode": "while it tokenises",
    "forward": "in its model", "write": "while it writes", "written": "after that, before the commit",
    "handed": "after the commit, before the acknowledgement",
}  # fmt: skip
RECORDS = ("commit", "committed", "published", "manifest", "success")


def _killed_worker(place: Place, phase: str) -> Outcome:
    """The first worker that comes there, at one of its first shards; the run goes on by itself."""
    job = Job(place, 2_000, 50, runner="ray", replicas=2)
    at = 1 if phase == "load" else place.random.randint(1, 8)
    ended = job.run("out", f"{phase}=kill@{at}#{place.folder / 'first'}")
    injected = ended.stderr.count(" was lost, with ")
    calm = Job(place, 2_000, 50)
    calm.clean()
    broken = unless(
        (ended.code == 0, f"exit {ended.code}: {ended.stderr[-200:]}"),
        (sum(ended.lost) <= IN_FLIGHT, f"{sum(ended.lost)} shards were computed twice"),
        (ended.last.get("resumed") == 0, "the driver had to resume"),
    )
    return Outcome.of(job.out("out"), job.ids, injected, seconds=ended.seconds, broken=[*broken, *job.differs("out")])


for _phase, _when in PHASES.items():
    row(f"SIGKILL of a worker {_when}")(partial(_killed_worker, phase=_phase))


@row("SIGKILL of the driver at random points")
def killed_drivers(place: Place) -> Outcome:
    """Fifty times, each in the run that the one before left; what is committed is never touched."""
    job = Job(place, 30_000, 100)
    clean, kills, twice = job.clean(), 0, 0
    out = job.out("out")
    while kills < 50:
        before, process = commits(out), job.start("out")
        wait_for_commits(out, len(before) + place.random.randint(0, 5), process)
        time.sleep(place.random.random() * clean / 300)
        process.kill()
        ended = Ended.of(process)
        kills += ended.code == -signal.SIGKILL
        after = commits(out)
        twice += sum(after.get(shard) != attempt for shard, attempt in before.items())
        if ended.code == 0:
            break
    ended = job.run("out")
    broken = unless(
        (ended.code == 0, f"exit {ended.code}: {ended.stderr[-200:]}"),
        (not twice, f"{twice} committed shards were touched"),
        (kills >= 20, f"the run was over after {kills} kills"),
    )
    return Outcome.of(out, job.ids, kills, broken=[*broken, *job.differs("out")])


@row("SIGKILL of the driver around each commit record and before _SUCCESS")
def killed_at_records(place: Place) -> Outcome:
    """One output a record; the table shows the last one, and the sums of all faults."""
    job = Job(place, 2_000, 100)
    job.clean()
    injected, broken = 0, list[str]()
    for point in RECORDS:
        at = place.random.randint(1, 12) if point in RECORDS[:3] else 1
        first = job.run(point, f"{point}=kill@{at}")
        before = commits(job.out(point))
        again = job.run(point)
        after = commits(job.out(point))
        injected += first.code == -signal.SIGKILL
        broken += unless(
            (first.code == -signal.SIGKILL, f"{point}: exit {first.code} instead of a kill"),
            (again.code == 0, f"{point}: exit {again.code}"),
            (before.items() <= after.items(), f"{point}: committed shards were touched"),
        )
        outcome = Outcome.of(job.out(point), job.ids, 1, broken=job.differs(point))
        broken += [f"{point}: {problem}" for problem in outcome.broken] + [f"{point}: not whole"] * (not outcome.whole)
    return Outcome.of(job.out(RECORDS[-1]), job.ids, injected, broken=broken)


@row("60,000 documents, 20 random kills of driver and workers")
def long_run(place: Place) -> Outcome:
    """The final table equals the undisturbed one, and verify proves it."""
    job = Job(place, 60_000, 250, runner="ray", replicas=2)
    calm = Job(place, 60_000, 250)
    clean = calm.clean()
    out, kills = job.out("out"), {"driver": 0, "worker": 0}
    began, process = time.monotonic(), job.start("out")
    while sum(kills.values()) < 20:
        if not wait_for_commits(out, len(commits(out)) + place.random.randint(2, 10), process):
            break
        if place.random.random() < 0.5:
            process.kill()
            kills["driver"] += Ended.of(process).code == -signal.SIGKILL
            process = job.start("out")
        elif workers := replicas(process.pid):
            with suppress(psutil.Error):
                place.random.choice(workers).kill()
                kills["worker"] += 1
    ended = Ended.of(process)
    broken = unless(
        (ended.code == 0, f"exit {ended.code}: {ended.stderr[-200:]}"),
        (min(kills.values()) > 2, f"of the kills {kills['driver']} hit the driver, {kills['worker']} workers"),
        (sum(kills.values()) == 20, f"the run was over after {sum(kills.values())} kills"),
    )
    seconds = time.monotonic() - began
    return Outcome.of(
        out, job.ids, sum(kills.values()), seconds=seconds, clean=clean, broken=[*broken, *job.differs("out")]
    )


@row("SIGTERM, Ctrl-C once and twice")
def signals(place: Place) -> Outcome:
    """Says so in half a second, drains, exits as signals do, resumes; the second Ctrl-C leaves in a second."""
    job = Job(place, 20_000, 100)
    out, broken = job.out("out"), list[str]()
    for numbers, code in (((signal.SIGTERM,), 143), ((signal.SIGINT,), 130), ((signal.SIGINT, signal.SIGINT), 130)):
        process = job.start("out")
        wait_for_commits(out, len(commits(out)) + 3, process)
        sent = time.monotonic()
        process.send_signal(numbers[0])
        assert process.stderr is not None
        while "finishing" not in (said := process.stderr.readline()) and said:
            continue
        told = time.monotonic() - sent
        for number in numbers[1:]:
            time.sleep(0.3)
            sent = time.monotonic()
            process.send_signal(number)
        ended = Ended.of(process)
        took, name = time.monotonic() - sent, "+".join(n.name for n in numbers)
        broken += unless(
            # A second one that comes when all is said and done ends the process as it would any: for a shell, the same.
            (ended.code == code or (len(numbers) == 2 and 128 - ended.code == code), f"{name}: exit {ended.code}"),
            (told < 0.5, f"{name}: told after {told:.1f} s"),
            (len(numbers) == 1 or took < 1, f"{name}: left after {took:.1f} s"),
        )
    ended = job.run("out")
    broken += unless((ended.code == 0, f"exit {ended.code}: {ended.stderr[-200:]}"))
    return Outcome.of(out, job.ids, 4, broken=broken)
