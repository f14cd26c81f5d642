"""The connection to an OpenAI-compatible server: requests in flight, tried again with growing pauses. The door to httpx2.

A request that fails `TRIES` times is given up only when one that was answered before is answered again: otherwise it is
the server that is down, not the document that is bad, and after `PATIENCE` the run stops, to be resumed.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from time import monotonic, sleep
from types import TracebackType
from typing import Any

import httpx2

from batchnlp.backends.openai_api import HANG, Fatal, Outcome, Refused, Trouble, parse, read, refusal, request
from batchnlp.backends.throttle import MOST, Throttle
from batchnlp.errors import ModelError, StoppedError
from batchnlp.types import Decoding, Reply, Server
from batchnlp.words import nearest

CONNECT, ANSWER, CHECK = 10.0, 600.0, 60.0  # seconds: until a connection stands, an answer is there, one more of before
PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds: before the second try, before any later one
TRIES = 6  # in vain, of one request
PATIENCE = 300.0  # seconds without an answer to anything, after which the server counts as down
LONGEST_WAIT = 600.0  # seconds that a server may ask to be left alone
ASK_AGAIN = (0.5, 1.5)  # seconds, before anything starts


class Line:
    """The connections to a server, in a thread of their own."""

    def __init__(self, server: Server, decoding: Decoding, key: str) -> None:
        self._server, self._decoding, self._key = server, decoding, key
        self._throttle = Throttle()
        self.under_way = 0  # counted by the backend's thread alone
        self._limit = "max_tokens"
        self._good: tuple[Any, int | None] | None = None  # a request that was answered
        self._down: float | None = None  # since when nothing is
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)

    def __enter__(self) -> Line:
        self._thread.start()
        self._client = self._call(self._open()).result()
        self._checking = asyncio.Lock()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._call(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def has_room(self) -> bool:
        """Whether one more request may be under way."""
        return self.under_way < self._throttle.limit

    @property
    def worked(self) -> bool:
        """Whether the server has answered anything."""
        return self._good is not None

    def ask(self, prompt: Any, seed: int | None) -> Future[Reply | Refused]:
        """The outcome of a request, to come: StoppedError and ModelError where the run is to end."""
        self.under_way += 1
        return self._call(self._answer(prompt, seed))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _open(self) -> httpx2.AsyncClient:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=MOST)
        timeout = httpx2.Timeout(None, connect=CONNECT)
        return httpx2.AsyncClient(headers=headers(self._key), limits=limits, timeout=timeout)

    async def _close(self) -> None:
        others = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _answer(self, prompt: Any, seed: int | None) -> Reply | Refused:
        tries, spent = 0, 0.0
        while True:
            began, limit = monotonic(), self._limit
            outcome = await self._try(prompt, seed, ANSWER)
            if isinstance(outcome, Reply):
                self._good, self._down = (prompt, seed), None
                work = max(outcome.n_tokens, 0) + max(outcome.n_new_tokens, 1)
                full = self.under_way >= self._throttle.limit
                self._throttle.answered(began, monotonic(), work, full=full)
                return outcome
            if isinstance(outcome, Fatal):
                raise self._end(outcome)
            if isinstance(outcome, Refused):
                if outcome.use and outcome.use != limit:
                    self._limit = outcome.use
                    continue
                return outcome
            tries, spent = tries + 1, spent + outcome.cost
            if outcome.busy:
                self._throttle.pushed_back(began, monotonic())
            if await self._is_hopeless(spent, outcome, began):
                return Refused("server_error", f"no answer, while others get one: {outcome.reason}", tries=tries)
            pause = min(PAUSE * 2 ** min(tries - 1, 30), LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(pause, outcome.wait * random.uniform(1.0, 1.1)))

    async def _try(self, prompt: Any, seed: int | None, within: float) -> Outcome:
        body = request(self._server.name, prompt, seed, self._decoding, self._limit)
        text = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
        path = "completions" if isinstance(prompt, str) else "chat/completions"
        try:
            async with asyncio.timeout(within):
                got = await self._client.post(f"{self._server.url}/{path}", json=body)
        except TimeoutError:
            return Trouble(f"no answer within {within:.0f} s", HANG, True)
        except httpx2.ConnectTimeout:
            return Trouble("no connection", busy=True)
        except httpx2.RequestError as error:
            return Trouble(f"the connection broke ({type(error).__name__})", busy=True)
        outcome = read(got.status_code, got.headers, got.content, text, self._decoding, self._key)
        if got.status_code == 404 and isinstance(outcome, Fatal) and isinstance(prompt, str):
            return Fatal(
                outcome.reason, "does it have the older /completions? else use task.kind=chat with task.prompt"
            )
        if got.status_code == 403 and self.worked and isinstance(outcome, Fatal):
            return Refused("refused", f"the server {outcome.reason.partition(':')[0]} to this request")
        return outcome

    async def _is_hopeless(self, spent: float, trouble: Trouble, began: float) -> bool:
        """Whether a request that failed again is to be given up; StoppedError where the server is down."""
        self._down = self._down or began
        if trouble.wait > LONGEST_WAIT:
            raise self._stop(f"asks to be left alone for {trouble.wait:,.0f} s")
        if spent < TRIES and monotonic() - self._down < PATIENCE:
            return False
        if await self._works():
            return spent >= TRIES
        if monotonic() - (self._down or monotonic()) >= PATIENCE:
            raise self._stop(f"has answered nothing for {PATIENCE:.0f} s: {trouble.reason}")
        return False

    async def _works(self) -> bool:
        """Whether the server answers what it has answered before."""
        async with self._checking:
            if self._down is None:
                return True  # it has answered another one meanwhile
            if self._good is None or not isinstance(await self._try(*self._good, CHECK), Reply):
                return False
            self._down = None
            return True

    def _stop(self, what: str) -> StoppedError:
        return StoppedError(f"{self._server.url} {what}", "the same command goes on from here")

    def _end(self, fatal: Fatal) -> StoppedError | ModelError:
        """What no request survives: before the first answer it is the job that is wrong, afterwards the server has changed."""
        hint = fatal.hint or key_hint(self._server.key_env)
        what = f"{self._server.url} {fatal.reason}"
        return StoppedError(what, hint) if self.worked else ModelError(what, hint)


# --- before anything starts


def read_key(name: str | None) -> str:
    """The key in the environment variable of that name; empty without one."""
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ModelError(
            f"the environment variable {name} is not set", "put the API key into it; on Ray, on every node"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ModelError(f"what {name} holds is no API key", "a key has neither spaces nor special characters")
    return key


def key_hint(name: str | None) -> str:
    """What to do where a server does not take the key."""
    return f"check the key in {name}" if name else "name the variable that holds the key in engine.api_key_env"


def headers(key: str) -> dict[str, str]:
    """What goes with every request."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def find_server(url: str, key_env: str | None, name: str) -> Server:
    """The server with the model `name`, after it has said that it has it. ModelError where it does not, in bounded time."""
    key = read_key(key_env)
    tree = _models(url, key, key_env)
    try:
        names = [str(entry["id"]) for entry in tree["data"]]
    except (KeyError, TypeError):
        hint = "check engine.url" if url.endswith("/v1") else f"did you mean engine.url={url}/v1?"
        raise ModelError(f"{url}/models lists no models, as an OpenAI-compatible server does", hint) from None
    if name not in names:
        near = nearest(name, names)
        hint = f"did you mean {near}?" if near else f"there are: {', '.join(names[:8]) or 'none'}"
        raise ModelError(f"{url} has no model {name}", hint)
    return Server(
        name=name, path="", revision="", weights=f"{name} at {url}", tokenizer="", config={}, max_length=0,
        url=url, key_env=key_env,
    )  # fmt: skip


