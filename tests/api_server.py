"""An OpenAI-compatible server on loopback whose answers are the prompt's words in reverse, and which misbehaves as told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from commands import rows_of

import batchnlp
from batchnlp.data.verify import verify

MODEL = "org/tiny"
Body = dict[str, Any]
TEXTS = ["one two three", "the game server", "three", "Ünïcödé näive text"]
KEY = "sk-planted-4711-never-to-be-seen"


@dataclass(frozen=True, slots=True)
class Act:
    """What the server does instead of answering."""

    status: int = 200
    tree: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  # this instead of JSON
    drop: bool = False  # the connection, before anything is said
    cut: bool = False  # the connection, in the middle of the answer


def refuse(status: int, message: str = "", **more: Any) -> Act:
    """An error as OpenAI words it; `retry_after` becomes a header."""
    headers = {"Retry-After": str(more.pop("retry_after"))} if "retry_after" in more else {}
    return Act(status, {"error": {"message": message, "type": None, "param": None, "code": None, **more}}, headers)


def text_of(body: Body) -> str:
    """The prompt, or what the user said last."""
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])


def reverse(text: str, most: int = 1 << 20) -> str:
    """What the server answers."""
    return " ".join(text.split()[::-1][:most])


def completion(body: Body) -> Body:
    """A whole answer: a token is a word."""
    most = body.get("max_tokens") or body["max_completion_tokens"]
    chat, text = "messages" in body, reverse(text_of(body), most)
    texts = [f"{text} {body.get('seed')}.{k}" if body.get("temperature", 1) else text for k in range(body.get("n", 1))]
    words = len(text_of(body).split())
    choices = []
    for k, each in enumerate(texts):
        probabilities = [-0.5 * (i + 1) for i in range(len(each.split()))]
        choice: Body = {"index": k, "finish_reason": "length" if words > most else "stop"}
        choice |= {"message": {"role": "assistant", "content": each}} if chat else {"text": each}
        if body.get("logprobs") and chat:
            choice["logprobs"] = {"content": [{"token": "t", "logprob": p} for p in probabilities]}
        elif body.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": probabilities}
        choices.append(choice)
    usage = {"prompt_tokens": words, "completion_tokens": sum(len(each.split()) for each in texts)}
    return {"object": "chat.completion" if chat else "text_completion", "choices": choices[::-1], "usage": usage}


class ApiServer(ThreadingHTTPServer):
    """`act(body, nth)` says what to do with a request whose text comes for the nth time; None is to answer."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, act: Callable[[Body, int], Act | None] = lambda body, nth: None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.act = act
        self.key = ""
        self.models: Any = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self.listing: Act | None = None  # instead of the models
        self.asked: list[Body] = []
        self.paths: Counter[str] = Counter()
        self.most = 0  # requests at the same time
        self._now = 0
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        """The base."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are no news."""

    def texts(self) -> list[str]:
        """What was asked, in order."""
        return [text_of(body) for body in self.asked]

    def listed(self) -> Act:
        """The answer to GET /models."""
        return self.listing or Act(200, self.models)

    def answer(self, body: Body) -> Act:
        """The answer to a request, counted."""
        with self._lock:
            self.asked.append(body)
            self._times[text_of(body)] += 1
            nth = self._times[text_of(body)]
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self.act(body, nth) or Act(200, completion(body))
        finally:
            with self._lock:
                self._now -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ApiServer

    def log_message(self, format: str, *args: Any) -> None:
        """Not into the test's output."""

    def do_GET(self) -> None:
        if self._may():
            self._send(self.server.listed() if self.path == "/v1/models" else refuse(404, "no such path"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths[self.path] += 1
        if self._may():
            self._send(self.server.answer(body))

    def _may(self) -> bool:
        """Whether the key is right; the refusal quotes it, as some servers do."""
        given = self.headers.get("Authorization", "")
        if not self.server.key or given == f"Bearer {self.server.key}":
            return True
        self._send(refuse(401, f"Incorrect API key provided: {given}"))
        return False

    def _send(self, act: Act) -> None:
        data = json.dumps(act.tree).encode() if act.raw is None else act.raw
        if not act.drop:
            self.send_response(act.status)
            for name, value in {"Content-Type": "application/json", **act.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) + act.cut))
            self.end_headers()
            self.wfile.write(data)
        if act.drop or act.cut:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


# --- jobs for it


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


def start(tmp_path: Path, spec: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    """The job in a process of its own."""
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "batchnlp", "run", str(file), "--json"]
    environ = os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


Start = Callable[..., ApiServer]
