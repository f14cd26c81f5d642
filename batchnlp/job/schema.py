"""The JSON Schema of a job, for editors: `python -m batchnlp.job.schema > jobs/schema.json`."""

from __future__ import annotations

import json
import sys

from batchnlp.job.spec import JobSpec


def schema_text() -> str:
    """The schema as it is kept in `jobs/schema.json`."""
    return json.dumps(JobSpec.model_json_schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
