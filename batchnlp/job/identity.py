"""Names that do not depend on when or where a job runs.

`recipe` covers everything that changes results except the inputs; `fingerprint` adds the inputs and the selection of
rows and columns. Two commands with the same fingerprint would write the same rows, so the second one resumes the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from batchnlp.job.spec import JobSpec
from batchnlp.types import InputFile, ModelFiles

LATER = {"on_bad_file": "fail", "on_duplicate_id": "fail"}  # keys of the source with their defaults
SEMANTICS = 1  # raise it when a task, an encoding or a reader comes to write other rows for the same job


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_facts(spec: JobSpec, model: ModelFiles) -> dict[str, Any]:
    """What the results depend on, apart from the inputs."""
    return {
        "semantics": SEMANTICS,
        "task": spec.task.model_dump(mode="json", exclude={"model", "revision"}),
        "weights": model.weights,
        "tokenizer": model.tokenizer,
        "config": digest([model.config, list(model.modules)]),
        "dtype": spec.engine.dtype,
        "backend": spec.engine.backend,
    }


def listing(files: Iterable[InputFile]) -> list[list[Any]]:
    """What identifies the input: of a run, and of what a model has learnt from."""
    return [[f.path, f.size, f.version] for f in files]


def fingerprint_facts(spec: JobSpec, model: ModelFiles, files: tuple[InputFile, ...]) -> dict[str, Any]:
    """What a run's identity depends on; kept in the plan, so that a refusal can say what changed."""
    return {
        "recipe": recipe_facts(spec, model),
        "source": _source_facts(spec),
        "files": listing(files),
        "partition_by": spec.output.partition_by,
        **({"date": str(spec.date)} if spec.writes_date else {}),  # elsewhere it has become part of paths and filters
    }


def _source_facts(spec: JobSpec) -> dict[str, Any]:
    """The selection; keys that came later only where they change something, so that older outputs stay what they are."""
    tree = spec.source.model_dump(mode="json", exclude={"path", "rows_per_shard"})
    return {key: value for key, value in tree.items() if LATER.get(key) != value}


def fingerprint(facts: dict[str, Any]) -> str:
    """The identity of a run with these facts."""
    return digest(facts)


def job_name(spec: JobSpec) -> str:
    """The name a job goes by: its own, else one made from where it writes."""
    return spec.job or "job-" + digest(spec.output.path)[:8]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of what differs between two sets of facts."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found
