"""Run as a program, in a mount namespace of its own: a job on a disk that fills up, and again when there is room.

    unshare -rm python small_disk.py JOB.json DISK

Prints what was seen, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def size(disk: str, kilobytes: int, *options: str) -> None:
    """Mount a disk of this size, or make the one that is there larger."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={kilobytes}k"]), "none", disk], check=True)


def attempt(job: dict[str, Any]) -> dict[str, Any]:
    """What a run comes to."""
    import batchnlp
    from batchnlp.errors import BatchnlpError

    try:
        return {"status": batchnlp.run(job).status}
    except BatchnlpError as error:
        return {"status": type(error).__name__, "exit_code": error.exit_code, "said": str(error)}


def look(out: str) -> dict[str, Any]:
    """What a reader sees: parts that are no whole Parquet file, temporary files where results are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    broken = []
    for name in sorted(os.listdir(out)) if os.path.isdir(out) else []:
        if name.endswith(".parquet"):
            try:
                pq.ParquetFile(os.path.join(out, name)).read()
            except (OSError, pa.ArrowException):
                broken.append(name)
    return {"broken": broken, "success": os.path.exists(os.path.join(out, "_SUCCESS"))}


def main() -> None:
    """The program."""
    from batchnlp.data.ledger import open_ledgers
    from batchnlp.data.verify import verify

    with open(sys.argv[1], encoding="utf-8") as handle:
        job = json.load(handle)
    disk, out = sys.argv[2], job["output"]["path"]
    size(disk, int(sys.argv[3]))
    full = attempt(job) | look(out)
    full["committed"] = len(open_ledgers(out)[0].committed_shards())
    size(disk, 64_000, "remount")
    again = attempt(job) | look(out)
    print(json.dumps({"full": full, "again": again, "problems": verify(out).problems}))  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
