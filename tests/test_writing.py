"""summarize, translate, generate, chat: prompts, rounds and columns, against `model.generate` called by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_writers
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import batchnlp
from batchnlp.engine.planner import prepare
from batchnlp.errors import ModelError, SourceError, SpecError
from batchnlp.job.load import build_spec
from batchnlp.text.sentences import windows

ENGINE = {"device": "cpu", "dtype": "float32"}
TEXTS = ["The game server plays a network", "small", "Ünïcödé, naïve", "fast library without a kernel 7"]
LONG = "\n".join(f"{text}." for text in tiny.texts(30, longest=12, seed=4))
Corpus = Callable[..., Path]


def apply(kind: str, data: Any, model: str, **task: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batchnlp.apply(kind, data, model=model, engine=ENGINE, **task).to_pylist()
    return rows


@cache
def loaded(path: str) -> tuple[Any, Any]:
    seq2seq = json.loads((Path(path) / "config.json").read_text()).get("is_encoder_decoder")
    auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    return AutoTokenizer.from_pretrained(path), auto.from_pretrained(path).eval()


@torch.inference_mode()
def written(path: str, prompt: str, new: int, special: bool = True, **more: Any) -> str:
    """What the model writes after a prompt, by transformers alone."""
    tokenizer, model = loaded(path)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=special)
    out = model.generate(
        inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=new, do_sample=False, **more
    )
    start = 0 if model.config.is_encoder_decoder else inputs.input_ids.shape[1]
    return str(tokenizer.decode(out[0, start:], skip_special_tokens=True))


def length(path: str, text: str) -> int:
    return len(loaded(path)[0](text, add_special_tokens=False).input_ids)


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


def body(texts: list[str], **more: list[Any]) -> pa.Table:
    return pa.table({"body": texts, **more})


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


def spec(source: Path, model: str, tmp_path: Path, **task: Any) -> Any:
    return build_spec({
        "source": {"path": str(source)}, "task": {"model": model, **task}, "output": {"path": str(tmp_path / "out")},
        "engine": {**ENGINE, "runner": "inline"},
    })  # fmt: skip


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


# --- summarize


def test_summarize_is_the_model_on_what_fits(bart: str, t5: str, llama: str, gpt2: str) -> None:
    chat = loaded(llama)[0].apply_chat_template(
        [{"role": "user", "content": f"Sum up: {TEXTS[0]}"}], tokenize=False, add_generation_prompt=True
    )
    want = {
        bart: written(bart, TEXTS[0], 6),
        t5: written(t5, "summarize: " + TEXTS[0], 6),
        gpt2: written(gpt2, TEXTS[0] + "\n\nTL;DR:", 6),
    }
    for path, summary in want.items():
        assert apply("summarize", TEXTS[:1], path, max_new_tokens=6)[0]["summary"] == summary.strip()
    got = apply("summarize", TEXTS[:1], llama, max_new_tokens=6, prompt="Sum up: {{ text }}")[0]
    assert got["summary"] == written(llama, chat, 6, special=False).strip()


def test_a_long_document_is_summarized_by_map_and_reduce(bart: str) -> None:
    """By hand: the windows' summaries, joined, are summarized again."""
    row, short = apply("summarize", [LONG, "short"], bart, max_new_tokens=8)
    assert row["n_windows"] > 2
    assert row["n_tokens"] == row["n_tokens_used"] == length(bart, LONG)
    assert row["n_new_tokens"] <= 8
    assert short["summary"] == written(bart, "short", 8).strip()
    tokenizer = loaded(bart)[0]
    spans = np.array(tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True).offset_mapping, np.int32)
    parts = [LONG[a:b] for a, b in windows(LONG, spans, tiny_writers.POSITIONS - 2)]
    joined = "\n".join(s for part in parts if (s := written(bart, part, 8).strip()))
    assert length(bart, joined) <= tiny_writers.POSITIONS - 2, "one more round is enough here"
    assert row["summary"] == written(bart, joined, 8).strip()


