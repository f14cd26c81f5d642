"""The command line. Bodies are short; everything heavy is imported inside them, so that `--help` answers at once.

Data goes to stdout, messages to stderr. With `--json` the last line on stdout is one object,
of an error too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from batchnlp import __version__
from batchnlp.cli.border import CONTEXT, Commands, Group

Command = Callable[..., Any]


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="batchnlp")
def main() -> None:
    """Run Hugging Face models over whole corpora, and prove that no document was lost."""


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, last on stdout.")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key of the job, as engine.dtype=float32."
)
mode_option = click.option(
    "--mode",
    type=click.Choice(["new", "append", "overwrite", "incremental"]),
    help="What to do with another job's results in OUT.",
)


def _one_off(kind: str, summary: str) -> None:
    """Define the command of a task: the common keys as flags, all others through --set."""

    @main.command(kind, help=summary)
    @click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
    @click.option("-o", "--output", required=True, metavar="OUT", help="The directory for the results.")
    @click.option("--model", required=True, metavar="M", help="Hub name, directory, or package:NAME.")
    @click.option("--revision", help="The hub revision.")
    @click.option("--text-column", help="The column with the documents; 'text' without it.")
    @click.option("--id-column", help="The column with their ids; <file>#<row> without it.")
    @click.option("--keep", help="Columns carried into the results, separated by commas.")
    @_own_options(kind)
    @mode_option
    @set_option
    @click.option("--plan", is_flag=True, help="Only tell what it will do and cost, as the command plan does.")
    @json_option
    def command(inputs: tuple[str, ...], as_json: bool, **flags: Any) -> None:
        from batchnlp.cli.run import one_off

        sys.exit(one_off(kind, inputs, flags, as_json))


_LABELS = click.option("--labels", required=True, help="The labels to choose from, separated by commas.")
_PROMPT = click.option("--prompt", help="A jinja2 template; {{ text }} is the document, other names are columns.")
_MAX_NEW = click.option("--max-new-tokens", type=int, help="Tokens an answer may have; 256 without it.")
_SYSTEM = click.option("--system", help="The system prompt.")
_SOURCE = click.option("--source-language", help="The documents' language, as the model names it.")
_QUESTION = click.option("--question", help="The question that is asked of every document.")
_QUESTION_COLUMN = click.option("--question-column", help="The column with a question for each document.")
_TARGET = click.option("--target-language", help="The language to translate into.")
_OWN: dict[str, tuple[Callable[[Command], Command], ...]] = {
    "zero-shot": (_LABELS,),
    "qa": (_QUESTION, _QUESTION_COLUMN),
    "summarize": (_PROMPT, _MAX_NEW),
    "translate": (_SOURCE, _TARGET, _MAX_NEW),
    "generate": (_PROMPT, _MAX_NEW),
    "chat": (_PROMPT, _SYSTEM, _MAX_NEW),
}


def _own_options(kind: str) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(_OWN.get(kind, ())):
            command = option(command)
        return command

    return decorate


_one_off("classify", "Give each document a label of a fine-tuned classifier.")
_one_off("zero-shot", "Give each document one of your own labels, without training.")
_one_off("ner", "Find the entities in each document, with their places.")
_one_off("qa", "Find in each document the answer to a question.")
_one_off("embed", "Give each document a vector.")
_one_off("summarize", "Write a summary of each document.")
_one_off("translate", "Translate each document.")
_one_off("generate", "Let a language model go on from each document, or from a prompt made of it.")
_one_off("chat", "Let a chat model answer each document or conversation.")


@main.command()
@click.argument("spec")
@mode_option
@set_option
@click.option("--date", metavar="DATE", help="The run's date, as 2026-11-24; today without it.")
@click.option("--backfill", nargs=2, metavar="FROM TO", help="One run for each of these dates and those between.")
@json_option
def run(spec: str, as_json: bool, **flags: Any) -> None:
    """Run the job in the file SPEC; again: resume it."""
    from batchnlp.cli.run import run_file

    sys.exit(run_file(spec, flags, as_json))


@main.command()
@click.argument("spec")
@set_option
@click.option("--full", is_flag=True, help="Look at every document instead of a sample.")
@click.option("--probe", is_flag=True, help="Load the model, measure for some seconds, and tell the time it will take.")
@click.option(
    "--explain", is_flag=True, help="Of an incremental job: read the whole corpus, and count its rows by what changed."
)
@json_option
def plan(spec: str, settings: tuple[str, ...], full: bool, probe: bool, explain: bool, as_json: bool) -> None:
    """Tell what the job in SPEC will do and cost; write nothing."""
    from batchnlp.cli.look import show_plan
    from batchnlp.job.load import load_spec

    show_plan(load_spec(spec, settings), as_json, full=full, probe=probe, explain=explain)


@main.command()
@click.argument("spec")
@set_option
@click.option("--rows", type=click.IntRange(min=1), default=32, help="Documents to compare; 32 without it.")
@json_option
def doctor(spec: str, settings: tuple[str, ...], rows: int, as_json: bool) -> None:
    """Tell whether batches, dtype and backend change the answers of the job in SPEC; exit 1 if they do."""
    from batchnlp.cli.doctor import show_diagnosis

    sys.exit(show_diagnosis(spec, settings, rows, as_json))


@main.command()
@click.argument("out")
@json_option
def status(out: str, as_json: bool) -> None:
    """Tell how far the run in OUT has come, and what failed why."""
    from batchnlp.cli.look import show_status

    show_status(out, as_json)


@main.command()
@click.argument("out")
@set_option
@json_option
def retry(out: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Try the dead letters in OUT again, those that may fare better; where the job ran, with the same files there."""
    from batchnlp.cli.run import retry_dead

    sys.exit(retry_dead(out, settings, as_json))


