"""Names to factories, imported only when used: asking for `embed` does not load what `classify` needs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from batchnlp.errors import SpecError
from batchnlp.types import nearest

TASKS = {
    "classify": "batchnlp.tasks.classify:Classify",
    "zero-shot": "batchnlp.tasks.zero_shot:make",
    "embed": "batchnlp.tasks.embed:Embed",
}
BACKENDS = {
    "torch": "batchnlp.backends.torch_encoder:TorchEncoder",
}
RUNNERS = {
    "inline": "batchnlp.engine.inline:InlineRunner",
    "ray": "batchnlp.engine.ray_runner:RayRunner",
}


def load(table: dict[str, str], name: str) -> Any:
    """The factory called `name` in one of the tables above."""
    if name not in table:
        near = nearest(name, list(table))
        raise SpecError(f"there is no {name}", f"did you mean {near}?" if near else f"there are: {', '.join(table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
