"""A training that is killed goes on, and ends with the weights of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from learning import rows, write

from batchnlp.train import checkpoints

# The real command in processes of its own, forked where the imports are done and nothing else. A process kills itself at a
# place: `step` in the middle of an epoch, `save` when a checkpoint's files are there and its marker is not, `end` when all is
# learnt and nothing is published.
FORKS = """
import gc, json, os, signal, sys
import batchnlp.cli.train
from batchnlp.cli.main import main
from batchnlp.train import fit, learner

def strike():
    os.kill(os.getpid(), signal.SIGKILL)

def arm(place, at):
    if place == "step":
        before = learner.Curves.on_step_end
        def on_step_end(self, args, state, control, **more):
            before(self, args, state, control, **more)
            if state.global_step == at:
                strike()
        learner.Curves.on_step_end = on_step_end
    elif place == "end":
        fit.merged = lambda *model: strike()
    elif place == "save":
        complete = learner.checkpoints.complete
        learner.checkpoints.complete = lambda folder: strike() if folder.name.endswith(f"-{at}") else complete(folder)

gc.freeze()
for line in sys.stdin:
    place, at, args = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        arm(place, at)
        main(args)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Run = Callable[[str, int, list[str]], int]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a command that is struck at a place, or at none; its exit code."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FORKS], stdin=pipe, stdout=pipe, text=True) as forks:
        assert forks.stdin
        assert forks.stdout
        ask, answer = forks.stdin, forks.stdout

        def run(place: str, at: int, args: list[str]) -> int:
            print(json.dumps([place, at, args]), file=ask, flush=True)
            return int(answer.readline())

        yield run
        ask.close()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With dropout, so that the random state matters."""
    path = tmp_path_factory.mktemp("start")
    return tiny.save_classifier(path, ("data", "fonts", "games"), hidden_dropout_prob=0.2)


def command(source: Path, start: str, out: Path) -> list[str]:
    settings = ("epochs=2", "batch_size=8", "evaluate_every=4", "learning_rate=0.003", "device=cpu", "dtype=float32",
                "seed=3", "patience=4")  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    return ["train", "classify", str(source), "-o", str(out), "--model", start, "--id-column", "id", *words]


@pytest.mark.timeout(600)  # five trainings
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, start: str, run: Run) -> None:
    source = write(tmp_path / "rows.parquet", rows(120))
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    assert run("", 0, command(source, start, undisturbed)) == 0
    for place, at in (("step", 7), ("save", 16)):  # in the first and the second epoch
        assert run(place, at, command(source, start, killed)) == -signal.SIGKILL
        assert not (killed / "config.json").exists(), "nobody takes it for a model"
    work = killed / "_batchnlp" / "train"
    newest = checkpoints.last(work)
    assert newest is not None
    assert newest.name == "checkpoint-12"
    assert run("end", 0, command(source, start, killed)) == -signal.SIGKILL
    assert run("", 0, command(source, start, killed)) == 0
    assert (killed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    curves = [(out / "curves.jsonl").read_text().count("eval_loss") for out in (killed, undisturbed)]
    assert curves[0] == curves[1]


def test_a_checkpoint_without_its_marker_or_with_a_damaged_file_does_not_count(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        if step < 15:
            checkpoints.complete(folder)
    (tmp_path / "checkpoint-10" / "model.safetensors").write_bytes(b"cut")
    newest = checkpoints.last(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-5"
    assert not (tmp_path / "checkpoint-15").exists(), "transformers would take the highest number"
