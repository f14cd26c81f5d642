"""The OpenAI API as far as we speak it: what a request says, and what an answer means. No network here.

    Reply     an answer
    Refused   final, and about this request alone: it becomes a dead letter
    Trouble   not an answer, but the next try may bring one
    Fatal     the same for every request: the run ends

A server's reason is quoted only up to where it could begin to quote the document, or the key.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from batchnlp.types import Decoding, Reply

BUSY = {429, 503, 529}  # too many requests, whoever sends them
AGAIN = {408, 409, 425}  # with those and all from 500 on
ROW = {400, 413, 422}  # this request is wrong
FAULT, HANG, CROWD, QUOTA = 1.0, 3.0, 0.2, 0.02  # what a try in vain counts: an error, no answer, no room, too early
TOO_LONG = re.compile(r"context.{0,10}(length|size|window)|too long|max_model_len|too many tokens", re.IGNORECASE)
FILTERED = re.compile(r"content.?(filter|policy)|moderation", re.IGNORECASE)
QUOTE = re.compile(r"(?<!\w)[\"'`]|[\[{(<\\]|[^\x00-\x7f]")  # what a quotation of the document could begin with
COMMON = re.compile(
    "a an and are as at be by can cannot completion content context does error exceeds field for from has have however in "
    "input invalid is it its length limit long max maximum message messages model more must no not of on only or output "
    "parameter please prompt reduce request requested required schema server should so supported than that the this to "
    "token tokens too type unsupported use value was were which while with you your".replace(" ", "|")
)  # words of a reason that tell nothing of a document, though they may stand in it
LENGTH = {"length", "max_tokens", "max_length"}  # how servers say that an answer was cut off
LONGEST_REASON = 200
WORD = re.compile(r"\w+")
NAME = re.compile(r"[A-Za-z][\w.-]{0,40}")


@dataclass(frozen=True, slots=True)
class Refused:
    """This request gets no answer, however often it is sent."""

    code: str
    message: str
    use: str = ""  # the parameter that the server wants in the place of max_tokens
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Trouble:
    """No answer this time."""

    reason: str
    cost: float = FAULT
    busy: bool = False  # fewer requests at once may help
    wait: float = 0.0  # seconds the server asks for


@dataclass(frozen=True, slots=True)
class Fatal:
    """No request will be answered."""

    reason: str
    hint: str


Outcome = Reply | Refused | Trouble | Fatal


def request(model: str, prompt: Any, seed: int | None, decoding: Decoding, limit: str) -> dict[str, Any]:
    """The body of a request: `prompt` is a text or a conversation, `limit` the name of the parameter for the length."""
    chat = not isinstance(prompt, str)
    body: dict[str, Any] = {"model": model, "messages" if chat else "prompt": prompt, limit: decoding.max_new_tokens}
    if decoding.sample:
        wishes = {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": seed}
        body |= {key: value for key, value in wishes.items() if value is not None}
    else:
        body["temperature"] = 0
    if decoding.n > 1:
        body["n"] = decoding.n
    if decoding.stop:
        body["stop"] = list(decoding.stop)
    if decoding.logprobs:
        body["logprobs"] = True if chat else 1
    if decoding.json_schema is not None:
        schema = {"name": "answer", "strict": True, "schema": json.loads(decoding.json_schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def read(status: int, headers: Mapping[str, str], content: bytes, asked: str, decoding: Decoding, key: str) -> Outcome:
    """What an answer means; `asked` is the text of the request, and `key` what must never be shown."""
    tree = parse(content)
    if 200 <= status < 300:
        code = _error(tree).get("code")
        if isinstance(code, int) and code >= 400:  # a gateway that says it inside
            return refusal(code, headers, tree, asked, key)
        return _reply(tree, decoding)
    return refusal(status, headers, tree, asked, key)


def parse(content: bytes) -> Any:
    """The JSON of an answer; None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _error(tree: Any) -> dict[str, Any]:
    """The error object, in whichever of its forms."""
    error = tree.get("error", tree) if isinstance(tree, dict) else {}
    if isinstance(error, str):
        error = {"message": error}
    return error if isinstance(error, dict) else {}


