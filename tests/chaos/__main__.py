"""python -m chaos [WORD...] [--seed N] [--list]: the rows whose fault has one of the words in it; all without one.

Exit 1 where something was lost or doubled, a bound did not hold, or a fault could not be injected. Run from `make chaos`,
which sets the paths.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from random import Random

from chaos.table import ROWS, Outcome, Place, draw, line, play, summary

MODULES: tuple[str, ...] = ("kills", "documents", "cluster", "stores")  # whose rows make the table, in this order


def main() -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="*")
    parser.add_argument("--seed", type=int, help="of all that is drawn; a new one without it")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    args = parser.parse_args()
    for name in MODULES:
        import_module(f"chaos.{name}")
    chosen = [fault for fault in ROWS if not args.word or any(word in fault for word in args.word)]
    if args.list:
        print(*chosen, sep="\n")
        return 0
    seed = args.seed if args.seed is not None else time.time_ns() % 1_000_000
    print(f"seed {seed}", flush=True)
    began, found = time.monotonic(), dict[str, Outcome]()
    top = Path(tempfile.mkdtemp(prefix="batchnlp-chaos-"))
    try:
        for number, fault in enumerate(chosen):
            (folder := top / f"{number:02}").mkdir()
            found[fault] = play(fault, Place(folder, top / "models", Random(f"{seed} {fault}"), seed))
            print("  ".join(line(fault, found[fault])), flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    print(f"\n{draw(found)}\n")
    print(summary(found, time.monotonic() - began))
    return 0 if all(outcome.whole for outcome in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
