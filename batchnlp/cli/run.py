"""The bodies of the commands that run jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from batchnlp.cli.look import show_plan
from batchnlp.cli.show import LiveLine, print_json, print_summary
from batchnlp.engine.driver import RunResult, run_job
from batchnlp.job.load import build_spec, load_spec
from batchnlp.job.spec import JobSpec

FLAGS = {
    "output": "output.path", "model": "task.model", "revision": "task.revision", "text_column": "source.text",
    "id_column": "source.id", "keep": "source.keep", "labels": "task.labels", "mode": "output.mode",
    "prompt": "task.prompt", "system": "task.system", "max_new_tokens": "task.max_new_tokens",
    "question": "task.question", "question_column": "task.question_column",
    "source_language": "task.source_language", "target_language": "task.target_language",
}  # fmt: skip


def one_off(kind: str, inputs: Sequence[str], flags: Mapping[str, Any], as_json: bool) -> int:
    """A job from flags alone; the exit code."""
    given = {key: flags[flag] for flag, key in FLAGS.items() if flags.get(flag) is not None}
    given |= {"task.kind": kind, "source.path": list(inputs)}
    spec = build_spec({}, flags["settings"], given, "the command line")
    if flags["plan"]:
        show_plan(spec, as_json)
        return 0
    return execute(spec, as_json)


def run_file(path: str, mode: str | None, settings: Sequence[str], as_json: bool) -> int:
    """A job from a file; the exit code."""
    return execute(load_spec(path, settings, {"output.mode": mode} if mode else None), as_json)


def run_shown(spec: JobSpec) -> RunResult:
    """Run, with a live line and a summary on stderr."""
    with LiveLine() as line:
        result = run_job(spec, line.update)
    print_summary(result)
    return result


def execute(spec: JobSpec, as_json: bool) -> int:
    """The same; the exit code."""
    result = run_shown(spec)
    if as_json:
        print_json(asdict(result))
    return result.exit_code
