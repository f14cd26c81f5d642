"""The jobs that ship, from the command line, as they stand but for their models, over the text that ships with them.

The models are the stand-ins of `make models`; only the quickstart has its real one. A few rows each, inline and on Ray.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from commands import invoke, last_json

from batchnlp.backends.device import usable_cpus
from batchnlp.engine.planner import prepare
from batchnlp.job.load import load_spec
from jobs.models import main

JOBS = Path(__file__).parents[1] / "jobs"
FAQ = "[[section, ==, faq], [doc_id, <, faq/general]]"
WRITTEN = ["n_new_tokens", "finish_reason"]
CATALOGUE = ["audience", "topic", "shows_code"]  # of JSON answers
# job → (its stand-in, rows that the test leaves, the task's own columns)
SHIPPED: dict[str, tuple[str, str, list[str]]] = {
    "quickstart": ("", FAQ, ["label", "score"]),
    "sentiment": ("sentiment", FAQ, ["label", "score", "scores"]),
    "spam": ("spam", FAQ, ["label", "score"]),
    "entities": ("ner", FAQ, ["entities"]),
    "answers": ("qa", FAQ,
                ["answer", "start", "end", "score", "no_answer_score"]),
    "summarize": ("bart", "[[section, ==, howto], [doc_id, <, howto/b]]", ["summary", *WRITTEN]),
    "translate": ("marian", "[[title, in, [GIL, BDFL, EAFP]]]", ["translation", *WRITTEN]),
    "stories": ("gpt2", "[[title, in, [GIL, BDFL, EAFP]]]", ["answers"]),
    "chat": ("qwen", FAQ, ["reply", *WRITTEN]),
    "enrich": ("qwen", FAQ, ["reply", *WRITTEN, *CATALOGUE]),
    "search": ("", FAQ, ["embedding"]),
}  # fmt: skip
ON_RAY = ("sentiment", "stories")  # a replica takes seconds to start, so one that reads and one that writes
COUNTS = ["n_tokens", "n_tokens_used", "n_windows", "truncated"]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make models` builds."""
    target = tmp_path_factory.mktemp("stand-ins")
    main(str(target))
    return target


@pytest.fixture(scope="module")
def ray_started() -> Iterator[None]:
    """One Ray for all jobs: starting it is what takes the time."""
    from batchnlp.engine import ray_runner

    ray_runner.start_ray(None, usable_cpus(), 0)
    yield
    ray_runner.ray.shutdown()


def test_every_job_that_ships_is_tried_here() -> None:
    assert sorted(SHIPPED) == sorted(path.stem for path in JOBS.glob("*.yaml"))


def ran(name: str, runner: str, out: Path, *settings: str) -> tuple[Result, pa.Table]:
    """The job's run from the command line, and its rows."""
    chosen = [*settings, f"output.path={out}", f"engine.runner={runner}", "engine.replicas=1"]
    chosen += ["engine.dtype=float32", "engine.device=cpu"]
    result = invoke("run", f"jobs/{name}.yaml", "--json", *(part for key in chosen for part in ("--set", key)))
    assert result.exit_code == 0, result.output
    page = Path(last_json(result)["report"]).read_text(encoding="utf-8")
    assert '<div class="word">Done' in page, "every task has its page"
    return result, pa.concat_tables(map(pq.read_table, sorted(out.glob("part-*.parquet"))))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_job_runs_with_the_schema_it_declares(
    name: str, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(JOBS.parent)
    model, rows, own = SHIPPED[name]
    settings = [f"source.filter={rows}"]
    if model:
        text = (JOBS / f"{name}.yaml").read_text(encoding="utf-8")
        assert f"models/{model} (" in text.replace("\n# ", " "), "the job says which stand-in there is"
        settings.append(f"task.model={stand_ins / model}")
    if own[-1] in (*WRITTEN, "answers"):  # JSON has its own end, and is none before
        settings.append("task.max_new_tokens=3")
    _, table = ran(name, "inline", tmp_path / "inline", *settings)
    spec = load_spec(f"jobs/{name}.yaml", settings)
    assert table.schema == prepare(spec).schema.remove_metadata()
    assert table.column_names == ["id", *spec.source.keep, *own, *COUNTS]
    assert 2 <= len(table) <= 30
    if name in ON_RAY:
        request.getfixturevalue("ray_started")
        assert ran(name, "ray", tmp_path / "ray", *settings)[1].equals(table), (
            "Ray gives the rows that this process gives"
        )


@pytest.mark.parametrize("runner", ["inline", "ray"])
def test_a_run_says_what_its_backend_did_otherwise_and_why(
    runner: str, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(JOBS.parent)
    if runner == "ray":
        request.getfixturevalue("ray_started")
    few = [f"source.filter={SHIPPED['translate'][1]}", "task.max_new_tokens=2", f"task.model={stand_ins / 'marian'}"]
    for invocation in ("begun", "done already"):
        result, _ = ran("translate", runner, tmp_path / "out", *few, "task.num_beams=2")
        (note,) = last_json(result)["notes"]
        assert note.endswith("static batches, because of 2 beams")
        assert f"\n{note}\n" in result.stderr, invocation
    if runner == "inline":
        result, _ = ran("translate", runner, tmp_path / "greedy", *few, "task.num_beams=1")
        assert last_json(result)["notes"] == []
