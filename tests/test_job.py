"""From YAML, environment and flags to a job, and from a job to its identity."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from batchnlp.errors import SpecError
from batchnlp.job.identity import differences, fingerprint, fingerprint_facts, job_name
from batchnlp.job.load import build_spec, known_keys, load_spec
from batchnlp.job.schema import schema_text
from batchnlp.job.spec import JobSpec
from batchnlp.types import InputFile, ModelFiles

JOBS = Path(__file__).parents[1] / "jobs"
MODEL = ModelFiles("m", "/models/m", "local", "w1", "t1", {"hidden_size": 32}, 512)
FILES = (InputFile("/in/a.parquet", "a.parquet", 10, "1", "parquet"),)
Tree = dict[str, Any]


def tree(**more: Any) -> Tree:
    """A job as YAML gives it; `more` has dotted keys with `__` for the dot."""
    made: Tree = {
        "source": {"path": "corpus/*.parquet"}, "task": {"kind": "zero-shot", "model": "org/name", "labels": ["a", "b"]},
        "output": {"path": "out"},
    }  # fmt: skip
    for dotted, value in more.items():
        *sections, key = dotted.split("__")
        inner = made
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return made


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str = "", **more: Any) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text or json.dumps(tree(**more)), encoding="utf-8")
        return path

    return write


# --- precedence


def test_flags_over_environment_over_file(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = job(engine__dtype="bfloat16", engine__tokens_per_batch=100, engine__device="cpu")
    monkeypatch.setenv("BATCHNLP_ENGINE__TOKENS_PER_BATCH", "200")
    monkeypatch.setenv("BATCHNLP_ENGINE__DEVICE", "cuda")
    monkeypatch.setenv("BATCHNLP_SOURCE__KEEP", "[lang, year]")
    engine = load_spec(path, ["engine.device=cuda:1"]).engine
    assert (engine.dtype, engine.tokens_per_batch, engine.device) == ("bfloat16", 200, "cuda:1")
    assert load_spec(path).source.keep == ["lang", "year"]


def test_a_word_of_the_environment_is_a_key_of_the_top_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNLP_JOB", "nightly")
    assert build_spec(tree(job="other")).job == "nightly"


def test_the_mode_flag_is_over_the_environment(job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A one-off's flags are flags, whichever way they come in."""
    from batchnlp.cli import run as module
    from batchnlp.cli.main import main

    seen: list[JobSpec] = []
    monkeypatch.setattr(module, "execute", lambda spec, as_json: seen.append(spec) or 0)
    monkeypatch.setenv("BATCHNLP_OUTPUT__MODE", "append")
    monkeypatch.setenv("BATCHNLP_SOURCE__TEXT", "from_environment")
    CliRunner().invoke(main, ["run", str(job()), "--mode", "overwrite"], catch_exceptions=False)
    flags = ["--model", "m", "-o", "o", "--mode", "overwrite", "--text-column", "from_flag"]
    CliRunner().invoke(main, ["embed", "in", *flags], catch_exceptions=False)
    assert [(spec.output.mode, spec.source.text) for spec in seen] == [
        ("overwrite", "from_environment"),
        ("overwrite", "from_flag"),
    ]


# --- --set


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("engine.dtype=float32", "engine", "dtype", "float32"),
        ("engine.tokens_per_batch=512", "engine", "tokens_per_batch", 512),
        ("task.scores=true", "task", "scores", True),
        ("source.keep=a, b", "source", "keep", ["a", "b"]),
        ("source.keep=[a, b]", "source", "keep", ["a", "b"]),
        ("source.id=", "source", "id", None),
        ("task.template=Is a=b {}?", "task", "template", "Is a=b {}?"),
        ("limits.max_failed=0.1%", "limits", "max_failed", "0.1%"),
        ("limits.max_failed=100", "limits", "max_failed", 100),
    ],
)
def test_set_reads_yaml(setting: str, section: str, key: str, value: Any) -> None:
    assert getattr(getattr(build_spec(tree(), [setting]), section), key) == value


