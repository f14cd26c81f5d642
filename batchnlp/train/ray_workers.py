"""Several processes for one training, through Ray Train; with engine/ray_runner.py the only door to ray.

The driver encodes once and leaves the examples in the work folder, which every node must see under the same path, as the
output itself. A worker that is lost brings its group down; a new group goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from batchnlp.backends.device import usable_cpus
from batchnlp.engine.ray_runner import start_ray
from batchnlp.errors import WorkerLostError
from batchnlp.train.examples import Examples
from batchnlp.train.fit import FITTED, Fitted, fit
from batchnlp.train.kind import Kind
from batchnlp.train.learner import hardware

FAILURES = 3  # groups that may be lost


def fit_on_ray(kind: Kind, parts: dict[str, Examples], work: Path) -> Fitted:
    """What `fit` does, in as many processes as the spec says."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder = work / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in parts.items():
        examples.save(folder / f"{name}.npz")
    gpu = hardware(kind.spec)[0] == "cuda"
    count = kind.spec.workers
    threads = max(usable_cpus() // count, 1)
    mine = not ray.is_initialized()
    if mine:
        start_ray(None, count * threads + 1, count if gpu else 0)
    try:
        kind.forget()
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"kind": kind, "work": str(work), "parts": list(parts), "threads": threads},
            scaling_config=ScalingConfig(
                num_workers=count, use_gpu=gpu, resources_per_worker={"CPU": threads} | ({"GPU": 1} if gpu else {})
            ),
            run_config=RunConfig(storage_path=str(work / "ray"), failure_config=FailureConfig(max_failures=FAILURES)),
        )
        trainer.fit()
    except RuntimeError as error:
        raise WorkerLostError(f"the workers of the training failed: {' '.join(str(error).split())[:300]}") from error
    finally:
        if mine:
            ray.shutdown()
    return Fitted(**json.loads((work / FITTED).read_text(encoding="utf-8")))


def prepare(learner: Any) -> Any:
    """The trainer as Ray Train wants it."""
    from ray.train.huggingface.transformers import prepare_trainer

    return prepare_trainer(learner)


def _worker(config: dict[str, Any]) -> None:
    """In each process."""
    import torch

    torch.set_num_threads(config["threads"])
    work = Path(config["work"])
    parts = {name: Examples.load(work / "examples" / f"{name}.npz") for name in config["parts"]}
    fit(config["kind"], parts, work)
