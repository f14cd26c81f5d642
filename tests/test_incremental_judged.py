"""Evaluations and gates of a log of changes, and what verify says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import invoke, last_json
from nightly import Nightly, corpus

from batchnlp.evaluate.outputs import Output


@pytest.fixture
def job(tmp_path: Path, classifier: str) -> Nightly:
    """Twenty rows."""
    return Nightly(tmp_path, classifier, corpus(0, 20))


def judged(job: Nightly, truth: dict[str, str]) -> dict[str, Any]:
    """The sections of a job that is judged by labels of all documents that there ever were."""
    path = job.folder / "labels.parquet"
    pq.write_table(pa.table({"doc_id": list(truth), "truth": list(truth.values())}), path)
    return {"evaluate": {"labels": f"{path}:truth"}, "gates": {"accuracy": {"min": 0.9}}}


def test_gates_go_by_all_rows_that_stand(job: Nightly) -> None:
    """Not by those of the night alone, of which there may be none."""
    job.run()
    known = {name: row["label"] for name, row in job.view().items()}
    other = {label: next(one for one in known.values() if one != label) for label in known.values()}
    sections = judged(job, {**known, "doc-03": other[known["doc-03"]]})
    job.now["doc-01"] = job.now["doc-02"] or ""  # and that is changed to what another label fits
    first = job.run(**sections)
    right = sum(known[name] == row["label"] for name, row in job.view().items()) - 1
    found = first.evaluation
    assert (found["rows"], found["judged"], found["metrics"]["accuracy"]["value"]) == (20, 20, right / 20)
    del job.now["doc-03"]
    second = job.run(**sections)
    assert (second.status, second.shards, second.deleted) == ("done", 0, 1), second.message
    assert (second.evaluation["rows"], second.evaluation["without_result"]) == (19, 1)
    again = last_json(invoke("evaluate", job.out, "--json"))
    assert (again["rows"], again["metrics"]) == (19, second.evaluation["metrics"])
    assert sorted(name for docs in Output.at(str(job.out)).documents() for name in docs.ids.to_pylist()) == sorted(
        job.now
    )


def test_damage_to_what_tells_of_deletes_is_a_problem_that_verify_names(job: Nightly) -> None:
    job.run()
    del job.now["doc-00"]
    job.run()
    (path,) = job.out.glob("_batchnlp/*/deletes.json")
    path.write_text("{")
    result = invoke("verify", job.out)
    assert result.exit_code == 1, result.output
    assert "deletes.json is damaged" in result.output
