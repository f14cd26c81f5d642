"""Tasks that a server does: against a real one on loopback, well behaved and not."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from api_server import MODEL, Act, ApiServer, Body, completion, refuse, reverse, text_of
from commands import Corpus, invoke, rows_of

import batchnlp
from batchnlp.backends import openai_client
from batchnlp.backends.openai_api import reason, retry_after
from batchnlp.data.verify import verify
from batchnlp.errors import BatchnlpError, ModelError, OutputError, SpecError, StoppedError

TEXTS = ["one two three", "the game server", "three", "Ünïcödé näive text"]
KEY = "sk-planted-4711-never-to-be-seen"
Start = Callable[..., ApiServer]


@pytest.fixture
def serve() -> Iterator[Start]:
    """Starts servers, and ends them."""
    servers: list[ApiServer] = []

    def start(act: Callable[[Body, int], Act | None] = lambda body, nth: None) -> ApiServer:
        servers.append(ApiServer(act))
        return servers[-1].__enter__()

    yield start
    for server in servers:
        server.__exit__(None, None, None)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that tests can wait for."""
    monkeypatch.setattr(openai_client, "PAUSE", 0.001)
    monkeypatch.setattr(openai_client, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(openai_client, "PATIENCE", 20.0)
    monkeypatch.setattr(openai_client, "ASK_AGAIN", (0.001, 0.001))


def apply(kind: str, data: Any, server: ApiServer, **task: Any) -> list[dict[str, Any]]:
    engine = {"backend": "http", "url": server.url}
    return batchnlp.apply(kind, data, model=MODEL, engine=engine, **task).to_pylist()  # type: ignore[no-any-return]


def job(source: Path, out: Path, server: ApiServer, runner: str = "inline", **task: Any) -> dict[str, Any]:
    """A chat in shards of five rows."""
    return {
        "source": {"path": str(source), "id": "doc_id", "rows_per_shard": 5},
        "task": {"kind": "chat", "model": MODEL, **task},
        "engine": {"runner": runner, "backend": "http", "url": server.url},
        "output": {"path": str(out)}, "limits": {"max_failed": "100%"},
    }  # fmt: skip


def assert_whole(out: Path, texts: list[str]) -> None:
    """Every row once, in order, with its own answer."""
    assert verify(str(out)).problems == []
    rows = rows_of(out)
    assert [(row["id"], row["reply"]) for row in rows] == [(f"doc-{i:03}", reverse(t)) for i, t in enumerate(texts)]


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


# --- what goes wrong, and passes


def broken() -> dict[str, Act]:
    whole = {"choices": [{"message": {"content": "x"}}]}
    return {
        "busy": refuse(429, "slow down", retry_after=0), "busy for a while": refuse(429, retry_after=0.05),
        "unavailable": refuse(503), "error": refuse(500, "oops"), "overloaded": Act(529, None, raw=b"<html>"),
        "timeout": refuse(408), "gateway": Act(502, None, raw=b"\xff<html>bad gateway"), "dropped": Act(drop=True),
        "cut": Act(200, whole, cut=True), "no JSON": Act(200, raw=b"{\"choices\": [{"), "no completion": Act(200, [1, 2]),
        "no choices": Act(200, {"choices": "none"}), "error inside": Act(200, {"error": {"code": 502, "message": "x"}}),
    }  # fmt: skip


@pytest.mark.parametrize("name", broken())
def test_what_passes_is_asked_again(name: str, serve: Start) -> None:
    fault, texts = broken()[name], tiny.texts(30)
    bad = set(random.Random(3).sample(texts, 10))
    server = serve(lambda body, nth: fault if text_of(body) in bad and nth <= 2 else None)
    rows = apply("chat", texts, server)
    assert [(row["reply"], row["error"]) for row in rows] == [(reverse(text), None) for text in texts]
    assert len(server.asked) == 30 + 2 * 10


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_every_row_is_there_once(seed: int, corpus: Corpus, tmp_path: Path, serve: Start) -> None:
    faults, texts, dice = list(broken().values()), tiny.texts(60), random.Random(seed)
    hopeless = {text: refuse(400, "no") for text in dice.sample(texts, 6)}
    plan = {(text, nth): dice.choice(faults) for text in texts for nth in (1, 2, 3) if dice.random() < 0.4}
    server = serve(lambda body, nth: plan.get((text_of(body), nth)) or hopeless.get(text_of(body)))
    result = batchnlp.run(job(corpus(texts), out := tmp_path / "out", server))
    assert (result.rows, result.dead, result.codes) == (60, 6, {"refused": 6})
    assert verify(str(out)).problems == []
    good = [(f"doc-{i:03}", reverse(text)) for i, text in enumerate(texts) if text not in hopeless]
    assert [(row["id"], row["reply"]) for row in rows_of(out)] == good


def test_a_server_that_never_answers_one_request_costs_that_row_alone(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_client, "ANSWER", 0.3)
    released = threading.Event()
    server = serve(lambda body, nth: released.wait(30) and None if text_of(body) == "three" else None)
    try:
        rows = apply("chat", TEXTS, server)
    finally:
        released.set()
    assert [row["reply"] for row in rows] == [reverse(TEXTS[0]), reverse(TEXTS[1]), None, reverse(TEXTS[3])]
    assert rows[2]["error"].startswith("server_error: no answer, while others get one: no answer within")
    assert server.texts().count("three") == 2, "a hang is not waited for six times"


# --- what goes wrong for good


REFUSALS = {
    "refused": refuse(400, "temperature must be at most 1", code="bad_temperature"),
    "too_long": refuse(400, "This model's maximum context length is 8 tokens.", code="context_length_exceeded"),
    "content_filter": refuse(400, "The response was filtered", code="content_filter"),
    "server_error": refuse(500, "poison"),
    "refusal": Act(200, {"choices": [{"message": {"content": None, "refusal": "I will not"}}]}),
    "too_long ": refuse(429, "Request too large for org/tiny: Limit 9, Requested 12"),
    "bad_answer": Act(200, {"choices": []}),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_final_error_is_the_dead_letter_of_its_row(code: str, corpus: Corpus, tmp_path: Path, serve: Start) -> None:
    texts = tiny.texts(25)
    server, act = serve(), REFUSALS[code]
    code = code.strip()
    server.act = lambda body, nth: act if text_of(body) == texts[7] else None
    result = batchnlp.run(job(corpus(), out := tmp_path / "out", server))
    assert (result.rows, result.dead, result.codes) == (25, 1, {code: 1})
    dead = pa.concat_tables(pq.read_table(p) for p in out.glob("_batchnlp/*/dead/*.parquet")).to_pylist()
    assert [(row["id"], row["stage"], row["code"]) for row in dead] == [("doc-007", "forward", code)]
    tries = 6 if code == "server_error" else 1
    assert dead[0]["attempts"] == tries
    assert server.texts().count(texts[7]) == tries
    said = {
        "refused": "400 bad_temperature temperature must be at most 1",
        "too_long": "400 context_length_exceeded This model's maximum context length is 8 tokens.",
        "server_error": "500 poison",
    }
    if "429" not in dead[0]["message"]:
        assert dead[0]["message"].endswith(said.get(code, ""))


def test_a_finish_by_the_content_filter_is_no_answer(serve: Start) -> None:
    answer = {"message": {"content": "I was going to"}, "finish_reason": "content_filter"}
    server = serve(lambda body, nth: Act(200, {"choices": [answer]}) if "game" in text_of(body) else None)
    assert [row["error"] and row["error"].split(":")[0] for row in apply("chat", TEXTS, server)] == [
        None, "content_filter", None, None,
    ]  # fmt: skip


def test_a_reason_shows_nothing_of_the_document() -> None:
    asked = "Dear Mr Horrible,\nyour invoice 4711 über zwölf is due. Please pay."
    for message in (
        f"invalid input: {asked}", f'invalid input "{asked}"', f"[{{'input': {asked!r}}}]", asked.upper(),
        f"invalid input {json.dumps(asked)}", "invalid: INVOICE 4711", "invalid input horrible", "invalid input 4711",
        "invalid \\u00fcber", "invalid: über",
    ):  # fmt: skip
        shown = reason(message, asked)
        assert shown in ("", "invalid", "invalid input"), message
    assert reason("at most 5 stop strings", asked) == "at most 5 stop strings"
    assert reason(f"wrong key {KEY}", asked, KEY) == ""


def test_where_every_request_is_refused_it_is_the_job(corpus: Corpus, tmp_path: Path, serve: Start) -> None:
    server = serve(lambda body, nth: refuse(400, "stop takes at most 4 strings"))
    with pytest.raises(ModelError, match="answers no request: the server refuses it: 400 stop takes at most 4 strings"):
        batchnlp.run(job(corpus(tiny.texts(200)), tmp_path / "out", server))
    assert len(server.asked) <= 40, "it is not paid for two hundred times"


def test_an_api_without_completions_is_told_at_the_first_request(serve: Start) -> None:
    server = serve(lambda body, nth: refuse(404, "Not Found") if "prompt" in body else None)
    with pytest.raises(ModelError, match=r"answers 404 .*task\.kind=chat"):
        apply("generate", TEXTS, server)


# --- outages


@pytest.mark.parametrize("fault", [refuse(503), refuse(429, retry_after=0), Act(drop=True), refuse(500)], ids=str)
def test_an_outage_that_lasts_stops_the_run_and_the_same_command_goes_on(
    fault: Act, corpus: Corpus, tmp_path: Path, serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row dies of it, though each is tried far more often than a row that is bad."""
    monkeypatch.setattr(openai_client, "PATIENCE", 0.5)
    texts, down = tiny.texts(40), threading.Event()

    def act(body: Body, nth: int) -> Act | None:
        if len(server.asked) > 25:
            down.set()
        return fault if down.is_set() else None

    server = serve(act)
    spec = job(corpus(texts), out := tmp_path / "out", server)
    with pytest.raises(StoppedError, match="has answered nothing for") as error:
        batchnlp.run(spec)
    assert error.value.exit_code == 3
    done = list(out.glob("_batchnlp/*/commits/*.json"))
    before = len(server.asked)
    server.act = lambda body, nth: None
    result = batchnlp.run(spec)
    assert (result.status, result.rows, result.dead, result.resumed) == ("done", 40, 0, len(done))
    assert len(server.asked) - before == 40 - 5 * len(done), "what is committed is not asked again"
    assert_whole(out, texts)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (refuse(401, "revoked"), "does not take the key"), (refuse(404, "gone"), "answers 404"),
        (refuse(402), "no credit"), (refuse(429, "pay", code="insufficient_quota"), "no credit"),
        (refuse(429, retry_after=86_400), "asks to be left alone for 86,400 s"), (Act(307), "elsewhere"),
    ],
)  # fmt: skip
def test_what_no_request_survives_stops_the_run_at_once(fault: Act, what: str, serve: Start) -> None:
    texts = tiny.texts(100)
    server = serve(lambda body, nth: fault if len(server.asked) > 40 else None)
    with pytest.raises(StoppedError, match=what):
        apply("chat", texts, server)
    assert len(server.asked) < 100


def test_a_signal_ends_a_run_whose_server_hangs(corpus: Corpus, tmp_path: Path, serve: Start) -> None:
    released, asked = threading.Event(), threading.Event()
    server = serve(lambda body, nth: (asked.set(), released.wait(60), None)[-1])
    spec = job(corpus(), tmp_path / "out", server) | {"limits": {"grace_seconds": 0}}
    process = start(tmp_path, spec)
    try:
        assert asked.wait(60)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    finally:
        released.set()
    assert process.returncode == 143, stderr


def start(tmp_path: Path, spec: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    """The job in a process of its own."""
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "batchnlp", "run", str(file), "--json"]
    environ = os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


# --- before anything starts


def closed() -> str:
    """A base where nothing listens."""
    with ApiServer() as server:
        return server.url


PREFLIGHT: dict[str, tuple[Callable[[ApiServer], Any], str]] = {
    "nobody listens": (lambda s: {"url": closed()}, r"no server at http.*start it, or check engine\.url"),
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
