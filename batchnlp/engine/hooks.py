"""Those who are told how a run goes: the job's hooks, and OpenLineage where the environment sets it up. None can fail the run, or
hold it up for longer than its time."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from batchnlp.data.store import to_json
from batchnlp.engine import lineage, prometheus
from batchnlp.engine.results import Ending
from batchnlp.errors import BatchnlpError
from batchnlp.job.nightly import HookSpec
from batchnlp.job.spec import JobSpec

Say = Callable[[str], None]


class HookError(Exception):
    """Somebody could not be told; the message is without secrets."""


@contextmanager
def observed(spec: JobSpec, say: Say) -> Iterator[Ending]:
    """Around all of a run; what fails here is said by `say`."""
    ending = Ending(spec, say)
    events = lineage.Events(spec) if lineage.wanted(os.environ) else None
    if events:
        _safely("OpenLineage", lineage.TIMEOUT, say, events.start)
    try:
        yield ending
    except Exception as error:
        ending.error = error
        _tell_all(ending, events, say)
        raise
    _tell_all(ending, events, say)


def _tell_all(ending: Ending, events: lineage.Events | None, say: Say) -> None:
    tree = ending.tree()
    if events:
        _safely("OpenLineage", lineage.TIMEOUT, say, lambda: events.end(tree))
    for hook in ending.spec.hooks:
        if hook.textfile is not None or ending.event in hook.when:
            _safely(hook.name, hook.timeout, say, lambda hook=hook: call(hook, tree))  # type: ignore[misc]


def _safely(name: str, seconds: float, say: Say, tell: Callable[[], None]) -> None:
    """In a thread, because not everything that hangs can be given up otherwise."""
    found: list[str] = [f"no answer in {seconds:g} s"]

    def work() -> None:
        try:
            tell()
            found[:] = []
        except (HookError, BatchnlpError) as error:
            found[:] = [str(error)]
        except Exception as error:  # noqa: BLE001 - whoever is told of a run cannot fail it; no more than the type, which has no secrets
            found[:] = [type(error).__name__]

    thread = threading.Thread(target=work, name="hook", daemon=True)
    thread.start()
    thread.join(seconds + 1)
    for reason in found:
        say(f"{name} could not be told: {reason}")


def call(hook: HookSpec, tree: dict[str, Any]) -> None:
    """Tell one hook; HookError where it does not take it."""
    if hook.textfile is not None:
        prometheus.write(hook.textfile, tree)
    elif hook.command is not None:
        _run(hook.command, to_json(tree), hook.timeout)
    else:
        _post(hook, to_json(tree))


def _run(command: list[str], text: bytes, seconds: float) -> None:
    """stdout is for the run's own results, so what the program says there is lost; stderr is shared."""
    quiet = subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, start_new_session=True)
    except OSError as error:
        raise HookError(error.strerror or type(error).__name__) from None
    try:
        with suppress(BrokenPipeError):  # it need not read
            process.communicate(text, timeout=seconds)
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise HookError(f"killed after {seconds:g} s") from None
    finally:
        with suppress(ProcessLookupError):  # with its children, which may outlive it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code:
        raise HookError(f"exit code {code}")


def _post(hook: HookSpec, text: bytes) -> None:
    """Redirects are not followed: they would take the token elsewhere."""
    import httpx2 as httpx

    address = hook.webhook or _variable(hook.webhook_env)
    token = {"Authorization": f"Bearer {_variable(hook.token_env)}"} if hook.token_env else {}
    headers = {"Content-Type": "application/json", **token}
    with (
        httpx.Client(timeout=hook.timeout) as client,
        client.stream("POST", address, content=text, headers=headers) as answer,
    ):
        if not answer.is_success:
            raise HookError(f"status {answer.status_code}")


def _variable(name: str | None) -> str:
    value = os.environ.get(name or "", "")
    if not value:
        raise HookError(f"the environment variable {name} is not set")
    return value
