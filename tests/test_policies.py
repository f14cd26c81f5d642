"""A declared policy for every odd document, and nothing twice or in silence; what is secret or private stays so."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Corpus

import batchnlp
from batchnlp.data.collect import collect, read_dead, tables
from batchnlp.data.ledger import open_ledgers
from batchnlp.data.verify import verify
from batchnlp.engine.planner import prepare
from batchnlp.errors import ModelError, SpecError
from batchnlp.job.load import build_spec

ODD: dict[str, tuple[str | None, str]] = {  # the document, and the code of its dead letter; none where it has a result
    "null": (None, "null_text"),
    "empty": ("", "empty_text"),
    "blank": (" \t\n\u3000", "blank_text"),
    "control characters": ("\x01\x02\x1f", "no_tokens"),
    "NUL inside": ("a game\0of web", ""),
    "emoji only": ("\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467", ""),
    "a zero-width character": ("\u200b", "no_tokens"),
    "over-long": ("game " * 5_000, ""),
    "10 MB": ("game web " * 1_200_000, ""),
    "one word of a megabyte": ("x" * 1_000_000, ""),
}


def job(source: Path, out: Path, model: str, **more: Any) -> dict[str, Any]:
    return {
        "source": {"path": str(source), "id": "doc_id"}, "task": {"kind": "classify", "model": model},
        "engine": {"runner": "inline"}, "output": {"path": str(out), **more}, "limits": {"max_failed": "100%"},
    }  # fmt: skip


def test_odd_documents(corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    batchnlp.run(job(corpus([text for text, _ in ODD.values()]), out, classifier))
    names = dict(zip((f"doc-{i:03}" for i in range(len(ODD))), ODD, strict=True))
    found = {names[row["id"]]: "" for table in tables(str(out)) for row in table.to_pylist()}
    rows = {names[row["id"]]: row for table in tables(str(out)) for row in table.to_pylist()}
    letters = [row for table in tables(str(out), read_dead) for row in table.to_pylist()]
    found |= {names[row["id"]]: row["code"] for row in letters}
    assert found == {name: code for name, (_, code) in ODD.items()}
    for name in ("over-long", "10 MB"):
        assert rows[name]["n_tokens_used"] == rows[name]["n_tokens"]
        assert (rows[name]["truncated"], rows[name]["n_windows"] > 100) == (False, True)
    assert verify(str(out)).problems == []


def test_dead_letters_tell_no_text_unless_asked_and_then_their_owner_alone(
    corpus: Corpus, classifier: str, tmp_path: Path
) -> None:
    secret = "planted \x01 words"
    texts: list[str | None] = ["a game", "\x01\x02", None, secret + " web" * 200]
    source = corpus(texts)
    quiet, told = tmp_path / "quiet", tmp_path / "told"
    tree = job(source, quiet, classifier)
    tree["task"]["on_long"] = "fail"
    batchnlp.run(tree)
    assert not [p for p in quiet.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    letters = [row for table in tables(str(quiet), read_dead) for row in table.to_pylist()]
    assert [row["code"] for row in letters] == ["no_tokens", "null_text", "too_long"]
    assert [bool(row["text_sha256"]) for row in letters] == [True, False, True]
    tree["output"] = {"path": str(told), "dead_text": True}
    before = os.umask(0o002)
    try:
        batchnlp.run(tree)
    finally:
        os.umask(before)
    (path,) = told.rglob("text-*.parquet")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pq.ParquetFile(path).read().to_pylist() == [
        {"id": "doc-001", "file": "00.parquet", "row": 1, "text": "\x01\x02"},
        {"id": "doc-003", "file": "00.parquet", "row": 3, "text": texts[3]},
    ]
    assert [p for p in told.rglob("dead-*.parquet") if stat.S_IMODE(p.stat().st_mode) == 0o664]
    assert verify(str(told)).problems == []
    collect(str(told), str(tmp_path / "dead.jsonl"), "jsonl", dead=True)
    assert secret not in (tmp_path / "dead.jsonl").read_text()
    assert open_ledgers(str(told))[0].fingerprint == open_ledgers(str(quiet))[0].fingerprint, "the same rows"


@pytest.mark.parametrize("key", ["source.path", "output.path"])
def test_a_password_in_an_address_is_refused_and_not_shown(key: str) -> None:
    tree: dict[str, Any] = {
        "source": {"path": "a"}, "task": {"kind": "embed", "model": "m"}, "output": {"path": "b"},
    }  # fmt: skip
    section, _, name = key.partition(".")
    tree[section][name] = "s3://user:planted-secret@bucket/x"
    with pytest.raises(SpecError, match=f"{key} holds a password") as error:
        build_spec(tree)
    assert "planted" not in str(error.value)


def test_ray_without_a_token_is_refused_unless_asked_for(
    corpus: Corpus, classifier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preflight(**engine: Any) -> None:
        tree = job(corpus_, tmp_path / "out", classifier)
        prepare(build_spec({**tree, "engine": {"runner": "ray", **engine}}))

    corpus_ = corpus()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(SpecError, match=r"RAY_AUTH_MODE=disabled would let anybody.*engine\.insecure=true"):
        preflight()
    preflight(insecure=True)
    monkeypatch.delenv("RAY_AUTH_MODE")
    preflight()
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SpecError, match="there is no token for the Ray cluster at somewhere:6379"):
        preflight(address="somewhere:6379")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    preflight(address="somewhere:6379")


def test_code_in_a_model_never_runs_and_nothing_is_started(corpus: Corpus, classifier: str, tmp_path: Path) -> None:
    model, marker, out = tmp_path / "model", tmp_path / "marker", tmp_path / "out"
    shutil.copytree(classifier, model)
    code = f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n"
    (model / "modeling_evil.py").write_text(code)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "modeling_evil.Evil"}}))
    with pytest.raises(ModelError):
        batchnlp.run(job(corpus(), out, str(model)))
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="brings code"):
        batchnlp.run(job(tmp_path / "corpus", out, str(model)))
    (model / "modeling_evil.py").unlink()
    (model / "model.safetensors").unlink()

    class Boom:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {marker}",)

    import torch

    torch.save({"w": Boom()}, model / "pytorch_model.bin")
    flags = ["-o", str(out), "--model", str(model)]
    command = [sys.executable, "-m", "batchnlp", "classify", str(tmp_path / "corpus"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "only as pickles" in done.stderr
    assert not marker.exists()
    assert not out.exists()
