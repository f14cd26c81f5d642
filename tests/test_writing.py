"""generate and chat: prompts and columns, against `model.generate` called by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_writers
from commands import invoke, last_json
from writing import ENGINE, LONG, TEXTS, Corpus, apply, body, length, loaded, spec, written

import batchnlp
from batchnlp.engine.planner import prepare
from batchnlp.errors import ModelError, SourceError, SpecError

# --- generate


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_generate_goes_on_from_the_text(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    rows = apply("generate", [*TEXTS, None, " "], path, max_new_tokens=6)
    assert [row["document"] for row in rows[:4]] == TEXTS, "the result has a column text of its own"
    table = batchnlp.apply(
        "generate", pa.table({"body": TEXTS}), model=path, engine=ENGINE, text_column="body", max_new_tokens=6
    )
    assert table["text"].to_pylist() == [written(path, text, 6) for text in TEXTS]
    assert len(set(table["text"].to_pylist())) > 1, "the answers must differ, else nothing is proven"
    assert table["n_tokens"].to_pylist() == [length(path, text) for text in TEXTS]
    assert set(table["finish_reason"].to_pylist()) <= {"stop", "length"}
    assert table.schema.field("n_new_tokens").type == pa.int32()
    assert [row["error"] and row["error"].split(":")[0] for row in rows[4:]] == ["null_text", "blank_text"]


def test_a_table_with_a_column_of_the_results_name_is_refused(gpt2: str) -> None:
    with pytest.raises(SourceError, match="'text' has the name of a result column"):
        batchnlp.apply("generate", pa.table({"text": TEXTS}), model=gpt2, engine=ENGINE)


def test_a_template_takes_columns_and_a_row_that_breaks_it_dies_alone(gpt2: str) -> None:
    table = body(TEXTS[:3], lang=["de", "fr", None])
    prompt = "{{ lang.upper() }}: {{ text }}!"
    got = batchnlp.apply(
        "generate", table, model=gpt2, engine=ENGINE, text_column="body", max_new_tokens=4, prompt=prompt
    )
    want = [written(gpt2, f"{lang}: {text}!", 4) for lang, text in zip(["DE", "FR"], TEXTS[:2], strict=True)]
    assert got["text"].to_pylist() == [*want, None]
    assert got["n_tokens"].to_pylist()[:2] == [length(gpt2, text) for text in TEXTS[:2]], "the document's own tokens"
    assert got["error"].to_pylist()[2].startswith("template_error: the template breaks on this row: ")


def test_a_template_that_names_no_column_is_refused_with_the_nearest(corpus: Corpus, gpt2: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"did you mean lang\?"):
        prepare(spec(corpus(), gpt2, tmp_path, kind="generate", prompt="{{ lagn }} {{ text }}"))
    with pytest.raises(SourceError, match="no column 'titel'"):
        apply("generate", TEXTS, gpt2, prompt="{{ titel }}")


@pytest.mark.parametrize("prompt", [None, "Read: {{ text }} -- and go on:"])
def test_a_text_too_long_for_its_prompt(gpt2: str, prompt: str | None) -> None:
    texts = [LONG, "short"]
    more = {} if prompt is None else {"prompt": prompt}
    failed = apply("generate", texts, gpt2, max_new_tokens=16, **more)
    room = tiny_writers.POSITIONS - 16
    assert failed[0]["error"].startswith("too_long: a prompt of ")
    assert f"the model takes {room}" in failed[0]["error"]
    assert failed[1]["error"] is None
    cut = apply("generate", texts, gpt2, max_new_tokens=16, on_long="truncate", logprobs=True, **more)
    assert [row["truncated"] for row in cut] == [True, False]
    frame = length(gpt2, prompt.replace("{{ text }}", "")) if prompt else 0
    assert abs(cut[0]["n_tokens_used"] - (room - frame)) <= 4, "no more is cut than need be"
    assert cut[0]["n_tokens"] == length(gpt2, LONG)
    assert [len(row["logprobs"]) == row["n_new_tokens"] for row in cut] == [True, True]
    assert all(p <= 0 for p in cut[0]["logprobs"])


def test_several_sampled_answers_stay_one_row_and_do_not_depend_on_their_batch(gpt2: str) -> None:
    wish = {"n": 3, "sample": True, "max_new_tokens": 5, "seed": 3}
    rows = apply("generate", [*TEXTS, None], gpt2, **wish)
    assert [len(row["answers"]) for row in rows[:4]] == [3] * 4
    assert rows[4]["answers"] is None
    assert len({answer["text"] for answer in rows[0]["answers"]}) > 1
    assert rows[0]["answers"][0].keys() == {"text", "n_new_tokens", "finish_reason"}
    assert apply("generate", TEXTS[:1], gpt2, **wish)[0]["answers"] == rows[0]["answers"]
    assert apply("generate", TEXTS[:1], gpt2, **wish | {"seed": 4})[0]["answers"] != rows[0]["answers"]


def test_a_stop_string_is_cut_off(gpt2: str) -> None:
    whole = batchnlp.apply("generate", body(TEXTS), model=gpt2, engine=ENGINE, text_column="body", max_new_tokens=8)
    text = max(whole["text"].to_pylist(), key=len)
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    got = batchnlp.apply(
        "generate", body(TEXTS), model=gpt2, engine=ENGINE, text_column="body", max_new_tokens=8, stop=stop
    )
    assert got["text"].to_pylist() == [text.split(stop)[0] for text in whole["text"].to_pylist()]


OPTIONS: dict[str, dict[str, Any]] = {
    "exactly": {"min_new_tokens": 5, "max_new_tokens": 5},
    "penalty": {"repetition_penalty": 1.7, "max_new_tokens": 12},
    "stop": {"stop": ["er", "the ", "a", "s"], "max_new_tokens": 24},
    "beams": {"num_beams": 3, "max_new_tokens": 8},
    "beams and a minimum": {"num_beams": 3, "max_new_tokens": 8, "min_new_tokens": 8},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_options_mean_what_they_mean_to_generate(name: str, option: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    wish = dict(OPTIONS[option])
    got = batchnlp.apply("generate", body(TEXTS), model=path, engine=ENGINE, text_column="body", **wish).to_pylist()
    new, stops = wish.pop("max_new_tokens"), wish.pop("stop", [])
    more = {"stop_strings": stops, "tokenizer": loaded(path)[0]} if stops else wish
    whole = [written(path, text, new, **more) for text in TEXTS]
    ends = [min((found for stop in stops if (found := text.find(stop)) >= 0), default=len(text)) for text in whole]
    assert [row["text"] for row in got] == [text[:end] for text, end in zip(whole, ends, strict=True)]
    if stops:
        assert any(end < len(text) for text, end in zip(whole, ends, strict=True)), "something must have been stopped"
    if option == "exactly":
        assert [row["n_new_tokens"] for row in got] == [5] * len(TEXTS)
    if option not in ("stop", "exactly"):
        assert [row["text"] for row in got] != [written(path, text, new) for text in TEXTS], "the option must matter"


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_an_answer_has_as_many_tokens_as_it_must(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With a token for its end that the model likes to say."""
    path = shutil.copytree(request.getfixturevalue(name), tmp_path / "model")
    tokenizer, model = loaded(request.getfixturevalue(name))
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    liked = model.generate(ids, max_new_tokens=3, do_sample=False)[0, -1].item()
    config = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": liked}))
    for least in (0, 7):
        rows = apply("generate", TEXTS, str(path), max_new_tokens=12, min_new_tokens=least)
        whole = [written(str(path), text, 12, min_new_tokens=least) for text in TEXTS]
        end = tokenizer.decode(liked)  # which is not of the answer
        assert [row["text"] for row in rows] == [text.removesuffix(end) for text in whole]
        assert (min(row["n_new_tokens"] for row in rows) < 7) == (least == 0)


