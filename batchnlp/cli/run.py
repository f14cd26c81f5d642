"""The bodies of the commands that run jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from batchnlp.cli.backfill import backfill, dates_between
from batchnlp.cli.look import show_plan
from batchnlp.cli.running import retry_shown, run_shown
from batchnlp.cli.show import print_json
from batchnlp.errors import SpecError
from batchnlp.job.dates import parse_date
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


def run_file(path: str, flags: Mapping[str, Any], as_json: bool) -> int:
    """A job from a file, on one date or on each of several; the exit code."""
    given: dict[str, Any] = {"output.mode": flags["mode"]} if flags["mode"] else {}
    if flags["date"]:
        given["date"] = parse_date(flags["date"], "--date")
    if not flags["backfill"]:
        return execute(load_spec(path, flags["settings"], given), as_json)
    if "date" in given:
        raise SpecError("--date and --backfill are both given", "leave one out")
    days = dates_between(*flags["backfill"])
    return backfill([load_spec(path, flags["settings"], {**given, "date": day}) for day in days], as_json)


def execute(spec: JobSpec, as_json: bool) -> int:
    """Run, with a live line and a summary on stderr, and a page in the output."""
    result, page = run_shown(spec)
    if as_json:
        print_json({**asdict(result), "report": page})
    return result.exit_code


def retry_dead(out: str, settings: Sequence[str], as_json: bool) -> int:
    """The dead letters of an output, tried again; the exit code."""
    results, page = retry_shown(out, settings)
    if as_json:
        trees = [{**asdict(result), "report": page} for result in results]
        print_json(trees[0] if len(trees) == 1 else {"runs": trees})
    return max(result.exit_code for result in results)
