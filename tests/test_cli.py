"""The command line as a contract: what exists, what it says, how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_readers
from commands import BAD, QUICK, Corpus, classify, invoke, last_json, rows_of

from batchnlp.cli.main import main
from batchnlp.cli.show import line_of
from batchnlp.engine.computing import Progress

README = Path(__file__).parents[1] / "README.md"
ONE_OFF = ["--help", "--id-column", "--json", "--keep", "--mode", "--model", "--output", "--plan", "--revision",
           "--set", "--text-column"]  # fmt: skip
LEARN = ["--group-column", "--held-out", "--help", "--id-column", "--json", "--output", "--set", "--text-column"]
START = ["--model", "--revision", "--workers"]
FLAGS = {
    "classify": ONE_OFF,
    "zero-shot": sorted([*ONE_OFF, "--labels"]),
    "ner": ONE_OFF,
    "qa": sorted([*ONE_OFF, "--question", "--question-column"]),
    "embed": ONE_OFF,
    "summarize": sorted([*ONE_OFF, "--prompt", "--max-new-tokens"]),
    "translate": sorted([*ONE_OFF, "--source-language", "--target-language", "--max-new-tokens"]),
    "generate": sorted([*ONE_OFF, "--prompt", "--max-new-tokens"]),
    "chat": sorted([*ONE_OFF, "--prompt", "--system", "--max-new-tokens"]),
    "run": ["--backfill", "--date", "--help", "--json", "--mode", "--set"],
    "plan": ["--explain", "--full", "--help", "--json", "--probe", "--set"],
    "doctor": ["--help", "--json", "--rows", "--set"],
    "status": ["--help", "--json"],
    "retry": ["--help", "--json", "--set"],
    "verify": ["--help", "--json"],
    "collect": ["--dead", "--format", "--help", "--json", "--output"],
    "load": ["--help", "--json", "--set", "--to"],
    "evaluate": ["--against", "--counterfactual", "--groups", "--help", "--json", "--labels", "--set"],
    "report": ["--columns", "--compare", "--help", "--json", "--output"],
    "gc": ["--dry-run", "--help", "--hours", "--json"],
    "bench": ["--any-dtype", "--help", "--json", "--set"],
    "train tokenizer": LEARN,
    "train lm": [*LEARN, *START],
    "train classify": [*LEARN, *START, "--label-column"],
    "train ner": [*LEARN, *START, "--entities-column"],
    "train seq2seq": [*LEARN, *START, "--target-column"],
    "train embed": [*LEARN, *START, "--pair-column"],
    "train run": ["--help", "--json", "--set"],
    "schedule list": ["--help", "--json", "--state"],
    "schedule run": ["--help", "--state"],
    "schedule export": ["--claim", "--help", "--image", "--json", "--output", "--to"],
}
KEYS = {"status", "run", "output", "rows", "dead", "docs_per_second", "tokens_per_second", "padding", "device_busy",
        "seconds"}  # fmt: skip
STAGES = {"start", "encode", "forward", "write", "idle", "total"}


def options(command: click.Command) -> list[str]:
    context = click.Context(command)
    return sorted(o for p in command.get_params(context) for o in p.opts if o.startswith("--"))


def commands(group: click.Group = main, before: str = "") -> dict[str, click.Command]:
    """All of them by their whole names, in the order of --help."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= commands(command, f"{before}{name} ") if isinstance(command, click.Group) else {before + name: command}
    return found


COMMANDS = commands()


# --- what there is


def test_commands_and_flags_are_frozen() -> None:
    """Scripts rely on them: who changes one changes this list, on purpose."""
    assert {name: options(command) for name, command in COMMANDS.items()} == {k: sorted(v) for k, v in FLAGS.items()}
    shorts = {o for c in COMMANDS.values() for p in c.params for o in p.opts if re.fullmatch("-[a-zA-Z]", o)}
    assert shorts == {"-o"}


@pytest.mark.parametrize("name", FLAGS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert command.get_short_help_str(200).endswith((".", "it is not"))
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} has no help"
    result = invoke(*name.split(), "--help")
    assert result.exit_code == 0
    assert all(flag in result.stdout for flag in FLAGS[name])


