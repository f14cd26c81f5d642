"""The benchmark harness: scenarios load, contenders speak the protocol, floors decide, peers that fail are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import yaml
from commands import invoke, last_json

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from harness import scenario, venvs  # noqa: E402
from harness.prompts import Prompts  # noqa: E402

FAKE = """
from harness.contender import serve


class Fake:
    def __init__(self, setup):
        if setup["settings"].get("refuses"):
            raise OSError("this machine has no such thing")
        self.facts = {"note": "hello"}

    def run(self, settings, *, sample):
        print("a library says something on stdout")
        if settings.get("breaks") and not sample:
            raise ValueError("broken")
        return {"units": 10, "seconds": 1 / settings["speed"], "waste": 1.5}


if __name__ == "__main__":
    serve(Fake)
"""
TREE: dict[str, Any] = {
    "about": "fakes", "unit": "docs", "work": "none", "model": "none", "rows": 1, "rounds": 2,
    "contenders": {
        "ours": {"script": "fake", "search": {"speed": [3, 12, 6]}},
        "half": {"script": "fake", "settings": {"speed": 20}},
        "peer": {"script": "fake", "settings": {"speed": 4}, "fresh": False},
    },
    "limit": ["half", "peer"],
    "floors": {"ours / peer": {"min": 2.5}, "ours / limit": {"min": 1, "max": 4}, "ours.waste": {"max": 2}},
}  # fmt: skip


def folder(tmp_path: Path, **more: Any) -> Path:
    """A folder of scenarios and contenders, with the one above."""
    for name in ("scenarios", "contenders"):
        (tmp_path / name).mkdir()
    (tmp_path / "contenders" / "fake.py").write_text(FAKE)
    (tmp_path / "scenarios" / "fakes.yaml").write_text(yaml.safe_dump(TREE | more, sort_keys=False))
    return tmp_path


def run(where: Path, *args: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, the JSON in the last line, all of stdout) of run.py."""
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "fakes", "--folder", str(where), *args]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_every_scenario_is_whole() -> None:
    names = scenario.names(ROOT / "benchmarks")
    assert len(names) >= 8
    for name in names:
        one = scenario.load(name, ROOT / "benchmarks")
        assert one.floors, f"{name} has no floor"
        for entry in one.contenders.values():
            assert (ROOT / "benchmarks" / "contenders" / f"{entry.script}.py").is_file()
            assert entry.environment is None or entry.environment in {**venvs.PINNED, **venvs.FREE}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"floor": {}}, "Extra inputs"),
        ({"floors": {"ours / them": {"min": 1}}}, "names 'them'"),
        ({"floors": {"ours : peer": {"min": 1}}}, "no contender"),
        ({"limit": ["none"]}, "the limit names 'none'"),
    ],
)
def test_a_scenario_that_is_wrong_is_refused(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        scenario.load("fakes", folder(tmp_path, **wrong))


def test_contenders_alternate_and_ratios_are_those_of_what_they_say(tmp_path: Path) -> None:
    code, tree, out = run(folder(tmp_path))
    assert code == 0, out
    found = tree["scenarios"][0]
    ours = found["contenders"]["ours"]
    assert ours["settings"] == {"speed": 12}, "the best of the search"
    assert [one["rate"] for one in ours["tried"]] == pytest.approx([30, 120, 60])
    assert ours["rates"] == pytest.approx([120, 120])
    assert ours["versions"]["torch"]
    assert found["metrics"]["ours / peer"] == pytest.approx(3)
    assert found["metrics"]["ours / limit"] == pytest.approx(12 * (1 / 20 + 1 / 4))
    assert found["metrics"]["ours.waste"] == 1.5
    rounds = [line.split()[2] for line in out.splitlines() if line.startswith("round")]
    assert rounds == ["ours", "half", "peer"] * 2
    plot = (tmp_path / "plots" / "fakes.svg").read_text()
    assert plot.startswith("<svg")
    assert ">3.00</text>" in plot
    assert {"cpu", "load", "commit", "flags"} <= tree["environment"].keys()


def test_a_missed_floor_is_exit_1(tmp_path: Path) -> None:
    code, tree, out = run(folder(tmp_path, floors={"ours / peer": {"min": 5}}), "--rounds", "1", "--no-plots")
    assert (code, tree["failed"]) == (1, ["fakes"])
    assert "MISSED" in out
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize("how", ["refuses", "breaks"])
def test_a_peer_that_does_not_run_is_named_with_its_reason(tmp_path: Path, how: str) -> None:
    peer = {"script": "fake", "settings": {"speed": 4, how: True}, "environment": "own"}
    where = folder(tmp_path, contenders={**TREE["contenders"], "peer": peer}, rounds=1)
    tree, out = _with_own_environment(where)
    found = tree["scenarios"][0]
    assert "no such thing" in found["contenders"]["peer"]["reason"] or "broken" in found["contenders"]["peer"]["reason"]
    assert found["metrics"]["ours / peer"] is None
    assert (found["missed"], found["ours_failed"]) == ([], [])
    assert "did not run" in out


def _with_own_environment(where: Path) -> tuple[dict[str, Any], str]:
    """A run in which the environment `own` is this very interpreter's."""
    code = (
        "import sys; from harness import venvs; venvs.PINNED['own'] = (); keep = venvs.python_of\n"
        "venvs.python_of = lambda name: keep(None if name == 'own' else name)\n"
        f"sys.argv = ['run.py', 'fakes', '--folder', {str(where)!r}, '--no-plots']\nimport run; sys.exit(run.main())"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_each_script_imports_what_it_needs(name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--help"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_of_ours_that_fails_is_exit_1(tmp_path: Path) -> None:
    ours = {"script": "fake", "settings": {"speed": 4, "breaks": True}}
    code, tree, _ = run(folder(tmp_path, contenders={**TREE["contenders"], "ours": ours}), "--no-plots")
    assert code == 1
    assert tree["scenarios"][0]["ours_failed"] == ["ours"]


def test_the_prefix_tree_counts_each_beginning_once() -> None:
    ids = np.array([1, 2, 3, 1, 2, 4, 5, 1, 2, 3, 9], np.int32)  # 123, 1245, 12, 39
    prompts = Prompts(ids, np.array([0, 3, 7, 9, 11]), np.ones(4, np.int32))
    assert prompts.prefix_tree() == len([1, 2, 3, 4, 5]) + len([3, 9])


def test_flops_are_those_counted_by_hand() -> None:
    from limits import encoder_flops

    config = {"num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 8}
    linear, attention = 2 * 3 * (4 * 16 + 2 * 32), 4 * 9 * 4
    assert encoder_flops(config, np.array([3])) == 2 * (linear + attention)


@pytest.mark.parametrize("shape", ["bert-large", "llama-0.5b"])
def test_gpu_scenarios_run_on_the_cpu_at_a_tiny_size(tmp_path: Path, shape: str) -> None:
    import gpu

    where = gpu.Where(tmp_path, "cpu", "float32", 1, True)
    found = gpu.encoder(where, shape, 24) if shape == "bert-large" else gpu.decoder(where, shape, 5, 0.35)
    metrics = {metric: value for metric, value, _ in found}
    assert all(value > 0 for value in metrics.values())
    count = f"{shape} executed / real tokens" if shape == "bert-large" else f"{shape} row-steps / useful"
    assert 1 <= metrics[count] < 1.2


# --- batchnlp bench


def test_bench_finds_settings_and_writes_nothing(tmp_path: Path, classifier: str, corpus: Any) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({
        "source": {"path": str(corpus(tiny.texts(80))), "id": "doc_id"}, "task": {"kind": "classify", "model": classifier},
        "engine": {"runner": "inline", "backend": "torch", "device": "cpu"}, "output": {"path": str(tmp_path / "out")},
        "sinks": [{"kind": "parquet", "database": str(tmp_path / "lake"), "table": "t"}],
        "hooks": [{"command": ["touch", str(tmp_path / "told")], "when": ["success"]}], "cache": str(tmp_path / "cache"),
    }))  # fmt: skip
    result = invoke("bench", job, "--any-dtype", "--json")
    assert result.exit_code == 0, result.output
    tree = last_json(result)
    assert {trial["dtype"] for trial in tree["trials"]} == {"float32", "bfloat16"}
    assert len({trial["tokens_per_batch"] for trial in tree["trials"]}) > 1
    best = max(tree["trials"], key=lambda trial: trial["docs_per_second"])
    assert tree["settings"] == {key: best[key] for key in ("backend", "dtype", "tokens_per_batch")}
    assert 0 < tree["sampled"] <= 80
    assert tree["limit"] == pytest.approx(1 / (1 / tree["forward"] + 1 / tree["tokenizer"]), rel=0.01)
    assert tree["share_of_limit"] == pytest.approx(tree["docs_per_second"] / tree["limit"], rel=0.01)
    assert not {"out", "lake", "told", "cache"} & {path.name for path in tmp_path.iterdir()}


def test_bench_shows_the_lines_for_the_job(tmp_path: Path, classifier: str, corpus: Any) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump({
        "source": {"path": str(corpus())}, "task": {"kind": "classify", "model": classifier},
        "engine": {"runner": "inline", "backend": "torch", "device": "cpu", "dtype": "float32", "tokens_per_batch": 256},
        "output": {"path": str(tmp_path / "out")},
    }))  # fmt: skip
    result = invoke("bench", job)
    assert result.exit_code == 0, result.output
    assert "engine:\n  backend: torch\n  dtype: float32\n  tokens_per_batch: 256" in _stripped(result.stdout)
    assert "share of the limit" in result.stdout


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())
