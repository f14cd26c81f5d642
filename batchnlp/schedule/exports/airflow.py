"""An Airflow DAG with one task, which calls the command line."""

from __future__ import annotations

import json

from batchnlp.schedule.exports.base import Place, command, head, secrets, shell, slug
from batchnlp.schedule.jobs import Entry

DAG = """\
import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, CronTriggerTimetable

with DAG(
    dag_id={dag},
    schedule=CronTriggerTimetable({cron}, timezone={zone}),
    start_date=pendulum.datetime(2020, 1, 1, tz={zone}),  # no date before it can run, not even by hand
    catchup=False,  # airflow backfill create runs the dates before now
    max_active_runs=1,
    tags=["batchnlp"],
) as dag:
    BashOperator(
        task_id="run",
        # The date of the run in the job's own zone. Exit code 1 is a run with too many dead letters: a failure.
        bash_command={command},
        cwd={folder},
        append_env=True,
    )
"""
DATE = "{{ (dag_run.logical_date or dag_run.run_after).astimezone(dag.timezone).date() }}"


def export(entry: Entry, place: Place) -> dict[str, str]:
    """The file for the folder of DAGs."""
    zone, dag = entry.schedule.timezone, slug(entry.name, "_")
    words = raw(shell(command(entry))) + " --date " + DATE
    text = DAG.format(
        dag=json.dumps(dag), cron=json.dumps(str(entry.schedule.times)), zone=json.dumps(zone), command=json.dumps(words),
        folder=json.dumps(place.folder),
    )  # fmt: skip
    notes = [f"It needs {name} in the worker's environment." for name in secrets(entry.spec)]
    return {f"{dag}.py": head(entry, *notes) + text}


def raw(words: str) -> str:
    """A command as a template that has nothing to fill in."""
    return (
        words
        if not {"{{", "{%", "{#"} & {words[i : i + 2] for i in range(len(words))}
        else f"{{% raw %}}{words}{{% endraw %}}"
    )
