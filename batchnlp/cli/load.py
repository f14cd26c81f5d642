"""The body of `load`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from batchnlp.cli.show import message, print_json, sink_line
from batchnlp.data.ledger import open_ledgers
from batchnlp.data.lock import locked
from batchnlp.job.load import build_target
from batchnlp.job.sinks import StatementSpec


def load_output(out: str, kind: str, settings: Sequence[str], as_json: bool) -> None:
    """Load into a warehouse; for those that load by themselves print the statements."""
    target = build_target(kind, settings)
    if isinstance(target, StatementSpec):
        from batchnlp.sinks.statements import statements

        found = statements(out, target)
        if as_json:
            print_json({"status": "done", "kind": kind, "table": target.table, "statements": found})
        else:
            sys.stdout.write("".join(f"{statement};\n\n" for statement in found))
        return
    from batchnlp.sinks.load import load

    with locked(open_ledgers(out)[0].store):  # nobody overwrites what is being read
        loaded = asdict(load(out, target))
    result = {**loaded, "status": "loaded" if loaded["runs"] else "held"}
    message(sink_line(result))
    if as_json:
        print_json({**result, "output": out})