def test_rounds_are_bounded_and_what_is_left_out_is_told(bart: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchnlp.tasks.summarize.ROUNDS", 2)
    row = apply("summarize", [LONG], bart, max_new_tokens=40, min_new_tokens=40)[0]
    assert row["error"] is None
    assert row["truncated"]
    assert row["n_tokens_used"] < row["n_tokens"]
    cut = apply("summarize", [LONG], bart, max_new_tokens=8, on_long="truncate")[0]
    assert (cut["n_windows"], cut["truncated"]) == (1, True)
    assert apply("summarize", [LONG], bart, on_long="fail")[0]["error"].startswith("too_long")


# --- translate

PARAGRAPHS = "The game server.  A small tool!\n\n\tFast (and secure)?\r\n\r\nthe end\n"


@pytest.mark.parametrize("name", ["bart", "t5", "coded"])
def test_translate_goes_by_sentence_and_keeps_the_white_space(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    wish: dict[str, Any] = {"coded": {"source_language": "fra_Latn", "target_language": "deu_Latn"},
            "t5": {"source_language": "en", "target_language": "German"}}.get(name, {})  # fmt: skip
    row = apply("translate", [PARAGRAPHS], path, max_new_tokens=6, **wish)[0]
    parts = ["The game server.", "A small tool!", "Fast (and secure)?", "the end"]

    def one(part: str) -> str:
        if name != "coded":
            return written(path, ("translate English to German: " if name == "t5" else "") + part, 6).strip()
        tokenizer = loaded(path)[0]
        target = tokenizer.convert_tokens_to_ids("deu_Latn")
        return written(path, f"fra_Latn{part}</s>", 6, special=False, forced_bos_token_id=target).strip()

    want = PARAGRAPHS
    for part in parts:
        want = want.replace(part, one(part), 1)
    assert row["translation"] == want
    assert (row["n_windows"], row["truncated"]) == (4, False)
    assert row["n_tokens"] == sum(length(path, part) for part in parts)


def test_a_sentence_over_the_limit_is_cut_cut_off_or_fails(coded: str) -> None:
    long = "word " * 150 + "end. Short one."
    wish = {"source_language": "eng_Latn", "target_language": "deu_Latn", "max_new_tokens": 4}
    row = apply("translate", [long, "Short one."], coded, **wish)[0]
    assert (row["truncated"], row["error"]) == (False, None)
    assert row["n_windows"] > 3
    cut = apply("translate", [long], coded, on_long="truncate", **wish)[0]
    assert (cut["truncated"], cut["n_windows"]) == (True, 2)
    failed = apply("translate", [long, "Short one."], coded, on_long="fail", **wish)
    assert failed[0]["error"].startswith("too_long")
    assert failed[1]["translation"] is not None


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "task.source_language is needed: .* knows many languages"),
        ({"source_language": "eng_Latn"}, "task.target_language is needed"),
        ({"source_language": "eng_latn", "target_language": "deu_Latn"}, r"'eng_latn' \(did you mean eng_Latn\?\)"),
        ({"source_language": "eng_Latn", "target_language": "de"}, r"'de' \(did you mean deu_Latn\?\)"),
    ],
)
def test_language_codes_that_the_model_does_not_know(coded: str, wish: dict[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        apply("translate", ["x"], coded, **wish)


def test_languages_in_words_and_languages_that_mean_nothing(t5: str, bart: str) -> None:
    with pytest.raises(SpecError, match=r"task\.source_language is needed: the model is told of languages in words"):
        apply("translate", ["x"], t5)
    with pytest.raises(SpecError, match=r"'germn' is no language known here \(did you mean german\?\)"):
        apply("translate", ["x"], t5, source_language="en", target_language="germn")
    with pytest.raises(SpecError, match=r"task\.target_language means nothing to "):
        apply("translate", ["x"], bart, target_language="de")


# --- JSON


def test_a_schema_holds_the_answers_of_a_random_model(llama: str) -> None:
    properties = {"city": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["city", "ok"], "additionalProperties": False}
    for row in apply("chat", TEXTS, llama, max_new_tokens=48, json_schema=schema):
        assert json.loads(row["reply"]) == {"city": row["city"], "ok": row["ok"]}, row["error"]
        assert row["finish_reason"] == "stop"


def test_json_answers_become_columns(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model writes no JSON, so here the tokenizer is made to say some."""
    from batchnlp.text.encode import Tokenizer

    answers = ['{"city":"x","n":3}', '{"city":"y"}', "no", '{"city":1}']
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, starts: answers)
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["city"],
    }
    rows = apply("chat", TEXTS, llama, max_new_tokens=4, json_schema=schema)
    assert [(row["reply"], row["city"], row["n"]) for row in rows[:2]] == [
        (answers[0], "x", 3),
        (answers[1], "y", None),
    ]
    assert [row["error"].split(":")[0] for row in rows[2:]] == ["bad_json"] * 2


def test_a_schema_may_be_a_file_and_its_content_is_what_counts(tmp_path: Path, corpus: Corpus, llama: str) -> None:
    file, source = tmp_path / "schema.json", corpus()
    prints = []
    for kind in ("string", "integer"):
        file.write_text(json.dumps({"type": "object", "properties": {"a": {"type": kind}}}))
        prepared = prepare(spec(source, llama, tmp_path, kind="chat", json_schema=str(file)))
        prints.append(prepared.fingerprint)
        assert prepared.schema.field("a").type == {"string": pa.string(), "integer": pa.int64()}[kind]
        assert prepared.task.decoding is not None
        assert json.loads(prepared.task.decoding.json_schema or "")["properties"] == {"a": {"type": kind}}
    assert prints[0] != prints[1]
    with pytest.raises(SpecError, match=r"task\.json_schema: .* cannot be read as JSON"):
        spec(source, llama, tmp_path, kind="chat", json_schema=str(tmp_path / "none.json"))


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


# --- a whole run, and the jobs


def test_a_run_gives_what_apply_gives_whatever_the_shards(corpus: Corpus, bart: str, tmp_path: Path) -> None:
    texts = [*tiny.texts(11), None]
    texts[0], texts[4] = LONG, f"{LONG} And more."  # in one shard, and in two: the second round is seeded by row too
    texts.insert(1, "small")
    job = spec(corpus(texts), bart, tmp_path, kind="summarize", max_new_tokens=8, sample=True)
    tree = job.model_dump()
    tree["source"] |= {"rows_per_shard": 3, "id": "doc_id"}
    tree["limits"]["max_failed"] = 1
    result = batchnlp.run(tree)
    assert (result.rows, result.dead, result.status) == (13, 1, "done")
    parts = {p.name: pq.read_table(p) for p in (tmp_path / "out").glob("part-*.parquet")}
    got = {row["id"]: row for part in parts.values() for row in part.to_pylist()}
    tree["source"]["rows_per_shard"] = None
    tree["output"]["path"] = str(tmp_path / "again")
    batchnlp.run(tree)
    again = [row for p in (tmp_path / "again").glob("part-*.parquet") for row in pq.read_table(p).to_pylist()]
    assert {row["id"]: row for row in again} == got
    assert got["doc-000"]["n_windows"] > 2


JOBS = Path(__file__).parents[1] / "jobs"
STAND_INS = {
    "summarize": "bart",
    "translate": "marian",
    "stories": "gpt2",
    "chat": "qwen",
    "sentiment": "sentiment",
    "spam": "spam",
    "entities": "ner",
    "answers": "qa",
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make models` builds."""
    import importlib.util

    found = importlib.util.spec_from_file_location("jobs_models", JOBS / "models.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    target = tmp_path_factory.mktemp("stand-ins")
    module.main(str(target))
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
        if name in ("sentiment", "spam", "entities", "answers")
        else ["task.max_new_tokens=3", "source.filter=[[title, in, [GIL, BDFL, EAFP]]]"]
    )
    settings = [part for key in more + short for part in ("--set", key)]
    result = CliRunner().invoke(main, ["run", str(JOBS / f"{name}.yaml"), *settings])
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "out").glob("part-*.parquet"))