@main.command()
@click.argument("out")
@json_option
def verify(out: str, as_json: bool) -> None:
    """Prove that OUT is complete and undamaged; exit 1 if it is not."""
    from batchnlp.cli.look import show_verdict

    sys.exit(show_verdict(out, as_json))


@main.command()
@click.argument("out")
@click.option("-o", "--output", metavar="FILE", help="The file to write, or - for stdout; beside OUT without it.")
@click.option(
    "--format", "format_", type=click.Choice(["parquet", "csv", "jsonl"]), help="By the file's name without it."
)
@click.option("--dead", is_flag=True, help="The dead letters instead: which rows have no result, and why.")
@json_option
def collect(out: str, output: str | None, format_: str | None, dead: bool, as_json: bool) -> None:
    """Write the results in OUT as one table, in input order."""
    from batchnlp.cli.look import write_collected

    write_collected(out, output, format_, dead, as_json)


WAREHOUSES = ["duckdb", "delta", "iceberg", "postgres", "parquet", "bigquery", "snowflake", "clickhouse"]


@main.command()
@click.argument("out")
@click.option("--to", "kind", required=True, type=click.Choice(WAREHOUSES), help="The warehouse.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key of the sink: database, table, write, key, ...",
)
@json_option
def load(out: str, kind: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Load the results in OUT into a warehouse, or print the statements that do it."""
    from batchnlp.cli.load import load_output

    load_output(out, kind, settings, as_json)


@main.command()
@click.argument("target", metavar="OUT|SPEC")
@click.option(
    "--labels", metavar="[FILE:]COLUMN", help="The truth: a column of the results, or of a file with their ids."
)
@click.option("--groups", help="Columns, separated by commas, whose groups are compared.")
@click.option("--counterfactual", metavar="FILE", help="Pairs of terms to swap in the documents, as YAML.")
@click.option("--against", metavar="OUT2", help="The output of another model for the same documents.")
@set_option
@json_option
def evaluate(target: str, settings: tuple[str, ...], as_json: bool, **flags: str | None) -> None:
    """Judge the results in OUT, or run the job in SPEC and judge it; exit 1 if a gate is not kept."""
    from batchnlp.cli.evaluate import show_evaluation

    sys.exit(show_evaluation(target, flags, settings, as_json))


@main.command()
@click.argument("outs", nargs=-1, required=True, metavar="OUT...")
@click.option("--compare", is_flag=True, help="What differs between the last runs of two outputs.")
@click.option("-o", "--output", metavar="FILE", help="The file to write, or - for stdout; OUT/_report.html without it.")
@click.option("--columns", help="Kept columns that sample rows show too, separated by commas; they may hold documents.")
@json_option
def report(outs: tuple[str, ...], compare: bool, output: str | None, columns: str | None, as_json: bool) -> None:
    """Write a page on how the last run in OUT went, what it found, and what changed since the one before."""
    from batchnlp.cli.report import write_report

    write_report(outs, compare, output, columns, as_json)


@main.command()
@click.argument("out")
@click.option("--hours", type=click.FloatRange(min=0), default=24.0, help="How old they must be; 24 without it.")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@json_option
def gc(out: str, hours: float, dry_run: bool, as_json: bool) -> None:
    """Remove what writers that died left in OUT: temporary files, uploads, attempts that count for nothing."""
    from batchnlp.cli.garbage import remove_garbage

    remove_garbage(out, hours, dry_run, as_json)


@main.command()
@click.argument("spec")
@set_option
@click.option("--any-dtype", is_flag=True, help="Try float32 and bfloat16 where the job leaves the dtype open.")
@json_option
def bench(spec: str, settings: tuple[str, ...], any_dtype: bool, as_json: bool) -> None:
    """Find the fastest settings for the job in SPEC on a sample, and tell how near the limit it runs with them."""
    from batchnlp.cli.bench import show_bench

    show_bench(spec, settings, any_dtype, as_json)


@main.group(cls=Commands)
def train() -> None:
    """Learn a tokenizer or a model from a corpus; what comes out is what jobs run."""


def _train(kind: str, summary: str) -> None:
    """Define the command of a kind of training: the common keys as flags, all others through --set."""

    @train.command(kind, help=summary)
    @click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
    @click.option("-o", "--output", required=True, metavar="OUT", help="The directory for the result.")
    @click.option("--text-column", help="The column with the texts; 'text' without it.")
    @click.option("--id-column", help="The column with their ids; <file>#<row> without it.")
    @click.option("--group-column", help="A column whose rows stay on one side of the split.")
    @click.option("--held-out", metavar="FILE", help="A Parquet file for the test rows, with their texts.")
    @set_option
    @json_option
    def command(inputs: tuple[str, ...], as_json: bool, **flags: Any) -> None:
        from batchnlp.cli.train import train_one

        train_one(kind, inputs, flags, as_json)

    if kind == "tokenizer":
        return
    click.option("--model", metavar="M", help="Where to start: hub name, directory, or package:NAME.")(command)
    click.option("--revision", help="The hub revision.")(command)
    click.option("--workers", type=int, help="Processes that share the work through Ray Train.")(command)
    if kind == "classify":
        click.option("--label-column", help="The column with the labels; 'label' without it.")(command)
    if kind == "seq2seq":
        click.option("--target-column", help="The column with the texts to write; 'target' without it.")(command)
    if kind == "ner":
        click.option("--entities-column", help="The column with the spans; 'entities' without it.")(command)
    if kind == "embed":
        click.option("--pair-column", help="The column with the text that is to be near; 'pair' without it.")(command)


_train("tokenizer", "Learn a tokenizer: byte-level BPE, WordPiece or Unigram.")
_train("lm", "Learn to write: a language model from scratch, or one that goes on learning.")
_train("classify", "Learn to label documents.")
_train("ner", "Learn to find the entities in documents.")
_train("seq2seq", "Learn to write a text from a text: summaries, titles, translations.")
_train("embed", "Learn vectors from pairs of texts that belong together.")


@train.command("run")
@click.argument("spec")
@set_option
@json_option
def train_run(spec: str, settings: tuple[str, ...], as_json: bool) -> None:
    """Train as the YAML file SPEC says; again: go on, or learn that all is done."""
    from batchnlp.cli.train import train_file

    train_file(spec, settings, as_json)


@main.group(cls=Commands)
def schedule() -> None:
    """Run jobs by the clock, or hand them to another scheduler."""


_JOBS = click.argument("jobs", nargs=-1, required=True, metavar="JOB...")
_STATE = click.option(
    "--state",
    default="schedule/state.json",
    metavar="FILE",
    help="Where it is kept what ran last; schedule/state.json.",
)


@schedule.command("list")
@_JOBS
@_STATE
@json_option
def schedule_list(jobs: tuple[str, ...], state: str, as_json: bool) -> None:
    """Tell when the jobs in these files and folders run next."""
    from batchnlp.cli.schedule import show_schedule

    show_schedule(jobs, state, as_json)


@schedule.command("run")
@_JOBS
@_STATE
def schedule_run(jobs: tuple[str, ...], state: str) -> None:
    """Run the jobs in these files and folders when it is time, until a signal comes."""
    from batchnlp.cli.schedule import run_schedule

    sys.exit(run_schedule(jobs, state))


TARGETS = ["cron", "systemd", "kubernetes", "rayjob", "airflow"]


@schedule.command("export")
@_JOBS
@click.option("--to", "kind", required=True, type=click.Choice(TARGETS), help="The scheduler.")
@click.option("-o", "--output", metavar="DIR", help="The directory for the files; without it they are printed.")
@click.option("--image", help="kubernetes, rayjob: the container image with batchnlp in it.")
@click.option("--claim", help="kubernetes, rayjob: the volume claim with the data.")
@json_option
def schedule_export(jobs: tuple[str, ...], kind: str, as_json: bool, **flags: Any) -> None:
    """Write the jobs in these files and folders for another scheduler."""
    from batchnlp.cli.schedule import export_schedule

    export_schedule(jobs, kind, flags, as_json)


if __name__ == "__main__":
    main()