def test_set_takes_lists_and_mappings() -> None:
    spec = build_spec(
        tree(), ['source.filter=[[lang, "==", en], [year, ">", 2020]]', "task.labels={g: games, s: science}"]
    )
    assert spec.source.filter == [("lang", "==", "en"), ("year", ">", 2020)]
    assert spec.task.labels == {"g": "games", "s": "science"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("engine.dtype", "--set engine.dtype has no '=' (write --set engine.dtype=float32)"),
        ("source.keep=[a", "--set source.keep is not valid YAML"),
        ("source.path.deep=1", "source.path.deep cannot be set: path is no section"),
    ],
)
def test_set_that_makes_no_sense(setting: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(tree(), [setting])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("engine.dtpye=float32", "--set: unknown key engine.dtpye (did you mean engine.dtype?)"),
        ("engine={dtpye: float32}", "--set: unknown key engine.dtpye (did you mean engine.dtype?)"),
        ("engine.replicas=0", "--set: engine.replicas: Input should be"),
        ("task.labels=[]", "--set: task.labels is needed for zero-shot"),
        ("=3", "--set =3 has no key"),
    ],
)
def test_what_set_gets_wrong_is_not_the_file_s_fault(setting: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(tree(), [setting], where="job.yaml")
    assert str(caught.value).startswith(message)
    with pytest.raises(SpecError, match=r"^job\.yaml: unknown key source\.txt"):
        build_spec(tree(source__txt="x"), ["engine.dtype=float32"], where="job.yaml")


def test_a_variable_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNLP_ENGINE__REPLICAS", "0")
    with pytest.raises(SpecError, match=r"^BATCHNLP_ENGINE__REPLICAS: engine\.replicas: "):
        build_spec(tree(), where="job.yaml")
    assert build_spec(tree(), ["engine.replicas=1"]).engine.replicas == 1


def test_set_does_not_change_what_was_given() -> None:
    given = tree()
    build_spec(given, ["engine.dtype=float32", "task.model=other"])
    assert given == tree()


# --- refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"engine__dtpye": "float32"}, "the job: unknown key engine.dtpye (did you mean engine.dtype?)"),
        ({"source__txt": "body"}, "the job: unknown key source.txt (did you mean source.text?)"),
        ({"soruce": {}}, "the job: unknown key soruce (did you mean source?)"),
        ({"task__on_longer": "fail"}, "the job: unknown key task.on_longer (did you mean task.on_long?)"),
        ({"output__path": None}, "the job: output.path: "),
        ({"task__template": "no place"}, "the job: task.template needs a {} where the label goes"),
        ({"limits__max_failed": "many"}, "the job: limits.max_failed is a count (100) or a share (0.1%)"),
        ({"limits__max_failed": -1}, "the job: limits.max_failed is a count (100) or a share (0.1%), not -1"),
        ({"limits__max_failed": 0.5}, "the job: limits.max_failed is a count (100) or a share (0.1%), not 0.5"),
        ({"engine__replicas": 0}, "the job: engine.replicas: "),
        ({"engine": 3}, "the job: engine is a section, not 3 (its keys: engine.runner, engine.address, "),
        (
            {"engine__runner": "rya"},
            "the job: engine.runner: Input should be 'ray' or 'inline', not 'rya' (did you mean ray?)",
        ),
        ({"engine__device": "gpu"}, "the job: engine.device: String should match pattern '^(auto|cpu|cuda"),
        ({"output__partition_by": "lang"}, "the job: output.partition_by names 'lang', which source.keep does not"),
        ({"task__kind": "classify"}, "the job: task.labels belongs to zero-shot, not to classify"),
        ({"task__labels": [True, False]}, "the job: task.labels: True is not text; put it in quotes"),
        ({"task__labels": {"yes": None}}, "the job: task.labels: None is not text; put it in quotes"),
        ({"task__labels": ["a", "b", "a"]}, "the job: task.labels: 'a' is there twice; name each label once"),
        ({"task__labels": {1: "one", "1": "uno"}}, "the job: task.labels: '1' is there twice"),
        (
            {"output__path": "s3://bucket/out[1]"},
            "the job: output.path: s3://bucket/out[1] reads like a pattern",
        ),
        ({"output__path": " "}, "the job: output.path is empty; name a directory"),
    ],
)
def test_what_cannot_be_is_one_line(more: Tree, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        build_spec(tree(**more))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_is_missing_is_named() -> None:
    with pytest.raises(SpecError, match=r"task\.model is missing .*--set task\.model="):
        build_spec({**tree(), "task": {"kind": "embed"}})


def test_an_unknown_variable_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNLP_ENGINE__DTPYE", "float32")
    with pytest.raises(SpecError) as caught:
        build_spec(tree())
    assert str(caught.value) == (
        "the environment variable BATCHNLP_ENGINE__DTPYE is no setting (did you mean BATCHNLP_ENGINE__DTYPE?)"
    )


def test_aliases_are_refused(job: Callable[..., Path]) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
    with pytest.raises(SpecError, match="YAML aliases") as caught:
        load_spec(job(bomb))
    assert caught.value.exit_code == 2
    with pytest.raises(SpecError, match="YAML aliases"):
        build_spec(tree(), ["source.keep=[&a x, *a]"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("- a\n- b\n", "holds no job"),
        ("just words", "holds no job"),
        ("a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("a: 1\n" * 300_000, "has more than"),
        (
            "1: x\nsource: {path: a}\ntask: {kind: embed, model: m}\noutput: {path: o}\n",
            "the key 1 of the job is not text",
        ),
        ("source: {path: a}\ntask: {kind: embed, no: m}\noutput: {path: o}\n", "the key False of the job is not text"),
        ("source:\n  path: a\n  text: b\n  path: c\n", r"the key path is there twice, again in line 4"),
        ("job: 2024-13-45", "is not valid YAML: month must be in 1..12"),
        ("a: {b: 1\nc: 2\n", r"job.yaml is not valid YAML: line 2, column 2: expected ',' or '}', but got ':'$"),
        ("[" * 5000, "is not valid YAML: maximum recursion depth"),
        ("source: corpus\ntask: {kind: embed, model: m}\noutput: {path: o}\n", "source"),
    ],
)
def test_files_that_are_no_jobs(job: Callable[..., Path], text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        load_spec(job(text))
    assert "\n" not in str(caught.value)


def test_the_home_directory_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert build_spec(tree(output__path="~/results")).output.path == "/home/someone/results"


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xff\xfe\x00job")
    with pytest.raises(SpecError):
        load_spec(path)
    with pytest.raises(SpecError, match=r" cannot be read: Is a directory \(give the YAML file of a job\)"):
        load_spec(tmp_path)


# --- schema and keys


def test_the_schema_that_ships_is_the_code_s() -> None:
    assert (JOBS / "schema.json").read_text(encoding="utf-8") == schema_text()


def test_every_key_is_described() -> None:
    schema = json.loads(schema_text())
    for name, section in {**schema["$defs"], "JobSpec": schema}.items():
        for key, field in section["properties"].items():
            assert field.get("description") or "$ref" in field or "$ref" in str(field.get("allOf")), f"{name}.{key}"


def test_the_keys_that_scripts_rely_on() -> None:
    relied_on = """source.path source.text source.id source.keep source.filter source.rows_per_shard task.kind task.model
    task.revision task.on_long task.labels engine.runner engine.address engine.replicas engine.device engine.dtype
    engine.backend engine.tokens_per_batch output.path output.partition_by output.mode limits.max_failed job"""
    assert set(relied_on.split()) <= set(known_keys())


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.name)
def test_the_jobs_that_ship_are_valid(path: Path) -> None:
    load_spec(path)


def test_failed_allowed() -> None:
    def allowed(value: Any, rows: int) -> int:
        return build_spec(tree(limits__max_failed=value)).limits.failed_allowed(rows)

    assert [allowed("1%", n) for n in (0, 99, 100, 1000)] == [0, 0, 1, 10]
    assert [allowed("0.1%", 1000), allowed("100%", 7), allowed("5", 1), allowed(5, 1000)] == [1, 7, 5, 5]
    assert [allowed("0.7%", 1000), allowed("0.57%", 10_000)] == [7, 57], "shares are decimal numbers"


# --- identity


def identity(model: ModelFiles = MODEL, files: tuple[InputFile, ...] = FILES, **more: Any) -> str:
    return fingerprint(fingerprint_facts(build_spec(tree(**more)), model, files))


@pytest.mark.parametrize(
    "more",
    [
        {"task__labels": ["a", "c"]},
        {"task__labels": {"a": "a", "b": "described"}},
        {"task__template": "About {}."},
        {"task__on_long": "truncate"},
        {"task__max_length": 64},
        {"task__multi_label": True},
        {"task__threshold": 0.4},
        {"task__scores": True},
        {"task__kind": "embed", "task__labels": None},
        {"source__keep": ["lang"]},
        {"source__id": "doc_id"},
        {"source__text": "body"},
        {"source__filter": [["lang", "==", "en"]]},
        {"engine__dtype": "float32"},
        {"engine__backend": "openvino"},
        {"model": dataclasses.replace(MODEL, weights="w2")},
        {"model": dataclasses.replace(MODEL, tokenizer="t2")},
        {"model": dataclasses.replace(MODEL, config={"hidden_size": 64})},
        {"model": dataclasses.replace(MODEL, modules=({"type": "Normalize"},))},
        {"files": (*FILES, dataclasses.replace(FILES[0], path="/in/b.parquet", name="b.parquet"))},
        {"files": (dataclasses.replace(FILES[0], size=11),)},
        {"files": (dataclasses.replace(FILES[0], version="2"),)},
        {"source__keep": ["lang"], "output__partition_by": ["lang"]},
    ],
    ids=str,
)
def test_what_changes_results_changes_the_fingerprint(more: Tree) -> None:
    assert identity(**more) != identity()


def test_code_that_means_something_else_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before, old = identity(), fingerprint_facts(build_spec(tree()), MODEL, FILES)
    monkeypatch.setattr("batchnlp.job.identity.SEMANTICS", 1_000_000)
    assert identity() != before
    assert differences(old, fingerprint_facts(build_spec(tree()), MODEL, FILES)) == ["recipe.semantics"]


def test_partitions_change_the_fingerprint() -> None:
    assert identity(source__keep=["l"], output__partition_by=["l"]) != identity(source__keep=["l"])


@pytest.mark.parametrize(
    "more",
    [
        {"engine__runner": "inline"},
        {"engine__replicas": 4},
        {"engine__address": "ray://head:10001"},
        {"engine__device": "cpu"},
        {"engine__tokens_per_batch": 99},
        {"limits__max_failed": "50%"},
        {"limits__grace_seconds": 1},
        {"job": "another-name"},
        {"output__path": "elsewhere"},
        {"output__mode": "append"},
        {"source__rows_per_shard": 7},
        {"source__path": ["corpus"]},
        {"task__revision": "a" * 40},
        {"task__model": "/a/copy"},
        {"model": dataclasses.replace(MODEL, path="/other", name="copy", revision="b" * 40)},
    ],
    ids=str,
)
def test_what_only_says_where_and_how_does_not(more: Tree) -> None:
    assert identity(**more) == identity()


def test_differences_are_named_by_their_keys() -> None:
    spec = build_spec(tree())
    old = fingerprint_facts(spec, MODEL, FILES)
    changed = build_spec(tree(task__on_long="fail", source__keep=["lang"]))
    new = fingerprint_facts(changed, dataclasses.replace(MODEL, weights="w2"), FILES)
    assert differences(old, new) == ["recipe.task.on_long", "recipe.weights", "source.keep"]
    assert differences(old, old) == []


def test_facts_survive_json() -> None:
    """They are read back from plan.json and compared."""
    facts = fingerprint_facts(build_spec(tree(source__filter=[["lang", "in", ["en", "de"]]])), MODEL, FILES)
    assert differences(json.loads(json.dumps(facts)), facts) == []


def test_a_job_has_a_name() -> None:
    assert job_name(build_spec(tree(job="nightly"))) == "nightly"
    unnamed = job_name(build_spec(tree()))
    assert unnamed.startswith("job-")
    assert unnamed == job_name(build_spec(tree(task__model="x"))) != job_name(build_spec(tree(output__path="y")))
