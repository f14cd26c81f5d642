"""Which row took its worker with it, found by notes on disk; the workers here are loops that end like one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchnlp.data.store import LocalStore
from batchnlp.engine.suspects import ALONE, HUNG, LOST, RANGES, READS, Suspect, known
from batchnlp.errors import StoppedError

CONTROL = "_batchnlp/x"


def one_worker(store: LocalStore, rows: int, deadly: set[int], code: str = LOST) -> Suspect | None:
    """What a worker makes of the shard, None where it dies."""
    suspect = Suspect(store, CONTROL, 7, 0)
    suspect.open(code)
    for some in suspect.run(rows):
        if deadly & set(range(some.start, some.stop)):
            return None
    return suspect


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 30_000), seed=st.randoms(use_true_random=False), count=st.integers(0, 3))
def test_rows_that_kill_are_found_with_few_workers(
    tmp_path_factory: pytest.TempPathFactory, rows: int, seed: object, count: int
) -> None:
    deadly = {seed.randrange(rows) for _ in range(count)}  # type: ignore[attr-defined]
    store = LocalStore(tmp_path_factory.mktemp("out"))
    lost = 1  # the worker that made a suspect of it
    while (found := one_worker(store, rows, deadly)) is None:
        lost += 1
    each = math.ceil(math.log(rows, RANGES)) + ALONE if rows > 1 else ALONE
    assert lost <= 1 + len(deadly) * (each + 1)
    assert {failure.doc for failure in found.failures} == deadly
    assert {row for some in found.ranges for row in range(some.start, some.stop)} == set(range(rows)) - deadly
    assert all(f.attempts >= ALONE for f in found.failures)
    assert list(known(store, CONTROL, 0)) == [7]
    found.close()
    assert known(store, CONTROL, 0) == {}


def test_a_row_that_was_lost_by_chance_is_no_dead_letter(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert one_worker(store, 1, {0}) is None
    found = one_worker(store, 1, set())
    assert found is not None
    assert found.failures == []


def test_the_last_way_it_was_lost_is_the_one_that_is_told(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for _ in range(ALONE):
        assert one_worker(store, 1, {0}) is None
    found = one_worker(store, 1, set(), HUNG)
    assert found is not None
    (failure,) = found.failures
    assert (failure.doc, failure.stage, failure.code) == (0, "forward", HUNG)
    assert "came to no end each time" in failure.message


def test_a_shard_that_nobody_can_read_ends_the_run(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for _ in range(READS):
        Suspect(store, CONTROL, 7, 0).open(LOST)
    with pytest.raises(StoppedError, match=f"{READS} workers were lost while they read shard 7"):
        Suspect(store, CONTROL, 7, 0).open(LOST)


def test_who_leaves_in_good_order_blames_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for _ in range(5):
        suspect = Suspect(store, CONTROL, 7, 0)
        suspect.open(LOST)
        next(suspect.run(10))
        suspect.leave()
    assert one_worker(store, 10, set()) is not None


def test_a_torn_note_is_begun_anew(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert one_worker(store, 10, {3}) is None
    (note,) = (tmp_path / CONTROL / "suspects").iterdir()
    note.write_text(note.read_text()[:20])
    assert known(store, CONTROL, 0) == {7: LOST}
    while (found := one_worker(store, 10, {3})) is None:
        pass
    assert [failure.doc for failure in found.failures] == [3]


def test_generations_have_notes_of_their_own(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    Suspect(store, CONTROL, 7, 2).note(HUNG)
    assert (known(store, CONTROL, 0), known(store, CONTROL, 2)) == ({}, {7: HUNG})