def test_the_default_length_leaves_half_for_the_prompt(gpt2: str) -> None:
    assert apply("generate", ["small"], gpt2)[0]["n_new_tokens"] <= tiny_writers.POSITIONS // 2
    with pytest.raises(
        SpecError, match=f"max_new_tokens 96 leaves no room for a prompt: .* {tiny_writers.POSITIONS} positions"
    ):
        apply("generate", ["small"], gpt2, max_new_tokens=96)


# --- chat


def test_chat_renders_the_template_and_adds_no_second_first_token(llama: str) -> None:
    rows = apply("chat", TEXTS, llama, max_new_tokens=6, system="Be short.", prompt="Q: {{ text }}")
    tokenizer = loaded(llama)[0]
    for row, text in zip(rows, TEXTS, strict=True):
        turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": f"Q: {text}"}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert row["reply"] == written(llama, prompt, 6, special=False)
        assert row["n_tokens"] == length(llama, text)


TURNS: list[Any] = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "go on"}],
    [{"role": "system", "content": "mine"}, {"role": "user", "content": "hi"}],
    [{"role": "assistant", "content": "hi"}],
    [{"role": "robot", "content": "hi"}],
    [],
    None,
    [{"role": "user", "content": LONG}],
]
CODES = [None, None, "no_user_turn", "bad_role", "no_user_turn", "null_text", "too_long"]


