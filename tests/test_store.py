"""Files that appear whole or not at all, whoever else writes."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from batchnlp.data.store import LocalStore
from batchnlp.errors import OutputError, StoppedError


def test_of_many_creators_one_wins_and_its_content_stands(tmp_path: Path) -> None:
    store, gate, wins = LocalStore(tmp_path), threading.Barrier(8), []

    def create(i: int) -> None:
        for n in range(20):
            gate.wait()
            if store.create(f"deep/{n}", f"{i}".encode() * 1000):
                wins.append((n, i))

    threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for n, _ in wins) == list(range(20))
    for n, i in wins:
        assert store.read(f"deep/{n}") == f"{i}".encode() * 1000
    assert len(os.listdir(tmp_path / "deep")) == 20, "temporary files are gone"


def test_replace_swaps_and_names_are_sorted_without_temporary_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.replace("b", b"1")
    store.replace("b", b"2")
    store.create("a", b"3")
    (tmp_path / ".tmp-left").write_bytes(b"")
    assert store.names("") == ["a", "b"]
    assert (store.read("b"), store.read("none"), store.names("none")) == (b"2", None, [])


def test_an_output_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"another output\.path"):
        LocalStore(tmp_path / "file").replace("x", b"")


def test_publish_is_idempotent_and_shows_whole_files(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("staging/x", b"data")
    store.publish("staging/x", "deep/x")
    store.publish("staging/x", "deep/x")
    store.remove("staging")
    assert store.read("deep/x") == b"data"


def test_publish_replaces_what_is_another_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("staging/x", b"whole")
    store.create("deep/x", b"dam")
    store.publish("staging/x", "deep/x")
    assert store.read("deep/x") == b"whole"
    assert os.listdir(tmp_path / "deep") == ["x"]


def test_a_file_system_without_hard_links_is_told_by_the_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OutputError, match=r"makes no hard links.*\(choose an output\.path on one that does"):
        LocalStore(tmp_path).create("plan.json", b"{}")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_wherever_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoppedError, match="no space left"):
        LocalStore(tmp_path).create("plan.json", b"{}")
