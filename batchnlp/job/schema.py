"""The JSON Schemas of a job and of a training, for editors: `python -m batchnlp.job.schema jobs`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel

from batchnlp.job.spec import JobSpec
from batchnlp.job.train import TrainSpec

SCHEMAS: dict[str, type[BaseModel]] = {"schema.json": JobSpec, "train-schema.json": TrainSpec}


def schema_text(name: str = "schema.json") -> str:
    """The schema as it is kept in `jobs/`."""
    return json.dumps(SCHEMAS[name].model_json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    for name in SCHEMAS:
        (Path(sys.argv[1]) / name).write_text(schema_text(name), encoding="utf-8")
