"""A tokenizer's chat template: found in its files, rendered in our sandbox, never with code of the repository."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchnlp.errors import ModelError
from batchnlp.templates import Template, TemplateFault
from batchnlp.types import ModelFiles

Messages = Sequence[dict[str, str]]
FILES = "tokenizer_config.json", "special_tokens_map.json"


class ChatTemplate:
    """Messages to the text that the model was tuned on, special tokens written out."""

    def __init__(self, model: ModelFiles, source: str) -> None:
        self._template = Template(source, f"the chat template of {model.name}", chat=True)
        self._tokens = _special_tokens(Path(model.path))

    def render(self, messages: Messages) -> str:
        """The conversation, up to where the answer begins."""
        values = {"messages": list(messages), "add_generation_prompt": True, "tools": None, "documents": None}
        return self._template.render({**self._tokens, **values})


def chat_template(model: ModelFiles) -> ChatTemplate | None:
    """The model's chat template; None where it has none."""
    file = Path(model.path) / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(model, file.read_text(encoding="utf-8"))
    source = _json(Path(model.path) / FILES[0]).get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default") or next(iter(named.values()), None)
    return ChatTemplate(model, source) if isinstance(source, str) and source else None


def check_system(template: ChatTemplate, model: ModelFiles) -> None:
    """ModelError where the template takes no system prompt: better now than in every row."""
    try:
        template.render([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])
    except TemplateFault as fault:
        hint = f"put it into task.prompt, before {{{{ text }}}}; the template says: {fault}"
        raise ModelError(f"the chat template of {model.name} takes no task.system", hint) from None


def _special_tokens(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in reversed(FILES):
        for key, value in _json(folder / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
