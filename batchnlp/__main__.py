"""`python -m batchnlp`, and the command `batchnlp`."""

import sys
from contextlib import suppress

from batchnlp.cli.main import main
from batchnlp.errors import Interrupted, Terminated

INTERRUPTED = (Interrupted.exit_code, Terminated.exit_code)


def program() -> None:
    """Where a signal came it ends at once: what libraries do at their end takes a second, in which nobody hears another one."""
    try:
        main()
    except SystemExit as end:
        if end.code not in INTERRUPTED:
            raise
        from batchnlp.engine.signals import leave

        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()
        leave(int(end.code))


if __name__ == "__main__":
    program()
