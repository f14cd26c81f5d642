"""Take the pictures in batchnlp/report/: two nights of jobs that ship, with the stand-ins of `make models`, in Chromium.

    python tests/pictures.py            from the root of the repository; ImageMagick makes the files small
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from browser import Browser
from commands import SETTINGS, invoke

from jobs.models import main as make_models

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, COLOURS = 940, 1180, 48
# picture → job, its stand-in, what else it is given, rows of the first night, dark
PICTURES: dict[str, tuple[str, str, list[str], str, bool]] = {
    "classify": ("sentiment", "sentiment", ["task.on_long=fail", "limits.max_failed=50%", "source.rows_per_shard=40"],
                 '[[section, "!=", howto]]', False),
    "ner": ("entities", "ner", ["source.rows_per_shard=40"], '[[section, "!=", glossary]]', False),
    "generate": ("stories", "gpt2", ["source.rows_per_shard=10"], '[[section, "==", glossary], [title, "<", M]]', True),
}  # fmt: skip


def run(job: str, *settings: str) -> None:
    """A night."""
    chosen = [*settings, *(f"engine.{one}" for one in SETTINGS)]
    result = invoke("run", f"jobs/{job}.yaml", "--mode", "overwrite", *(part for key in chosen for part in ("--set", key)))
    assert result.exit_code == 0, result.output


def main() -> None:
    """All of them."""
    with tempfile.TemporaryDirectory(prefix="nightly-") as folder:
        make_models(folder)
        for name, (job, model, settings, first, dark) in PICTURES.items():
            out = Path(folder) / "results" / job
            chosen = [f"task.model={folder}/{model}", f"output.path={out}", *settings]
            run(job, *chosen, f"source.filter={first}")
            run(job, *chosen)
            target = ROOT / "batchnlp" / "report" / f"{name}.png"
            with Browser() as chromium:
                chromium.open(out / "_report.html", WIDTH, dark=dark)
                target.write_bytes(chromium.picture(height=HEIGHT))
            subprocess.run(["convert", target, "+dither", "-colors", str(COLOURS), f"PNG8:{target}"], check=True)
            sys.stderr.write(f"{target}: {target.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
