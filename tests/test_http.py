"""Tasks that a server does: against a real one on loopback, well behaved and not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from api_server import (
    KEY,
    MODEL,
    TEXTS,
    Act,
    ApiServer,
    Body,
    Start,
    apply,
    assert_whole,
    completion,
    job,
    refuse,
    reverse,
    start,
    text_of,
)
from commands import Corpus, invoke, rows_of

import batchnlp
from batchnlp.backends.openai_api import retry_after
from batchnlp.data.verify import verify
from batchnlp.errors import BatchnlpError, OutputError, SpecError, StoppedError

# --- what is asked, and what comes back


def test_each_task_asks_in_its_own_words(serve: Start) -> None:
    server = serve()
    assert [row["text"] for row in apply("generate", TEXTS, server)] == list(map(reverse, TEXTS))
    assert server.paths == {"/v1/completions": 4}
    chat = apply("chat", TEXTS, server, system="Be short.", prompt="Q: {{ text }}")
    assert [row["reply"] for row in chat] == [reverse(f"Q: {text}") for text in TEXTS]
    system, user = server.asked[4]["messages"]
    assert system == {"role": "system", "content": "Be short."}
    assert user["role"] == "user"
    assert apply("summarize", TEXTS[:1], server)[0]["summary"].startswith("three two one sentences. few")
    row = apply("translate", TEXTS[:1], server, source_language="en", target_language="German")[0]
    assert row["translation"].split()[:3] == ["three", "two", "one"]
    assert text_of(server.asked[-1]).startswith("Translate the following text from English into German.")
    assert server.paths == {"/v1/completions": 4, "/v1/chat/completions": 6}


def test_counts_are_the_servers_and_null_where_it_does_not_count(serve: Start) -> None:
    server = serve(lambda body, nth: Act(200, completion(body) | {"usage": None}) if "game" in text_of(body) else None)
    table = batchnlp.apply(
        "chat", TEXTS, model=MODEL, engine={"backend": "http", "url": server.url}, max_new_tokens=2, logprobs=True
    )
    assert table["n_tokens"].to_pylist() == [3, None, 1, 3]
    assert table["n_tokens_used"].to_pylist() == [3, None, 1, 3]
    assert table["n_new_tokens"].to_pylist() == [2, 2, 1, 2], "log-probabilities count too"
    assert table["finish_reason"].to_pylist() == ["length", "length", "stop", "length"]
    assert table["logprobs"].to_pylist()[0] == [-0.5, -1.0]
    assert table["truncated"].to_pylist() == [False] * 4
    assert table.schema.field("n_new_tokens").type == pa.int32()
    plain = apply("generate", TEXTS, server, logprobs=True, max_new_tokens=2)
    assert [row["logprobs"] for row in plain[:3]] == [[-0.5, -1.0], [-0.5, -1.0], [-0.5]]


def test_conversations_and_rows_without_one(serve: Start) -> None:
    turns = [
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes?"},
            {"role": "user", "content": "a b"},
        ],
        [{"role": "system", "content": "mine"}, {"role": "user", "content": "c d"}],
        [{"role": "assistant", "content": "hi"}],
        None,
    ]
    server = serve()
    rows = apply("chat", turns, server, system="task's")
    assert [row["reply"] for row in rows] == ["b a", "d c", None, None]
    assert [row["error"] and row["error"].split(":")[0] for row in rows] == [None, None, "no_user_turn", "null_text"]
    contents = sorted([turn["content"] for turn in body["messages"]] for body in server.asked)
    assert contents == [["mine", "c d"], ["task's", "hi", "yes?", "a b"]]
    rows = apply(
        "chat", ["one", "two", None, " "], server, prompt="{% if text == 'two' %}{{ text.none.at }}{% endif %}"
    )
    codes = ["template_error", "template_error", "null_text", "blank_text"]
    assert [row["error"].split(":")[0] for row in rows] == codes


def test_what_the_job_says_is_passed_on_and_nothing_else(serve: Start) -> None:
    server = serve()
    apply("chat", TEXTS[:1], server, max_new_tokens=7, stop=["END"])
    apply("generate", TEXTS[:1], server)
    wish = {"sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 5, "n": 3}
    rows = apply("chat", TEXTS[:2], server, **wish)
    said = [{"role": "user", "content": TEXTS[0]}]
    assert server.asked[0] == {"model": MODEL, "messages": said, "max_tokens": 7, "temperature": 0, "stop": ["END"]}
    assert server.asked[1] == {"model": MODEL, "prompt": TEXTS[0], "max_tokens": 256, "temperature": 0}
    seeds = {text_of(body): body.pop("seed") for body in server.asked[2:]}
    assert len(set(seeds.values())) == 2, "a seed a row"
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    sampled = next(body for body in server.asked[2:] if text_of(body) == TEXTS[0])
    assert sampled == {
        "model": MODEL, "messages": said, "max_tokens": 256, "temperature": 0.7, "top_p": 0.9, "n": 3,
    }  # fmt: skip
    answers = rows[0]["answers"]
    assert [answer["text"] for answer in answers] == [f"{reverse(TEXTS[0])} {seeds[TEXTS[0]]}.{k}" for k in range(3)]
    assert [answer["n_new_tokens"] for answer in answers] == [None] * 3, "the server tells only their sum"
    rows = apply("chat", TEXTS[:1], server, **wish, logprobs=True)
    assert [answer["n_new_tokens"] for answer in rows[0]["answers"]] == [4] * 3
    again = apply("chat", TEXTS[:1], server, **wish)
    assert again[0]["answers"] == answers, "the same row has the same seed"


def test_json_answers_are_asked_for_and_become_columns(serve: Start) -> None:
    answer = {"text": '{"topic": "games"}', "finish_reason": "stop"}
    server = serve(lambda body, nth: Act(200, {"choices": [answer]}) if "game" in text_of(body) else None)
    schema = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
    rows = apply("generate", pa.table({"body": TEXTS[:2]}), server, text_column="body", json_schema=schema)
    assert rows[1]["topic"] == "games"
    assert rows[0]["error"].startswith("bad_json: ")
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    assert [body["response_format"] for body in server.asked] == [wanted] * 2


def test_the_same_request_is_sent_once_unless_its_answer_is_drawn(serve: Start) -> None:
    server, texts = serve(), ["same old text", "another", "same old text", "same old text"]
    rows = apply("chat", texts, server)
    assert [row["reply"] for row in rows] == list(map(reverse, texts))
    assert [row["n_tokens"] for row in rows] == [3, 1, 3, 3]
    assert sorted(server.texts()) == ["another", "same old text"]
    apply("chat", texts, server, sample=True)
    assert len(server.asked) == 2 + 4


def test_a_server_that_knows_only_the_new_name_for_the_length_is_told_it(serve: Start) -> None:
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    server = serve(
        lambda body, nth: refuse(400, message, param="max_tokens", code="unsupported") if "max_tokens" in body else None
    )
    assert [row["reply"] for row in apply("chat", TEXTS, server)] == list(map(reverse, TEXTS))
    assert "max_completion_tokens" in server.asked[-1]


def test_what_cannot_be_written_is_replaced(serve: Start) -> None:
    answer = {"message": {"content": "half \ud83d pair, whole \U0001f600"}, "finish_reason": "stop"}
    server = serve(lambda body, nth: Act(200, {"choices": [answer]}))
    assert apply("chat", TEXTS[:1], server)[0]["reply"] == "half \ufffd pair, whole \U0001f600"


# --- many at once


def test_requests_are_under_way_together_and_not_too_many(serve: Start) -> None:
    together = threading.Barrier(12, timeout=30)
    server = serve(lambda body, nth: together.wait() and None)
    texts = tiny.texts(24)
    assert [row["reply"] for row in apply("chat", texts, server)] == list(map(reverse, texts))
    assert 12 <= server.most <= 16


def test_requests_flow_on_over_the_borders_of_shards(corpus: Corpus, tmp_path: Path, serve: Start) -> None:
    """The first document is answered only when one of the last shard has been asked about."""
    texts = tiny.texts(25)
    reached = threading.Event()

    def act(body: Body, nth: int) -> Act | None:
        if text_of(body) == texts[24]:
            reached.set()
        elif text_of(body) == texts[0] and not reached.wait(30):
            return refuse(400, "the next shards were not begun")
        return None

    result = batchnlp.run(job(corpus(), out := tmp_path / "out", serve(act)))
    assert (result.status, result.rows, result.dead, result.shards) == ("done", 25, 0, 5)
    assert_whole(out, texts)


# --- before anything starts


def closed() -> str:
    """A base where nothing listens."""
    with ApiServer() as server:
        return server.url


PREFLIGHT: dict[str, tuple[Callable[[ApiServer], Any], str]] = {
    "nobody listens": (lambda s: {"url": closed()}, r"no server at http.*start it, or check engine\.url"),
    "no address": (lambda s: {"url": "http://127.0.0.1:port/v1"}, r"is no address"),
    "no such model": (lambda s: {"model": "org/tny"}, r"has no model org/tny \(did you mean org/tiny\?\)"),
    "not the base": (lambda s: {"url": s.url.removesuffix("/v1")}, r"did you mean engine\.url=http.*/v1\?"),
    "no key": (lambda s: setattr(s, "key", KEY), r"answers 401.*name the variable .* in engine\.api_key_env"),
    "wrong key": (
        lambda s: (setattr(s, "key", KEY), {"api_key_env": "A_KEY"})[-1], r"answers 401.*check the key in A_KEY",
    ),
    "no such variable": (lambda s: {"api_key_env": "NO_KEY"}, "the environment variable NO_KEY is not set"),
    "a key with a line break": (lambda s: {"api_key_env": "ODD_KEY"}, "what ODD_KEY holds is no API key"),
    "no list": (lambda s: setattr(s, "models", ["tiny"]), "lists no models, as an OpenAI-compatible server does"),
    "no JSON": (lambda s: setattr(s, "listing", Act(raw=b"<html>")), "lists no models"),
    "no model at all": (lambda s: setattr(s, "models", {"data": []}), "there are: none"),
    "down": (lambda s: setattr(s, "listing", refuse(503, "loading")), "does not list its models: 503 loading"),
    "drops": (lambda s: setattr(s, "listing", Act(drop=True)), r"does not list its models: breaks the connection"),
    "elsewhere": (lambda s: setattr(s, "listing", Act(307)), r"it is elsewhere \(write its final address"),
}  # fmt: skip


@pytest.mark.parametrize("case", PREFLIGHT)
def test_a_server_that_cannot_do_it_is_refused_in_one_line(
    case: str, corpus: Corpus, tmp_path: Path, serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "sk-another-one")
    monkeypatch.setenv("ODD_KEY", "sk-of\ntwo-lines")
    server, out = serve(), tmp_path / "out"
    change, message = PREFLIGHT[case]
    more = change(server) or {}
    sets = {"runner": "inline", "backend": "http", "url": server.url} | {k: v for k, v in more.items() if k != "model"}
    flags = [word for key, value in sets.items() for word in ("--set", f"engine.{key}={value}")]
    result = invoke("chat", corpus(), "-o", out, "--model", more.get("model", MODEL), *flags)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr
    assert "sk-" not in result.stderr
    assert not out.exists()
    assert not server.asked


def test_a_server_that_is_slow_to_start_is_asked_again(serve: Start) -> None:
    server = serve()
    server.listing = refuse(503)
    answers = iter([server.listing, None])
    server.listed = lambda: next(answers) or Act(200, server.models)  # type: ignore[method-assign]
    assert apply("chat", TEXTS[:1], server)[0]["reply"] == reverse(TEXTS[0])


SPECS: list[tuple[dict[str, Any], str]] = [
    ({"engine.url": None}, r"engine\.url is needed for engine\.backend=http"),
    ({"engine.url": "localhost:8000/v1"}, r"engine\.url is no http:// or https:// address"),
    ({"engine.url": f"http://me:{KEY}@host/v1"}, r"engine\.url is a plain base.*engine\.api_key_env"),
    ({"engine.url": f"http://host/v1?key={KEY}"}, r"engine\.url is a plain base"),
    ({"engine.api_key_env": KEY}, r"engine\.api_key_env names an environment variable"),
    ({"engine.backend": "torch"}, r"engine\.url belongs to engine\.backend=http; leave it out"),
    ({"engine.dtype": "float32"}, r"engine\.dtype means nothing to a server"),
    ({"engine.device": "cpu"}, r"engine\.device means nothing to a server"),
    ({"task.kind": "embed"}, r"the backend http cannot do embed \(it does summarize, translate, generate, chat\)"),
    ({"task.num_beams": 4}, r"task\.num_beams means nothing to a server"),
    ({"task.min_new_tokens": 4}, r"task\.min_new_tokens means nothing to a server"),
    ({"task.sample": True, "task.top_k": 4}, r"task\.top_k means nothing to a server"),
    ({"task.on_long": "truncate"}, r"task\.on_long cannot be kept: a server counts tokens by itself"),
    ({"task.max_length": 100}, r"task\.max_length cannot be kept"),
    ({"task.revision": "main"}, r"task\.revision means nothing to a server"),
]


@pytest.mark.parametrize(("change", "message"), SPECS, ids=[message for _, message in SPECS])
def test_a_job_that_no_server_can_do_is_refused(
    change: dict[str, Any], message: str, corpus: Corpus, tmp_path: Path, serve: Start
) -> None:
    spec = job(corpus(), tmp_path / "out", serve())
    for key, value in change.items():
        section, _, name = key.partition(".")
        spec[section][name] = value
    with pytest.raises(SpecError, match=message) as error:
        batchnlp.run(spec)
    assert KEY not in str(error.value)


def test_translate_needs_to_know_into_what(serve: Start) -> None:
    with pytest.raises(SpecError, match=r"task\.target_language is needed"):
        apply("translate", TEXTS, serve())


def test_url_and_model_are_what_a_run_goes_by(corpus: Corpus, tmp_path: Path, serve: Start) -> None:
    one, two = serve(), serve()
    batchnlp.run(job(source := corpus(), out := tmp_path / "out", one))
    assert batchnlp.run(job(source, out, one)).message == "all is done already"
    with pytest.raises(OutputError, match=r"this one differs in recipe\.weights"):
        batchnlp.run(job(source, out, two))


def test_the_plan_tells_what_is_known_and_asks_nothing(corpus: Corpus, tmp_path: Path, serve: Start) -> None:
    server = serve()
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job(corpus([*tiny.texts(9), None]), tmp_path / "out", server)))
    result = invoke("plan", file)
    assert result.exit_code == 0, result.output
    assert "10 rows, 2 shards" in result.stdout
    assert "null_text 1" in result.stdout
    assert "padding" not in result.stdout
    assert "tokens" not in result.stdout
    probed = invoke("plan", file, "--probe")
    assert (probed.exit_code, probed.stderr.count("\n")) == (2, 1)
    assert "a server is not probed" in probed.stderr
    assert not server.asked


def test_shards_are_small_because_what_is_lost_was_paid_for(tmp_path: Path, serve: Start) -> None:
    pq.write_table(pa.table({"text": ["a b"] * 2600}), tmp_path / "docs.parquet")
    server = serve()
    spec = job(tmp_path / "docs.parquet", tmp_path / "out", server)
    spec["source"] = {"path": str(tmp_path / "docs.parquet")}
    result = batchnlp.run(spec)
    assert (result.rows, result.shards) == (2600, 6)
    assert len(server.asked) == 6, "the same request once a shard"


# --- secrets, Ray, weight


@pytest.mark.parametrize("runner", ["inline", "ray"])
def test_the_key_is_nowhere_to_be_found(runner: str, corpus: Corpus, tmp_path: Path, serve: Start) -> None:
    """On Ray too, where replicas read it from their own environment; the server quotes it wherever it can."""
    texts = tiny.texts(25)
    echo = f"bad request by {KEY} for input"
    server = serve(lambda body, nth: refuse(400, echo, code=KEY) if text_of(body) in texts[3:5] else None)
    server.key = KEY
    spec = job(corpus(), out := tmp_path / "out", server, runner)
    spec["engine"] |= {"api_key_env": "PLANTED_KEY", "replicas": 2}
    process = start(tmp_path, spec, PLANTED_KEY=KEY)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    last = json.loads(stdout.splitlines()[-1])
    assert (last["status"], last["rows"], last["dead"], last["codes"]) == ("done", 25, 2, {"refused": 2})
    assert verify(str(out)).problems == []
    files = [path for path in out.rglob("*") if path.is_file()]
    assert any(path.name == "plan.json" and b"PLANTED_KEY" in path.read_bytes() for path in files)
    for name, content in {"stdout": stdout.encode(), "stderr": stderr.encode()}.items():
        assert KEY.encode() not in content, name
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    for path in (path for path in files if path.suffix == ".parquet"):
        assert KEY not in str(pq.read_table(path).to_pylist()), "compressed or not"
    good = [(f"doc-{i:03}", reverse(text)) for i, text in enumerate(texts) if i not in (3, 4)]
    assert [(row["id"], row["reply"]) for row in rows_of(out)] == good


def test_a_stop_reaches_the_driver_from_ray(corpus: Corpus, tmp_path: Path, serve: Start) -> None:
    server = serve(lambda body, nth: refuse(401) if len(server.asked) > 5 else None)
    process = start(tmp_path, job(corpus(), tmp_path / "out", server, "ray"))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr
    assert stderr.splitlines()[-1].startswith(f"batchnlp: {server.url} answers 401")


def test_errors_travel_and_the_backend_needs_no_torch() -> None:
    code = (
        "import sys, batchnlp.backends.http, batchnlp.tasks.served, batchnlp.data.sources;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert issubclass(StoppedError, BatchnlpError)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("", 0), ("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_how_long_a_server_asks_to_be_left_alone(value: str, seconds: float) -> None:
    assert retry_after({"retry-after": value}) == seconds
