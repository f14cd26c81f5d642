"""Who works on what: without processes, and on a clock that the test sets."""

from __future__ import annotations

from typing import Any

import pytest

from batchnlp.engine.deadlines import BLIND, FLOOR, TIMES, UNMEASURED, Watch
from batchnlp.engine.leases import MAX_LOSSES, SLOW, SLOW_FLOOR, USUAL, LeaseQueue
from batchnlp.engine.losses import IN_VAIN, Losses
from batchnlp.engine.suspects import HUNG, LOST
from batchnlp.errors import WorkerLostError
from batchnlp.types import Segment, Shard


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def queue(count: int, **more: Any) -> LeaseQueue:
    return LeaseQueue([Shard(i, (Segment(0, i, i + 1, 1),)) for i in range(count)], **more)


def take(leases: LeaseQueue, worker: str, count: int = 1) -> list[int]:
    shards = [leases.lease(worker) for _ in range(count)]
    return [shard.index for shard in shards if shard is not None]


def test_what_a_lost_worker_held_goes_to_others_alone_and_comes_first() -> None:
    leases = queue(4)
    assert take(leases, "a", 3) == [0, 1, 2]
    leases.done("a", 1)
    assert leases.release("a") == ([0, 2], [])
    assert leases.waiting() == 3
    found = leases.suspect("b")
    assert found is not None
    assert (found[0].index, found[1]) == (0, LOST)
    assert take(leases, "b", 2) == [3], "what is suspected is never leased among others"
    assert leases.release("b", HUNG) == ([0, 3], [])
    assert [leases.suspect("c")[1] for _ in range(3)] == [LOST, HUNG, HUNG]  # type: ignore[index]
    assert leases.suspect("c") is None


def test_a_shard_that_takes_worker_after_worker_is_given_up() -> None:
    leases = queue(1)
    assert take(leases, "0") == [0]
    for turn in range(1, MAX_LOSSES):
        assert leases.release(str(turn - 1)) == ([0], [])
        assert leases.suspect(str(turn)) is not None
    assert leases.release(str(MAX_LOSSES - 1)) == ([0], [0])


def test_the_tail_is_run_twice_once_it_takes_longer_than_usual() -> None:
    clock = Clock()
    leases = queue(4, twice=True, clock=clock)
    assert take(leases, "slow") == [0]
    assert take(leases, "fast") == [1]
    clock.now = 10
    leases.done("fast", 1)
    assert take(leases, "fast", 2) == [2, 3]
    clock.now = 10 * USUAL
    assert leases.waiting() == 0, "not longer than usual"
    assert take(leases, "fast") == []
    clock.now += 1
    assert leases.waiting() == 1
    assert take(leases, "fast", 2) == [0], "once, and never what one has oneself"
    leases.done("fast", 0)
    leases.done("fast", 2)
    assert leases.release("slow") == ([0], []), "done elsewhere: nothing is suspected"
    assert leases.suspect("fast") is None


def test_a_suspect_has_no_second_worker() -> None:
    """It may be the one that kills: two at a time would die of it."""
    clock = Clock()
    leases = queue(2, suspects={0: LOST}, twice=True, clock=clock)
    assert leases.suspect("a") is not None
    assert take(leases, "b") == [1]
    clock.now = 1
    leases.done("b", 1)
    clock.now = 1000
    assert take(leases, "b") == []


def test_a_worker_that_another_one_overtook_is_not_suspected_of_what_is_done() -> None:
    clock = Clock()
    leases = queue(2, clock=clock)
    assert take(leases, "a") == [0]
    assert leases.stuck(None) == [], "nothing was measured yet"
    clock.now = 5
    assert leases.stuck(4) == ["a"]
    assert take(leases, "b") == [1]
    leases.done("b", 1)
    leases.done("b", 0)
    assert leases.stuck(4) == []


def test_how_long_a_shard_may_take_follows_the_slowest() -> None:
    clock = Clock()
    leases = queue(2, clock=clock)
    assert take(leases, "a") == [0]
    clock.now = 100
    leases.done("a", 0)
    assert take(leases, "a") == [1]
    clock.now += max(SLOW * 100, SLOW_FLOOR)
    assert leases.stuck(None) == []
    clock.now += 1
    assert leases.stuck(None) == ["a"]


def test_nothing_is_leased_once_the_end_has_begun() -> None:
    leases = queue(3, suspects={1: LOST})
    leases.close()
    assert (take(leases, "a"), leases.suspect("a"), leases.waiting()) == ([], None, 0)


# --- deadlines


def watch(seconds: float | None = None) -> tuple[Watch, Clock]:
    clock = Clock()
    return Watch(seconds, clock), clock


def look(seen: Watch, clock: Clock, now: float, steps: float, slowest: float = 0.0) -> float:
    """What it says at `now`, having looked every second."""
    while clock.now < now:
        clock.now += 1
        waited = seen.waited(steps, slowest)
    return waited


def test_a_step_may_take_many_times_the_slowest_and_a_minute() -> None:
    seen, clock = watch()
    assert look(seen, clock, 1000, -1) == 0, "a model may take its time to load"
    assert look(seen, clock, 1001, 5, 0.1) == 0
    assert look(seen, clock, 1001 + FLOOR, 5, 0.1) == 0
    assert look(seen, clock, 1002 + FLOOR, 5, 0.1) == FLOOR + 1
    seen, clock = watch()
    assert look(seen, clock, 1 + TIMES * 10, 5, 10.0) == 0
    assert look(seen, clock, 2 + TIMES * 10, 5, 10.0) > 0
    assert look(seen, clock, 3 + TIMES * 10, 6, 10.0) == 0, "it moved"


def test_before_anything_was_measured_there_is_half_an_hour() -> None:
    seen, clock = watch()
    assert look(seen, clock, UNMEASURED, 0) == 0
    assert look(seen, clock, UNMEASURED + 2, 0) > 0


def test_what_the_user_says_counts() -> None:
    seen, clock = watch(3.0)
    assert look(seen, clock, 4, 1) == 0
    assert look(seen, clock, 5, 1) == 4


def test_a_machine_that_slept_is_no_worker_that_hung() -> None:
    seen, clock = watch(3.0)
    assert look(seen, clock, 2, 1) == 0
    clock.now += BLIND + 1000
    assert seen.waited(1, 0.0) == 0


# --- losses


def lose(losses: Losses, held: list[int], *, hopeless: bool = False, proven: bool = False) -> None:
    losses.add(
        "replica-1", "lost", "it died", held, held if hopeless else [], {"tokens": 5, "slowest": 2}, proven=proven
    )


def test_workers_that_die_before_they_work_are_not_replaced_without_end() -> None:
    losses = Losses()
    for _ in range(IN_VAIN + 1):
        lose(losses, [])
        assert not losses.too_many(1)
    lose(losses, [])
    assert losses.too_many(1)
    losses.worked()
    assert not losses.too_many(1)
    for _ in range(50):
        lose(losses, [7])
        lose(losses, [], proven=True)
    assert not losses.too_many(1), "each of these had begun"
    assert (losses.done["tokens"], losses.done["slowest"]) == (5 * (IN_VAIN + 2 + 100), 2)
    assert losses.events[-1] == "replica-1 was lost, with 0 shards under way: it died"


def test_a_shard_that_nobody_survives_ends_the_run() -> None:
    with pytest.raises(WorkerLostError, match=r"shard 3 took one worker after the other with it: it died \(out of mem"):
        lose(Losses(), [3], hopeless=True)