def conversation(path: str, turns: list[dict[str, str]]) -> str:
    prompt = loaded(path)[0].apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return written(path, prompt, 6, special=False)


def test_conversations_and_their_odd_rows(llama: str) -> None:
    rows = apply("chat", TURNS, llama, max_new_tokens=6, system="task's")
    assert [row["error"] and row["error"].split(":")[0] for row in rows] == CODES
    assert rows[0]["reply"] == conversation(llama, [{"role": "system", "content": "task's"}, *TURNS[0]])
    assert rows[1]["reply"] == conversation(llama, TURNS[1]), "the row's own system turn wins"
    assert rows[0]["n_tokens"] == sum(length(llama, turn["content"]) for turn in TURNS[0])
    cut = apply("chat", TURNS[-1:], llama, max_new_tokens=6, on_long="truncate")[0]
    assert cut["truncated"]
    assert cut["reply"] is not None


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_column_of_conversations_is_a_source_for_chat_alone(llama: str, gpt2: str, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.table({"text": pa.array(TURNS, tiny_turns())}), path)
    else:
        path.write_text("".join(json.dumps({"text": turns}) + "\n" for turns in TURNS))
    job = spec(path, llama, tmp_path, kind="chat", max_new_tokens=6)
    result = batchnlp.run(job.model_copy(update={"limits": job.limits.model_copy(update={"max_failed": 9})}))
    assert (result.rows, result.dead) == (7, 5)
    part = pq.read_table(next((tmp_path / "out").glob("part-*.parquet")))
    assert part["reply"].to_pylist() == [conversation(llama, turns) for turns in TURNS[:2]]
    with pytest.raises(SourceError, match="not text"):
        prepare(spec(path, gpt2, tmp_path, kind="generate"))


def tiny_turns() -> pa.DataType:
    """With its fields in the other order, as files have them."""
    return pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))


# --- refused in the plan


