"""Does memory grow with the corpus? Peak memory of a worker on a corpus and on one ten times larger.

The model is tiny, so that the data path is what is measured, and it is done within minutes; each run is a process of its own.

python benchmarks/memory.py CORPUS.parquet CORPUS10.parquet
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import classifier, finish

RUN = """
import json, resource, sys, batchnlp
result = batchnlp.run(json.loads(sys.argv[1]))
print(json.dumps({"peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "rows": result.rows}))
"""


def peak_mb(corpus: str, out: Path, model: str) -> float:
    """Peak resident memory in MB of an inline run."""
    job = {
        "source": {"path": corpus, "id": "package"}, "task": {"kind": "classify", "model": model},
        "engine": {"runner": "inline", "dtype": "float32"}, "output": {"path": str(out)},
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", RUN, json.dumps(job)], check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    print(f"{answer['rows']:,} rows: peak {answer['peak_kb'] / 1024:.0f} MB", flush=True)
    return float(answer["peak_kb"]) / 1024


def main() -> None:
    """Both runs and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("corpus10")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = classifier(work / "model", hidden=16)
        one = peak_mb(args.corpus, work / "one", model)
        ten = peak_mb(args.corpus10, work / "ten", model)
    finish("memory", {"one_mb": one, "ten_mb": ten, "over_allowance_mb": ten - (1.1 * one + 50)}, {
        "over_allowance_mb": ("<=", 0.0),
    })  # fmt: skip


if __name__ == "__main__":
    main()
