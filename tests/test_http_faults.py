"""A server that misbehaves: what passes, what costs one row, and what ends the run."""

from __future__ import annotations

import json
import random
import signal
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from api_server import (
    KEY,
    TEXTS,
    Act,
    Body,
    Start,
    apply,
    assert_whole,
    job,
    refuse,
    reverse,
    start,
    text_of,
)
from commands import Corpus, rows_of

import batchnlp
from batchnlp.backends import openai_client
from batchnlp.backends.openai_api import reason
from batchnlp.data.verify import verify
from batchnlp.errors import ModelError, StoppedError

# --- what goes wrong, and passes


def broken() -> dict[str, Act]:
    whole = {"choices": [{"message": {"content": "x"}}]}
    return {
        "busy": refuse(429, "slow down", retry_after=0), "busy for a while": refuse(429, retry_after=0.05),
        "unavailable": refuse(503), "error": refuse(500, "oops"), "overloaded": Act(529, None, raw=b"<html>"),
        "timeout": refuse(408), "gateway": Act(502, None, raw=b"\xff<html>bad gateway"), "dropped": Act(drop=True),
        "cut": Act(200, whole, cut=True), "no gzip": Act(200, whole, {"Content-Encoding": "gzip"}),
        "no JSON": Act(200, raw=b"{\"choices\": [{"), "no completion": Act(200, [1, 2]),
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