def _models(url: str, key: str, key_env: str | None) -> Any:
    """What the server answers to the question for its models; what passes is asked again twice."""
    for pause in (*ASK_AGAIN, None):
        try:
            got = httpx2.get(f"{url}/models", headers=headers(key), timeout=CONNECT)
        except httpx2.TimeoutException:
            raise ModelError(f"{url} does not answer within {CONNECT:.0f} s", "check engine.url") from None
        except httpx2.ConnectError as error:
            raise ModelError(f"no server at {url}: {error}", "start it, or check engine.url") from None
        except httpx2.InvalidURL as error:
            raise ModelError(f"{url} is no address: {error}", "check engine.url") from None
        except httpx2.RequestError as error:
            outcome: Any = Trouble(f"breaks the connection ({type(error).__name__})")
        else:
            if got.is_success or got.status_code == 404:
                return parse(got.content) if got.is_success else None
            outcome = refusal(got.status_code, got.headers, parse(got.content), "", key)
        if isinstance(outcome, Fatal):
            raise ModelError(f"{url} {outcome.reason}", outcome.hint or key_hint(key_env))
        if pause is not None and isinstance(outcome, Trouble):
            sleep(pause)
    what = outcome.reason if isinstance(outcome, Trouble) else outcome.message
    raise ModelError(f"{url} does not list its models: {what}", "is it up?")
