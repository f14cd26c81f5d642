"""Jobs for the rows of the matrix: a small model, a corpus as large as asked for, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import tiny

from batchnlp import failpoints
from batchnlp.data.collect import tables
from chaos.table import Place

LIMIT = 900  # seconds after which a run hangs
POISON = "poisonous"
UNDER_WAY = re.compile(r"was (?:lost|ended because it hung), with (\d+) shards? under way")
IN_FLIGHT = 5  # shards that a worker may hold: read, waiting, in the model, waiting, being written


@dataclass(slots=True)
class Job:
    """A corpus, and a classification of it."""

    place: Place
    rows: int
    per_shard: int
    bad: Sequence[int] = ()  # rows with POISON in their text
    runner: str = "inline"
    replicas: int = 1
    limits: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)  # of the engine

    def __post_init__(self) -> None:
        if not self.corpus.exists():
            texts = tiny.texts(self.rows, seed=self.place.seed)
            for row in self.bad:
                texts[row] += f" {POISON}"
            pq.write_table(pa.table({"id": self.ids, "text": texts}), self.corpus, row_group_size=self.per_shard)

    @property
    def corpus(self) -> Path:
        """The one input file."""
        return self.place.folder / f"docs-{self.rows}.parquet"

    @property
    def ids(self) -> list[str]:
        """Of all documents."""
        return [f"d{i}" for i in range(self.rows)]

    @property
    def model(self) -> str:
        """A classifier of two layers."""
        path = self.place.models / "classifier"
        return str(path) if path.is_dir() else tiny.save_classifier(path, ("games", "science", "web"))

    def spec(self, name: str) -> dict[str, Any]:
        """The job with the output `name`."""
        return {
            "source": {"path": str(self.corpus), "id": "id", "rows_per_shard": self.per_shard},
            "task": {"kind": "classify", "model": self.model, "scores": True},
            "engine": {
                "runner": self.runner, "dtype": "float32", "device": "cpu", "backend": "torch",
                **({"replicas": self.replicas} if self.runner == "ray" else {}), **self.more,
            },
            "output": {"path": str(self.out(name))},
            "limits": {"max_failed": "5%", **self.limits},
        }  # fmt: skip

    def out(self, name: str) -> Path:
        """Where that output lies."""
        return self.place.folder / name

    def start(self, name: str, points: str = "", *arguments: str) -> subprocess.Popen[str]:
        """The job in a process of its own, with these failpoints."""
        file = self.place.folder / f"{name}.yaml"
        file.write_text(json.dumps(self.spec(name)))
        command = [sys.executable, "-m", "batchnlp", *(arguments or ("run", str(file))), "--json"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", failpoints.VARIABLE: points}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def run(self, name: str, points: str = "", *arguments: str) -> Ended:
        """The same to its end."""
        return Ended.of(self.start(name, points, *arguments))

    def clean(self) -> float:
        """Seconds from the first lease to the last commit of a run that nothing disturbs."""
        ended = self.run("clean")
        assert ended.code == 0, ended.stderr
        return ended.seconds

    def differs(self, name: str, other: str = "clean") -> list[str]:
        """What is not equal in two outputs, as the design defines it for fp32."""
        a, b = (pa.concat_tables(tables(str(self.out(one)))).replace_schema_metadata(None) for one in (name, other))
        exact = ("id", "label", "n_tokens", "n_windows", "truncated")
        found = [] if a.schema == b.schema else ["the schema differs from the undisturbed run's"]
        found += [
            f"{key} differs from the undisturbed run's" for key in exact if a[key].to_pylist() != b[key].to_pylist()
        ]
        if not found:
            far = max((abs(x - y) for x, y in zip(*(t["score"].to_pylist() for t in (a, b)), strict=True)), default=0.0)
            found += [f"score differs by {far:.1e}"] if far > 1e-5 else []
        return found


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended."""

    code: int
    last: dict[str, Any]  # the JSON object
    stderr: str

    @classmethod
    def of(cls, process: subprocess.Popen[str]) -> Ended:
        """Wait for it."""
        stdout, stderr = process.communicate(timeout=LIMIT)
        lines = stdout.splitlines()
        whole = bool(lines) and process.returncode >= 0  # who is killed says what he likes
        return cls(process.returncode, json.loads(lines[-1]) if whole else {}, stderr)

    @property
    def seconds(self) -> float:
        """From the first lease to the last commit."""
        rate = self.last.get("docs_per_second") or 0.0
        return self.last["rows"] / rate if rate else 0.0

    @property
    def lost(self) -> list[int]:
        """Shards under way in each worker that was lost."""
        return [int(count) for count in UNDER_WAY.findall(self.stderr)]


def unless(*bounds: tuple[bool, str]) -> list[str]:
    """The sentences of the bounds that do not hold."""
    return [sentence for holds, sentence in bounds if not holds]


def wait_for_commits(out: Path, count: int, process: subprocess.Popen[str]) -> bool:
    """Until so many shards are committed; False where the process ends before."""
    limit = time.monotonic() + LIMIT
    while len(list(out.glob("_batchnlp/*/commits/*.json"))) < count:
        if process.poll() is not None:
            return False
        assert time.monotonic() < limit, "the commits never came"
        time.sleep(0.01)
    return True


def commits(out: Path) -> dict[str, str]:
    """Shard and attempt of every commit."""
    found = {}
    for path in out.glob("_batchnlp/*/commits/*.json"):
        found[path.stem] = json.loads(path.read_bytes())["attempt"]
    return found


def replicas(driver: int) -> list[psutil.Process]:
    """The processes of a driver that run a replica."""
    found = []
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if " ".join(child.cmdline()).startswith("ray::Replica"):
                found.append(child)
        except psutil.Error:
            continue
    return found
