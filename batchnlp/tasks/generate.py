"""generate: the model goes on from a prompt. Without a template the text is the prompt.

Decoder-only models continue it; encoder-decoder models read it and write their answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from batchnlp.tasks.base import refuse
from batchnlp.tasks.completions import CompletionTask, Render
from batchnlp.tasks.json_answers import JsonColumns
from batchnlp.templates import Template
from batchnlp.types import Docs, Failure, ModelFiles


def row_values(docs: Docs, row: int) -> dict[str, Any]:
    """What a template may name beside the text."""
    return {name: docs.columns[name][row].as_py() for name in docs.columns.column_names}


class TemplatedTask(CompletionTask):
    """A task with a prompt template, and answers that may be JSON."""

    default: str | None = None  # template where the job has none

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        source = spec.prompt if spec.prompt is not None else self.default
        self.template = Template(source, "task.prompt") if source is not None else None
        self.columns = tuple(name for name in self.template.names if name != "text") if self.template else ()
        taken = {field.name for field in super().fields}
        self._json = JsonColumns(spec.json_schema, taken) if spec.json_schema is not None else None
        if self._json:
            self._decoding = self._json.constrain(self._decoding)

    def filled(self, text: str, values: Mapping[str, Any]) -> str:
        """The template for one row."""
        return self.template.render({**values, "text": text}) if self.template else text

    def renderer(self, docs: Docs) -> Render | None:
        """The template over the row's columns."""
        return (lambda row, text: self.filled(text, row_values(docs, row))) if self.template else None

    @property
    def fields(self) -> list[pa.Field]:
        """The result columns."""
        return super().fields + (self._json.fields if self._json else [])

    def unfold(self, texts: dict[int, str], rows: int) -> tuple[list[pa.Array], list[Failure]]:
        """The columns of JSON answers."""
        return self._json.columns(texts, rows) if self._json else ([], [])


class Generate(TemplatedTask):
    """One continuation a document, or `n`."""

    def __init__(self, model: ModelFiles, spec: Any) -> None:
        super().__init__(model, spec)
        if self.shape is None:
            hint = "use a causal language model such as gpt2, or an encoder-decoder such as t5-small"
            raise refuse(model, "does not generate text", hint)
        self.on_long = spec.on_long or "fail"
