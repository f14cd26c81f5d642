"""The jobs that ship, as they stand, with the stand-ins of `make models`."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.models import main

JOBS = Path(__file__).parents[1] / "jobs"
STAND_INS = {
    "summarize": "bart",
    "translate": "marian",
    "stories": "gpt2",
    "chat": "qwen",
    "sentiment": "sentiment",
    "spam": "spam",
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make models` builds."""
    target = tmp_path_factory.mktemp("stand-ins")
    main(str(target))
    return target


@pytest.mark.parametrize("name", STAND_INS)
def test_every_job_runs_with_its_stand_in(
    name: str, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from batchnlp.cli.main import main

    monkeypatch.chdir(JOBS.parent)
    text = (JOBS / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"models/{STAND_INS[name]} (" in text.replace("\n# ", " "), "the job says which stand-in there is"
    more = ["source.filter=[[doc_id, '<', 'f']]", f"task.model={stand_ins / STAND_INS[name]}", f"output.path={tmp_path / 'out'}",
            "engine.runner=inline", "engine.dtype=float32", "engine.device=cpu"]  # fmt: skip
    short = (
        []
        if name in ("sentiment", "spam")
        else ["task.max_new_tokens=3", "source.filter=[[title, in, [GIL, BDFL, EAFP]]]"]
    )
    settings = [part for key in more + short for part in ("--set", key)]
    result = CliRunner().invoke(main, ["run", str(JOBS / f"{name}.yaml"), *settings])
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "out").glob("part-*.parquet"))
