"""Ours against peers, scenario by scenario: same weights, same documents, same threads, side by side in one run.

    python benchmarks/run.py [SCENARIO...] [--rows N] [--rounds N] [--corpus FILE.parquet] [--folder DIR]

All scenarios without a name; `--list` names them. `--folder` is where scenarios/ and contenders/ are read, and data/ and
plots/ written: a user's own scenarios need not be in this repository.

Each prints its table; the last line of all is one JSON object. Exit 1 where a floor is missed, or one of our own contenders
fails; a peer that does not run here is named with its reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import environment, report, scenario, work
from harness.rounds import Match

HERE = Path(__file__).parent


def corpus_file(given: Path | None, *, needed: bool) -> Path:
    """The corpus: as given, or built once from Debian's package index."""
    path = given or HERE / "data" / "debian.parquet"
    if needed and not path.exists():
        if given:
            raise SystemExit(f"{given} is not there")
        subprocess.run([sys.executable, str(HERE / "corpus.py"), str(path)], check=True)
    return path


def play(one: scenario.Scenario, corpus: Path, args: argparse.Namespace, facts: dict[str, Any]) -> Match:
    """One scenario, from its files to its rounds."""
    folder, rows = args.folder / "data" / "runs" / one.name, args.rows or one.rows
    dtype = "bfloat16" if facts["fast_bfloat16"] else "float32"
    made = work.make(one, corpus, rows, folder, dtype)
    made["options"] = {"rows": rows}
    others = {}
    for name, entry in one.contenders.items():
        if entry.times > 1:
            path = work.repeated(Path(made["corpus"]), entry.times, folder / f"{name}.parquet")
            others[name] = {**made, "corpus": str(path)}
    match = Match(one, made, folder, args.folder / "contenders", threads=facts["usable"], dtype=dtype)
    for log in folder.glob("*.log"):
        log.unlink()
    match.run(args.rounds or one.rounds, others)
    return match


def main() -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*")
    parser.add_argument(
        "--rows", type=int, default=0, help="documents or prompts; the scenario's own number without it"
    )
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument(
        "--corpus", type=Path, help="a file of benchmarks/corpus.py; built in benchmarks/data without it"
    )
    parser.add_argument("--folder", type=Path, default=HERE, help="of scenarios and contenders; this one without it")
    parser.add_argument("--only", help="these contenders alone, separated by commas")
    parser.add_argument(
        "--tiny", action="store_true", help="generation with models of two layers: does everything run?"
    )
    parser.add_argument("--no-plots", action="store_true", help="leave benchmarks/plots as it is")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    args = parser.parse_args()
    if args.list:
        for name in scenario.names(args.folder):
            print(f"{name:16} {scenario.load(name, args.folder).about}")
        return 0
    chosen = [scenario.load(name, args.folder) for name in args.scenario or scenario.names(args.folder)]
    if args.only:
        chosen = [scenario.only(one, args.only.split(",")) for one in chosen]
    if args.tiny:
        chosen = [
            one.model_copy(update={"model": f"{one.model}-tiny"}) if one.work == "generate" else one for one in chosen
        ]
    corpus = corpus_file(args.corpus, needed=any(one.work == "encode" for one in chosen))
    facts = environment.capture()
    results, tables = [], []
    for one in chosen:
        before = environment.load()
        match = play(one, corpus, args, facts)
        results.append({**report.tree(match), "rows": args.rows or one.rows, "load_before": before})
        tables.append(report.table(match))
        if not args.no_plots:
            where = f"{facts['usable']} cores of {facts['cpu']}, load before {before[0]}"
            note = f"{facts['date'][:10]}, {where}, {args.rows or one.rows:,} rows"
            report.plot(match, args.folder / "plots" / f"{one.name}.svg", note)
    print("\n".join(tables))
    bad = [r["scenario"] for r in results if r["missed"] or r["ours_failed"]]
    print(json.dumps({"benchmark": "run", "failed": bad, "environment": facts, "scenarios": results}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