@pytest.mark.parametrize("name", FLAGS)
def test_every_command_and_option_is_in_the_readme(name: str) -> None:
    text = README.read_text(encoding="utf-8")
    assert re.search(rf"^#+ .*\b{re.escape(name.split()[0])}\b", text, re.MULTILINE), (
        f"README.md has no section for {name}"
    )
    assert f"batchnlp {name} " in text, f"README.md shows no call of {name}"
    missing = [flag for flag in FLAGS[name] if flag != "--help" and flag not in text]
    assert not missing, f"README.md says nothing of {missing}"


def test_help_lists_the_commands_in_order_of_use() -> None:
    result = invoke("--help")
    at = [result.stdout.index(f"\n  {name} ") for name in dict.fromkeys(name.split()[0] for name in FLAGS)]
    assert at == sorted(at)


# --- light


def loaded_after(*args: object) -> tuple[int, set[str]]:
    """(exit code, top-level modules) of a fresh process that ran the command."""
    code = (
        "import sys\nfrom batchnlp.cli.main import main\ncode = 0\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as error:\n    code = error.code\n"
        "sys.stderr.write('\\n' + ' '.join({m.partition('.')[0] for m in sys.modules}))\nsys.exit(code)"
    )
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=README.parent, check=False)
    return done.returncode, set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "args",
    [["--help"], *([*of.split(), "--help"] for of in ("run", "schedule run", "classify", "train lm")), ["--version"]],
    ids="_".join,
)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    code, modules = loaded_after(*args)
    assert code == 0
    assert not modules & {"torch", "transformers", "tokenizers", "ray", "pyarrow", "datasets", "numpy", "pydantic"}