@pytest.mark.parametrize(
    ("kind", "model", "message"),
    [
        ("generate", "classifier", "does not generate text .*use a causal language model such as gpt2"),
        ("summarize", "classifier", "does not write text .*facebook/bart-large-cnn"),
        ("translate", "gpt2", "is no encoder-decoder.*the task is chat"),
        ("chat", "bart", "is no causal language model"),
        ("chat", "gpt2", "has no chat template .*task.kind=generate"),
        ("classify", "gpt2", "no classification head"),
    ],
)
def test_a_model_of_the_wrong_class_is_refused_with_a_remedy(
    kind: str, model: str, message: str, corpus: Corpus, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ModelError, match=message):
        prepare(spec(corpus(), request.getfixturevalue(model), tmp_path, kind=kind))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "generate", "on_long": "window"}, "generate cannot answer in windows; use truncate or fail"),
        ({"kind": "generate", "n": 2}, "task.n: without task.sample=true all answers would be the same"),
        ({"kind": "generate", "temperature": 0.5}, "task.temperature does nothing without task.sample=true"),
        ({"kind": "generate", "system": "x"}, "task.system belongs to chat, not to generate"),
        ({"kind": "summarize", "n": 2, "sample": True}, "task.n belongs to generate and chat, not to summarize"),
        (
            {"kind": "classify", "max_new_tokens": 5},
            "task.max_new_tokens belongs to summarize and translate and generate and",
        ),
        ({"kind": "chat", "labels": "a,b"}, "task.labels belongs to zero-shot, not to chat"),
        ({"kind": "chat", "min_new_tokens": 9, "max_new_tokens": 5}, "task.min_new_tokens is more than"),
        ({"kind": "generate", "prompt": "{% x %}"}, "task.prompt is no jinja2 template"),
    ],
)
def test_wishes_that_cannot_be_are_refused(gpt2: str, task: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        batchnlp.apply(data=["x"], model=gpt2, **task)


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [  # kind, model, task, what is said
    ("summarize", "gpt2", {"prompt": "{{ lagn }}: {{ text }}"}, "did you mean lang?"),
    ("chat", "llama", {"prompt": "{{ titel }}"}, "has no column titel, only doc_id, text, lang"),
    ("translate", "coded", {"source_language": "eng_Latn", "target_language": "deu_latn"}, "did you mean deu_Latn?"),
    ("generate", "gpt2", {"json_schema": {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}},
     "say it in simpler keywords"),
    ("generate", "gpt2", {"json_schema": {"type": "array"}}, "write {type: object"),
    ("summarize", "classifier", {}, "facebook/bart-large-cnn"),
    ("translate", "llama", {}, "Helsinki-NLP/opus-mt-en-de"),
    ("chat", "gpt2", {}, "task.kind=generate"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "model", "wish", "remedy"), REFUSED)
def test_the_plan_refuses_with_the_remedy(
    kind: str, model: str, wish: dict[str, Any], remedy: str, corpus: Corpus, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    out, job = tmp_path / "out", tmp_path / "job.yaml"
    task = {"kind": kind, "model": request.getfixturevalue(model), **wish}
    job.write_text(json.dumps({"source": {"path": str(corpus())}, "task": task, "output": {"path": str(out)}}))
    for command in ("plan", "run", "doctor"):
        result = invoke(command, job, "--json")
        assert result.exit_code == 2, result.output
        assert remedy in last_json(result)["message"] + last_json(result)["hint"]
        assert len(result.stderr.splitlines()) == 1, "one line"
    assert not out.exists()


def test_a_row_that_breaks_its_template_is_one_dead_letter_of_a_run(gpt2: str, corpus: Corpus, tmp_path: Path) -> None:
    job = spec(
        corpus(TEXTS[:3]), gpt2, tmp_path, kind="generate", prompt="{{ lang.upper() }} {{ text }}", max_new_tokens=2
    )
    result = batchnlp.run(job.model_copy(update={"limits": job.limits.model_copy(update={"max_failed": 1})}))
    assert (result.status, result.rows, result.codes) == ("done", 3, {"template_error": 1})
    dead = pq.read_table(next((tmp_path / "out").glob("_batchnlp/*/dead/*.parquet"))).to_pylist()
    assert [(row["row"], row["stage"], row["code"]) for row in dead] == [(2, "encode", "template_error")]
