"""How many requests are under way: against servers that are equations."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from batchnlp.backends.throttle import FIRST, MOST, Throttle


def serve(seconds: Callable[[int], float], requests: int, refuses: int = 10**9) -> tuple[list[int], int]:
    """(limits over time, requests refused) of a server whose answers take `seconds` of how many it has, and which refuses
    more than `refuses` at once."""
    throttle, now, begun, refused = Throttle(), 0.0, 0, 0
    under_way: list[tuple[float, float, bool]] = []
    limits = []
    while begun < requests or under_way:
        while begun < requests and len(under_way) < throttle.limit:
            too_many = len(under_way) >= refuses
            took = 0.01 if too_many else seconds(len(under_way) + 1)
            heapq.heappush(under_way, (now + took, now, too_many))
            begun += 1
        full = len(under_way) >= throttle.limit
        now, began, too_many = heapq.heappop(under_way)
        if too_many:
            refused += 1
            throttle.pushed_back(began, now)
        else:
            throttle.answered(began, now, 1.0, full=full)
        limits.append(throttle.limit)
    return limits, refused


def test_it_grows_where_every_request_is_answered_as_fast_as_one() -> None:
    limits, _ = serve(lambda n: 1.0, 3000)
    assert limits[0] == FIRST
    assert limits[-1] == MOST
    assert limits.index(MOST) < 1500


@pytest.mark.parametrize("room", [16, 40, 64])
def test_it_stays_where_more_requests_only_wait_longer(room: int) -> None:
    limits, _ = serve(lambda n: max(n / room, 1.0), 6000)
    settled = limits[len(limits) // 2 :]
    assert room / 2 <= min(settled), "the server is busy"
    assert sorted(settled)[len(settled) // 2] <= 2 * room, "and has no more waiting than twice what it works on"


def test_a_server_that_does_one_after_the_other_gets_no_more_than_at_first() -> None:
    limits, _ = serve(lambda n: float(n), 3000)
    assert sorted(limits)[len(limits) // 2] == FIRST


def test_a_refusal_makes_it_fall_and_then_grow_in_small_steps() -> None:
    limits, refused = serve(lambda n: 1.0, 20_000, refuses=50)
    assert max(limits[:200]) <= 64
    later = limits[len(limits) // 2 :]
    assert min(later) >= 20
    assert max(later) <= 54
    assert refused < 0.05 * 20_000


def test_refusals_of_the_same_moment_count_once() -> None:
    throttle = Throttle()
    for _ in range(10):
        throttle.pushed_back(0.0, 1.0)
    assert throttle.limit == int(FIRST * 0.7)
    for moment in range(2, 40):
        throttle.pushed_back(float(moment), float(moment))
    assert throttle.limit == 1, "never less: else nothing would ever be asked again"


def test_where_there_is_too_little_to_ask_nothing_is_learnt() -> None:
    throttle = Throttle()
    for moment in range(200):
        throttle.answered(float(moment), moment + 0.5, 1.0, full=False)
    assert throttle.limit == FIRST
