"""chat: one reply a row, through the tokenizer's chat template.

A row is a text (one user turn) or a conversation, list<struct<role, content>>. `task.system` goes first where the row
brings no system turn; `task.prompt` wraps the last user turn. Only that turn is cut by `truncate`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from batchnlp.errors import ModelError
from batchnlp.tasks.base import refuse
from batchnlp.tasks.chat_template import chat_template, check_system
from batchnlp.tasks.completions import NO_FRAME, Render
from batchnlp.tasks.generate import TemplatedTask, row_values
from batchnlp.text.encode import Frame
from batchnlp.types import Docs, Failure, ModelFiles

ROLES = ("system", "user", "assistant", "tool")
Turns = list[dict[str, str]]


class Chat(TemplatedTask):
    """One reply a row, or `n`."""

    column = "reply"
    turns = True

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        if self.shape != "decoder-only":
            raise refuse(model, "is no causal language model", "use a chat model such as Qwen/Qwen2.5-0.5B-Instruct")
        template = chat_template(model)
        if template is None:
            hint = "use its instruction-tuned sibling, or task.kind=generate, where the text is the prompt"
            raise ModelError(f"{model.name} has no chat template", hint)
        self._chat = template
        self._system: str | None = spec.system
        if self._system:
            check_system(template, model)
        self.on_long = spec.on_long or "fail"

    @property
    def special(self) -> Frame:
        """None: the template writes them."""
        return NO_FRAME

    def documents(self, docs: Docs) -> tuple[list[int], list[str], list[int], list[Failure]]:
        """The last user turns; the content tokens are those of all turns."""
        if not pt.is_nested(docs.text.type):
            return super().documents(docs)
        rows, failures = answerable(docs.text)
        texts = [last_words(docs.text[row].as_py()) for row in rows]
        contents = [[turn["content"] or "" for turn in docs.text[row].as_py()] for row in rows]
        flat = [text for row in contents for text in row]
        lengths = self.tokenizer.encode(pa.array(flat, pa.large_string())).lengths
        sizes = np.bincount(np.repeat(np.arange(len(rows)), [len(row) for row in contents]), lengths, len(rows))
        return rows, texts, sizes.astype(int).tolist(), failures

    def renderer(self, docs: Docs) -> Render:
        """The conversation with the wrapped text as its last user turn."""

        def render(row: int, text: str) -> str:
            turns = conversation(docs, row, self.filled(text, row_values(docs, row)), self._system)
            return self._chat.render(turns)

        return render


def answerable(texts: pa.Array) -> tuple[list[int], list[Failure]]:
    """(rows whose conversation can be answered, failures of the others)."""
    rows, failures = [], []
    for row, turns in enumerate(texts.to_pylist()):
        problem = _problem(turns)
        if problem:
            failures.append(Failure(row, "encode", *problem))
        else:
            rows.append(row)
    return rows, failures


def last_words(turns: Turns) -> str:
    """What the user said last."""
    return turns[_last_user(turns)]["content"]


def conversation(docs: Docs, row: int, content: str, system: str | None) -> Turns:
    """The turns of a row, with `content` as what the user said last."""
    turns: Turns = [{"role": "user", "content": content}]
    if pt.is_nested(docs.text.type):
        turns = [{"role": t["role"], "content": t["content"] or ""} for t in docs.text[row].as_py()]
        turns[_last_user(turns)]["content"] = content
    if system and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _last_user(turns: Turns) -> int:
    return max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)


def _problem(turns: Any) -> tuple[str, str] | None:
    """Why a conversation cannot be answered."""
    if turns is None:
        return "null_text", "there is no conversation"
    for i, turn in enumerate(turns):
        role = (turn or {}).get("role")
        if role not in ROLES:
            return "bad_role", f"turn {i + 1} has no role among {', '.join(ROLES)}"
    last = _last_user(turns)
    if last < 0:
        return "no_user_turn", "no turn of this conversation is the user's"
    return None if (turns[last]["content"] or "").strip() else ("empty_text", "the last user turn is empty")