def test_looking_at_an_output_loads_no_model_libraries(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    assert classify(corpus(), out, classifier).exit_code == 0
    for args in (["status", out], ["verify", out], ["collect", out, "-o", tmp_path / "all.csv"], ["report", out]):
        code, modules = loaded_after(*args)
        assert code == 0
        assert not modules & {"torch", "transformers", "tokenizers", "ray"}, args


def test_python_m_and_the_module_are_the_same() -> None:
    command = [sys.executable, "-m", "batchnlp", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=README.parent, check=True)
    assert done.stdout.startswith("batchnlp, version ")


# --- a run


def test_a_run_ends_with_one_json_object(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    result = classify(corpus(), out, classifier, "--json", "--keep", "lang")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1, "data on stdout, messages on stderr"
    tree = last_json(result)
    assert tree.keys() >= KEYS
    assert tree["seconds"].keys() >= STAGES
    assert (tree["status"], tree["rows"], tree["dead"], tree["output"]) == ("done", 25, 0, str(out))
    assert 0 <= tree["padding"] < 1
    assert 0 <= tree["device_busy"] <= 1
    assert (out / "_SUCCESS").is_file()
    assert all(path.name.startswith("part-") for path in out.glob("*.parquet"))
    rows = rows_of(out)
    assert [row["id"] for row in rows] == [f"doc-{i:03}" for i in range(25)]
    expected = ["id", "lang", "label", "score", "n_tokens", "n_tokens_used", "n_windows", "truncated"]
    assert list(rows[0]) == expected
    assert [row["lang"] for row in rows[:3]] == ["en", "de", None]


@pytest.mark.parametrize("closed", ["stderr", "stdout"])
def test_a_run_does_not_depend_on_its_listeners(tmp_path: Path, corpus: Corpus, classifier: str, closed: str) -> None:
    """As in `batchnlp ... 2>&1 | head -1`."""
    out = tmp_path / "out"
    cases = (classifier, 0), (f"{classifier}-not", 2)
    for model, code in cases:
        args = ["classify", corpus(name=f"of-{code}"), "-o", out, "--model", model, "--json", *QUICK]
        command = [sys.executable, "-m", "batchnlp", *map(str, args)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        getattr(process, closed).close()
        process.communicate(timeout=60)
        assert process.returncode == code
    assert (out / "_SUCCESS").is_file()


def test_what_a_narrow_terminal_cuts_off_matters_least() -> None:
    line = line_of(Progress(2_500_000, 3_000_000, 12, 3600.0, 2_500_000, 1e9, 2e9, 3000.0, "stopping"))
    assert line[:75] == "stopping · 2,500,000/3,000,000 rows  83% · 694 docs/s · ETA 12:00 · dead 12"


def test_before_the_rows_are_counted_the_line_has_no_figures() -> None:
    assert line_of(Progress(0, 0, 0, 1.0, 0, 0.0, 0.0, 0.0, "comparing 5 of 6 rows")) == "comparing 5 of 6 rows"


def test_the_same_command_again_does_nothing_and_says_so(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, source = tmp_path / "out", corpus()
    first = last_json(classify(source, out, classifier, "--json"))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    again = classify(source, out, classifier, "--json")
    assert again.exit_code == 0
    assert "all is done already" in again.stderr
    tree = last_json(again)
    assert tree["run"] == first["run"]
    assert (tree["rows"], tree["shards"], tree["resumed"]) == (25, 0, first["shards"])
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}


def test_a_job_file_is_the_one_off(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    source, spec = corpus(), tmp_path / "job.yaml"
    spec.write_text(json.dumps({
        "source": {"path": str(source), "id": "doc_id"}, "task": {"kind": "classify", "model": classifier},
        "engine": {"runner": "inline", "dtype": "float32", "device": "cpu", "backend": "torch"},
        "output": {"path": str(tmp_path / "a")},
    }))  # fmt: skip
    from_file = invoke("run", spec, "--json")
    assert from_file.exit_code == 0, from_file.output
    one_off = classify(source, tmp_path / "b", classifier, "--json")
    assert last_json(from_file)["run"] == last_json(one_off)["run"]
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")


def test_a_run_that_lost_a_commit_is_completed(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, source = tmp_path / "out", corpus()
    shards = ["--set", "source.rows_per_shard=10"]
    tree = last_json(classify(source, out, classifier, "--json", *shards))
    assert tree["shards"] == 3
    want = rows_of(out)
    control = next((out / "_batchnlp").glob("*/commits")).parent
    (control / "commits" / "00001.json").unlink()
    (control / "manifest.json").unlink()
    (out / "_SUCCESS").unlink()
    next(out.glob("part-00001-*")).unlink()
    assert last_json(invoke("status", out, "--json"))["shards_done"] == 2
    assert invoke("verify", out).exit_code == 1
    again = last_json(classify(source, out, classifier, "--json", *shards))
    assert (again["status"], again["resumed"], again["shards"]) == ("done", 2, 1)
    assert rows_of(out) == want
    assert invoke("verify", out).exit_code == 0


def test_partitions_and_the_input_order(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    result = classify(corpus(), out, classifier, "--keep", "lang", "--set", "output.partition_by=lang")
    assert result.exit_code == 0, result.output
    folders = {p.name for p in out.iterdir() if "=" in p.name}
    assert folders == {"lang=en", "lang=de", "lang=__HIVE_DEFAULT_PARTITION__"}
    assert [row["id"] for row in rows_of(out)] == [f"doc-{i:03}" for i in range(25)]


def test_generated_ids_name_file_and_row(tmp_path: Path, corpus: Corpus, encoder: str) -> None:
    out = tmp_path / "out"
    result = invoke("embed", corpus(), "-o", out, "--model", encoder, *QUICK)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert [row["id"] for row in rows[9:12]] == ["00.parquet#9", "01.parquet#0", "01.parquet#1"]
    assert len(rows[0]["embedding"]) == tiny.HIDDEN


def test_zero_shot_with_labels(tmp_path: Path, corpus: Corpus, nli: str) -> None:
    out = tmp_path / "out"
    result = invoke("zero-shot", corpus(), "-o", out, "--model", nli, "--labels", "games, science", *QUICK)
    assert result.exit_code == 0, result.output
    assert {row["label"] for row in rows_of(out)} <= {"games", "science"}


def test_ner_and_qa_from_flags(tmp_path: Path, corpus: Corpus) -> None:
    texts = [f"the data of {tiny_readers.NAME}", "the data of a game"]
    found = {"label": "PER", "text": tiny_readers.NAME, "start": 12, "end": 29}
    source, model = corpus(texts), tiny_readers.save_spotter(tmp_path / "ner", limit=64)
    result = invoke("ner", source, "-o", tmp_path / "a", "--model", model, *QUICK)
    assert result.exit_code == 0, result.output
    rows = [[{k: v for k, v in e.items() if k != "score"} for e in row["entities"]] for row in rows_of(tmp_path / "a")]
    assert rows == [[found], []]
    model = tiny_readers.save_spotter(tmp_path / "qa", answers=True, limit=64)
    for i, flag in enumerate((["--question", "who?"], ["--question-column", "lang"])):
        result = invoke("qa", source, "-o", tmp_path / f"b{i}", "--model", model, *flag, *QUICK)
        assert result.exit_code == 0, result.output
        answers = [(row["answer"], row["start"], row["end"]) for row in rows_of(tmp_path / f"b{i}")]
        assert answers == [(tiny_readers.NAME, 12, 29), (None, None, None)]
    result = invoke("qa", source, "-o", tmp_path / "c", "--model", model, *QUICK)
    assert result.exit_code == 2
    assert "task.question is needed for qa" in result.stderr


# --- dead letters


def test_over_max_failed_is_exit_1_without_success(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    result = classify(corpus(BAD), out, classifier, "--json", "--set", "limits.max_failed=20%")
    assert result.exit_code == 1
    tree = last_json(result)
    assert (tree["status"], tree["rows"], tree["dead"]) == ("failed", 10, 3)
    assert tree["codes"] == {"blank_text": 1, "empty_text": 1, "null_text": 1}
    assert "3 dead letters, 2 allowed by limits.max_failed 20%" in result.stderr
    assert f"batchnlp collect {out} --dead -o - shows them, and a higher limit lets them pass" in result.stderr
    nothing = invoke("retry", out)
    assert nothing.exit_code == 0
    assert "the run stays over limits.max_failed or below a gate: run the job again with another one" in nothing.stderr
    assert not (out / "_SUCCESS").exists()
    assert list((out / "_batchnlp").glob("*/manifest.json"))
    status = last_json(invoke("status", out, "--json"))
    assert (status["status"], status["ok"], status["dead"]) == ("failed", 7, 3)
    assert len(rows_of(out)) == 7
    letters = [row for path in out.glob("_batchnlp/*/dead/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert [(row["id"], row["code"], row["row"], row["file"]) for row in letters] == [
        ("doc-007", "null_text", 7, "00.parquet"),
        ("doc-008", "empty_text", 8, "00.parquet"),
        ("doc-009", "blank_text", 9, "00.parquet"),
    ]
    assert invoke("verify", out).exit_code == 0, "failed documents are accounted for"


def test_within_max_failed_is_done(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    result = classify(corpus(BAD), tmp_path / "out", classifier, "--set", "limits.max_failed=3")
    assert result.exit_code == 0
    assert "dead letters: blank_text 1, empty_text 1, null_text 1" in result.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_the_limit_is_judged_anew_each_time(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out, source = tmp_path / "out", corpus(BAD)
    for limit, code in (("50%", 0), ("0", 1), ("50%", 0)):
        assert classify(source, out, classifier, "--set", f"limits.max_failed={limit}").exit_code == code
        assert (out / "_SUCCESS").exists() == (code == 0), f"max_failed={limit}"


# --- refused before anything is written


def test_wrong_wishes_end_with_one_line_and_nothing_written(
    tmp_path: Path, corpus: Corpus, classifier: str, encoder: str
) -> None:
    source, out = corpus(), tmp_path / "out"
    missing = source.with_name("corpsu")
    cases: dict[str, tuple[list[object], str]] = {
        "path": (["classify", missing, "--model", classifier], "corpsu"),
        "column": (["classify", source, "--model", classifier, "--text-column", "txt"], "text"),
        "id": (["classify", source, "--model", classifier, "--id-column", "docid"], "doc_id"),
        "keep": (["classify", source, "--model", classifier, "--keep", "lnag"], "lang"),
        "model": (["classify", source, "--model", classifier[:-1]], "did you mean"),
        "head": (["classify", source, "--model", encoder], "no classification head"),
        "key": (["classify", source, "--model", classifier, "--set", "engine.dtpye=float32"], "did you mean engine.dtype?"),
        "value": (["classify", source, "--model", classifier, "--set", "engine.replicas=0"], "engine.replicas"),
        "gpu": (["classify", source, "--model", classifier, "--set", "engine.backend=tensorflow"], "engine.backend"),
        "twice": (["classify", source, "--model", classifier, "--set", "output.partition_by=lang"], "source.keep"),
    }  # fmt: skip
    for name, (args, part) in cases.items():
        result = invoke(args[0], *args[1:], "-o", out, *QUICK[:2])
        assert result.exit_code == 2, (name, result.output, result.exception)
        errors = [line for line in result.stderr.splitlines() if line.startswith("batchnlp: ")]
        assert len(errors) == 1, (name, result.stderr)
        assert result.stderr.splitlines()[-1] == errors[0], (name, result.stderr)
        assert part in errors[0], (name, errors[0])
        assert result.stdout == ""
        assert not out.exists(), name


@pytest.mark.parametrize("command", ["status", "verify", "collect"])
def test_looking_at_what_is_no_output(tmp_path: Path, command: str) -> None:
    result = invoke(command, tmp_path / "none")
    assert result.exit_code == 2
    assert result.stderr == f"batchnlp: {tmp_path / 'none'} is no directory (give the output.path of a job)\n"
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_one_line(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    (tmp_path / "out").write_text("mine")
    result = classify(corpus(), tmp_path / "out", classifier)
    assert result.exit_code == 2, result.exception
    assert result.stderr.splitlines()[-1].startswith("batchnlp: cannot write ")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["x" * 300, "link/out"])
def test_an_output_that_cannot_be_is_one_line(tmp_path: Path, corpus: Corpus, classifier: str, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    result = classify(corpus(), tmp_path / name, classifier)
    assert result.exit_code == 2, result.exception
    assert len(result.stderr.splitlines()) == 1
    assert re.match("batchnlp: cannot (read|write) ", result.stderr)


def test_nothing_is_not_here(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    """As from a variable of the shell that is not set."""
    for source, model, word in (("", classifier, "source.path is empty"), (corpus(), "", "task.model is empty")):
        result = invoke("classify", source, "-o", tmp_path / "out", "--model", model, *QUICK)
        assert (result.exit_code, word in result.stderr) == (2, True)


def test_no_job_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "nightly.yaml").write_text("{}")
    result = invoke("run", tmp_path / "nightli.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        f"batchnlp: no job file {tmp_path / 'nightli.yaml'} (did you mean {tmp_path / 'nightly.yaml'}?)\n"
    )


def test_a_misspelt_command_names_the_nearest() -> None:
    result = invoke("clasify", "x")
    assert result.exit_code == 2
    assert "there is no command clasify; did you mean classify?" in result.stderr


def test_a_held_output_is_exit_75(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    import os

    from batchnlp.data.lock import Lock
    from batchnlp.data.store import LocalStore

    lock = Lock(LocalStore(tmp_path / "out"), "somebody")
    lock.acquire()
    try:
        result = classify(corpus(), tmp_path / "out", classifier)
    finally:
        lock.release()
    assert result.exit_code == 75
    assert f"is in use by process {os.getpid()} on " in result.stderr


# --- plan, status, verify, collect


def test_plan_tells_and_writes_nothing(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(json.dumps({
        "job": "nightly", "source": {"path": str(corpus([*BAD, "game " * 200])), "rows_per_shard": 5},
        "task": {"kind": "classify", "model": classifier}, "output": {"path": str(tmp_path / "out")},
    }))  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    result = invoke("plan", spec, "--json", "--full")
    assert result.exit_code == 0, result.output
    tree = last_json(result)
    assert tree["sampled"] >= 10, "--full looks at every document that has a text"
    assert (tree["job"], tree["rows"], tree["files"], tree["shards"]) == ("nightly", 11, 2, 3)
    assert (tree["longest"], tree["over_limit"], tree["max_length"]) == (200, 1, tiny.LIMIT)
    for on_long in ("truncate", "fail"):
        told = last_json(invoke("plan", spec, "--json", "--set", f"task.on_long={on_long}"))
        assert told["over_limit"] == 1
    assert invoke("plan", spec).exit_code == 0
    probed = invoke("plan", spec, "--probe", "--json", "--set", "engine.device=cpu", "--set", "engine.dtype=float32")
    assert last_json(probed)["docs_per_second"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_one_off_is_planned_with_its_own_flags(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    result = classify(corpus(), out, classifier, "--plan", "--json", "--keep", "lang")
    assert result.exit_code == 0, result.output
    planned = last_json(result)
    assert (planned["rows"], planned["committed"]) == (25, 0)
    assert not out.exists()
    assert (
        last_json(classify(tmp_path / "corpus", out, classifier, "--json", "--keep", "lang"))["run"] == planned["run"]
    )


def test_plan_subtracts_what_is_done(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    spec, source = tmp_path / "job.yaml", corpus()
    spec.write_text(json.dumps({
        "source": {"path": str(source), "rows_per_shard": 10}, "task": {"kind": "classify", "model": classifier},
        "engine": {"runner": "inline", "dtype": "float32", "device": "cpu"}, "output": {"path": str(tmp_path / "out")},
    }))  # fmt: skip
    assert invoke("run", spec).exit_code == 0
    next(tmp_path.glob("out/_batchnlp/*/commits/00002.json")).unlink()
    tree = last_json(invoke("plan", spec, "--probe", "--json", "--set", "source.rows_per_shard=5"))
    assert (tree["shards"], tree["committed"], tree["rows_done"]) == (3, 2, 20), "as the run will go on"
    assert tree["seconds"] == pytest.approx(5 / tree["docs_per_second"])
    told = invoke("plan", spec).stdout
    assert "20 rows in 2 shards" in told
    assert "25 documents; all of them" in told
    assert "about" not in told, "what was counted is not estimated"
    assert invoke("run", spec).exit_code == 0
    assert "none, all is done" in invoke("plan", spec, "--probe").stdout


def test_plan_counts_all_rows_it_will_not_answer(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(json.dumps({
        "source": {"path": str(corpus(BAD))}, "task": {"kind": "classify", "model": classifier},
        "output": {"path": str(tmp_path / "out")},
    }))  # fmt: skip
    told = last_json(invoke("plan", spec, "--json", "--full"))
    assert told["dead"] == {"blank_text": 1, "empty_text": 1, "null_text": 1}
    assert told["duplicate_share"] == 0, "what has no text is no other's twin"
    (note,) = told["notes"]
    want = "about 3 dead letters from what has been looked at, 0 allowed by limits.max_failed 1%: the run would end as failed"
    assert note == want
    assert last_json(invoke("plan", spec, "--json", "--set", "limits.max_failed=3"))["notes"] == []


def test_verify_finds_damage(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    classify(corpus(), out, classifier)
    good = last_json(invoke("verify", out, "--json"))
    assert (good["status"], good["rows"], good["ok"], good["problems"]) == ("verified", 25, 25, [])
    path = next(out.glob("part-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = invoke("verify", out, "--json")
    assert result.exit_code == 1
    assert last_json(result)["status"] == "failed"
    assert f"{path} is damaged" in last_json(result)["problems"][0]


def test_collect_writes_beside_the_output(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    classify(corpus(), out, classifier)
    result = invoke("collect", out, "--format", "csv", "--json")
    want = {"status": "done", "rows": 25, "dead": 0, "file": str(tmp_path / "out.csv"), "format": "csv"}
    assert last_json(result) == want
    assert "dead" not in result.stderr
    assert (tmp_path / "out.csv").read_text().count("\n") == 26
    refused = invoke("collect", out, "-o", "-", "--format", "parquet")
    assert refused.exit_code == 2
    assert "Parquet cannot go to stdout" in refused.stderr


def test_collect_tells_of_dead_letters_and_writes_them_too(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    classify(corpus(BAD), out, classifier, "--set", "limits.max_failed=3", "--set", "source.rows_per_shard=4")
    result = invoke("collect", out)
    assert result.stderr.splitlines()[-1] == (
        f"3 dead letters beside them: batchnlp collect {out} --dead tells which, and why"
    )
    assert f"batchnlp collect {out} --dead -o -" in invoke("status", out).stdout
    dead = invoke("collect", out, "--dead", "-o", "-")
    rows = [json.loads(line) for line in dead.stdout.splitlines()]
    assert [(row["id"], row["code"]) for row in rows] == [
        ("doc-007", "null_text"), ("doc-008", "empty_text"), ("doc-009", "blank_text"),
    ]  # fmt: skip
    assert dead.stderr == "3 dead letters on stdout\n"
    for suffix in ("parquet", "csv"):
        assert last_json(invoke("collect", out, "--dead", "--format", suffix, "--json"))["rows"] == 3
        assert (tmp_path / f"out.dead.{suffix}").is_file()
    assert pq.read_table(tmp_path / "out.dead.parquet")["row"].to_pylist() == [7, 8, 9]


def test_dead_letters_of_line_formats_name_their_line(tmp_path: Path, classifier: str) -> None:
    """Also of rows that the reader found nothing wrong with."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "game"}\n\n{"text": ""}\n{"text": "science"}\nnot json\n')
    (tmp_path / "in" / "b.csv").write_text('text\n"a\nb"\n" "\nweb\n')
    out = tmp_path / "out"
    limit = ["--set", "limits.max_failed=50%"]
    assert invoke("classify", tmp_path / "in", "-o", out, "--model", classifier, *QUICK, *limit).exit_code == 0
    rows = [json.loads(line) for line in invoke("collect", out, "--dead", "-o", "-").stdout.splitlines()]
    assert [(row["file"], row["row"], row["line"], row["code"]) for row in rows] == [
        ("a.jsonl", 1, 3, "empty_text"), ("a.jsonl", 3, 5, "malformed_json"), ("b.csv", 1, 4, "blank_text"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["all.txt", "all", "all.csv.gz"])
def test_collect_guesses_no_format(tmp_path: Path, corpus: Corpus, classifier: str, name: str) -> None:
    out = tmp_path / "out"
    classify(corpus(), out, classifier)
    result = invoke("collect", out, "-o", tmp_path / name)
    assert result.exit_code == 2
    assert f"the name {tmp_path / name} says no format (end it in .parquet, .csv or .jsonl" in result.stderr
    assert not (tmp_path / name).exists()
    assert invoke("collect", out, "-o", tmp_path / name, "--format", "csv").exit_code == 0


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_collect_of_a_broken_part_is_one_line_and_its_hint_works(
    tmp_path: Path, corpus: Corpus, classifier: str, damage: str
) -> None:
    out, source = tmp_path / "out", corpus()
    classify(source, out, classifier)
    want = rows_of(out)
    path = next(out.glob("part-*"))
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes({"gone": b"", "short": data[:-1], "flipped": data}[damage])
    if damage == "gone":
        path.unlink()
    result = invoke("collect", out)
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    what = {"gone": "was committed and is gone", "short": "bytes instead of", "flipped": "cannot be read: "}[damage]
    assert result.stderr.startswith(f"batchnlp: {path} ")
    assert what in result.stderr
    assert ("is damaged" if damage == "flipped" else what) in invoke("verify", out).stderr
    if damage != "flipped":  # they look at names and sizes
        assert what in classify(source, out, classifier).stderr
        assert what in last_json(invoke("status", out, "--json"))["damage"][0]
    commit = re.search(r"remove (\S+) and run the job again", result.stderr)
    assert commit
    Path(commit[1]).unlink()
    assert classify(source, out, classifier).exit_code == 0
    assert rows_of(out) == want


def test_status_names_some_of_many_lost_files(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / "out"
    done = classify(corpus(), out, classifier, "--set", "source.rows_per_shard=2")
    assert done.exit_code == 0, done.stderr
    for path in out.glob("part-*"):
        path.unlink()
    tree = last_json(invoke("status", out, "--json"))
    assert (tree["status"], tree["shards"], len(tree["damage"])) == ("damaged", 13, 4)
    assert tree["damage"][3] == "and 10 files more; batchnlp verify names them all"


def test_nothing_is_cut_off_where_there_is_no_terminal(tmp_path: Path, corpus: Corpus, classifier: str) -> None:
    out = tmp_path / ("long" * 30) / ("name" * 30)
    classify(corpus(BAD), out, classifier)
    told = invoke("status", out).stdout
    assert f"collect {out} --dead" in told
    assert not [line for line in told.splitlines() if line != line.rstrip()]