def refusal(status: int, headers: Mapping[str, str], tree: Any, asked: str, key: str) -> Refused | Trouble | Fatal:
    """What an answer of such a status means, which is not 2xx."""
    error = _error(tree)
    code, text = str(error.get("code") or ""), str(error.get("message") or error.get("detail") or "")
    name = code if NAME.fullmatch(code) and code not in asked and code != key else ""
    why = " ".join(filter(None, (str(status), name, reason(text, asked, key))))
    if status == 402 or "insufficient_quota" in (code, error.get("type")):
        return Fatal(f"answers {status}: the account has no credit left", "top it up; the same command goes on")
    if alone := _refused(status, f"{code} {error.get('type')} {error.get('param')} {text}", why):
        return alone
    if status in BUSY:
        return Trouble(why, QUOTA if status == 429 else CROWD, True, retry_after(headers))
    if status in AGAIN or status >= 500:
        return Trouble(why, wait=retry_after(headers))
    if status in (401, 403):  # such reasons quote keys
        return Fatal(f"answers {status}: it does not take the key", "")
    if 300 <= status < 400:
        return Fatal(f"answers {status}: it is elsewhere", "write its final address into engine.url")
    return Fatal(f"answers {why}", "check task.model and engine.url")


def _refused(status: int, said: str, why: str) -> Refused | None:
    """Why this request alone gets no answer; None where it is about others too."""
    if status == 429 and "request too large" in said.casefold():  # for the quota of a minute, so for ever
        return Refused("too_long", f"over the server's limit: {why}")
    if status not in ROW | {403}:
        return None
    if FILTERED.search(said):
        return Refused("content_filter", f"the server's content filter refuses it: {why}")
    if status == 403:
        return None
    if "max_tokens" in said and "max_completion_tokens" in said:
        return Refused("refused", f"the server refuses it: {why}", "max_completion_tokens")
    if status == 413 or TOO_LONG.search(said):
        return Refused("too_long", f"over the server's limit: {why}")
    return Refused("refused", f"the server refuses it: {why}")


def _reply(tree: Any, decoding: Decoding) -> Outcome:
    try:
        choices = sorted(tree["choices"], key=lambda choice: choice.get("index", 0))
        texts = [_text(choice) for choice in choices]
        ends = [str(choice.get("finish_reason") or "stop") for choice in choices]
        logprobs = tuple(map(_logprobs, choices)) if decoding.logprobs else ()
        usage = tree.get("usage") or {}
        n_tokens, n_new = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return Trouble("an answer that is no completion")
    if len(choices) != decoding.n:
        return Refused("bad_answer", f"the server sent {len(choices)} answers where {decoding.n} were asked for")
    if any(FILTERED.search(end) for end in ends):
        return Refused("content_filter", "the server's content filter ended the answer")
    if any(text is None for text in texts):
        return Refused("refusal", "the model refuses to answer")
    if any(text and not run for text, run in zip(texts, logprobs, strict=False)):
        return Refused("bad_answer", "the server sent no log-probabilities")
    finish = tuple("length" if end in LENGTH else "stop" for end in ends)
    return Reply(tuple(text for text in texts if text is not None), finish, logprobs, n_tokens, n_new)


def _text(choice: dict[str, Any]) -> str | None:
    """The text of a choice, None where the model declines; what cannot be written as UTF-8 is replaced."""
    message = choice.get("message")
    if message is not None and message.get("refusal") and not message.get("content"):
        return None
    text = choice["text"] if message is None else message.get("content") or ""
    return str(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _logprobs(choice: dict[str, Any]) -> tuple[float, ...]:
    """One number a token, from whichever of the two forms."""
    found = choice.get("logprobs") or {}
    content = found.get("content")
    run = found.get("token_logprobs") if content is None else [token["logprob"] for token in content]
    return tuple(float("nan") if value is None else float(value) for value in run or ())


def _count(value: Any) -> int:
    """A number of tokens; -1 where there is none."""
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
    return value if known else -1


def reason(text: str, asked: str, key: str = "") -> str:
    """What the server says of an error, up to where it may begin to quote the request; nothing where it has the key."""
    text = " ".join(text.split())
    if key and key in text:
        return ""
    quote = QUOTE.search(text)
    text = text[: quote.start()] if quote else text
    theirs = {word for word in WORD.findall(asked.casefold()) if not COMMON.fullmatch(word)}
    shared = next((word.start() for word in WORD.finditer(text.casefold()) if word.group() in theirs), len(text))
    return text[: min(shared, LONGEST_REASON)].rstrip(" :;,-")


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to be left alone; 0 where it does not."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(float(value), 0.0) if value else 0.0
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
