"""Take the pictures in batchnlp/report/: two nights of jobs that ship, in Chromium.

    python tests/pictures.py            from the root of the repository; needs chromium-headless-shell and pngquant

The models are the stand-ins of `make models`, but for that of `classify`, which learns the sections of the corpus first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import torch
from browser import Browser
from commands import SETTINGS, invoke
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification

from jobs.models import CORPUS
from jobs.models import main as make_models

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, COLOURS = 940, 1240, 40
# picture → job, its model, what else it is given, rows of the first night, dark
PICTURES: dict[str, tuple[str, str, list[str], str, bool]] = {
    "classify": ("sentiment", "sections", ["job=sections", "task.on_long=fail", "limits.max_failed=30%",
                                           "source.rows_per_shard=40"], '[[section, "!=", howto]]', False),
    "ner": ("entities", "ner", ["source.rows_per_shard=40"], '[[section, "!=", glossary]]', False),
    "generate": ("stories", "gpt2", ["source.rows_per_shard=10"], '[[section, "==", glossary], [title, "!=", GIL]]', True),
}  # fmt: skip


def learn_sections(target: Path, tokenizer: str) -> None:
    """A small classifier of the corpus by section, trained for a minute."""
    table = pq.read_table(CORPUS, columns=["text", "section"])
    names = sorted(set(table["section"].to_pylist()))
    which = torch.tensor([names.index(name) for name in table["section"].to_pylist()])
    words = AutoTokenizer.from_pretrained(tokenizer)
    ids = words(table["text"].to_pylist(), padding=True, truncation=True, max_length=128, return_tensors="pt")
    torch.manual_seed(1)
    model = DistilBertForSequenceClassification(DistilBertConfig(
        vocab_size=len(words), dim=64, hidden_dim=128, n_layers=2, n_heads=4, max_position_embeddings=512,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
    ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(5):
        for some in torch.randperm(len(which)).split(32):
            found = model(input_ids=ids.input_ids[some], attention_mask=ids.attention_mask[some], labels=which[some])
            optimizer.zero_grad()
            found.loss.backward()
            optimizer.step()
    model.save_pretrained(target)
    words.save_pretrained(target)


def run(job: str, *settings: str) -> None:
    """A night."""
    chosen = [*settings, *(f"engine.{one}" for one in SETTINGS), f"source.path={CORPUS}"]
    flags = (part for key in chosen for part in ("--set", key))
    result = invoke("run", ROOT / "jobs" / f"{job}.yaml", "--mode", "overwrite", *flags)
    assert result.exit_code == 0, result.output


def main() -> None:
    """All of them."""
    with tempfile.TemporaryDirectory(prefix="nightly-") as folder:
        os.chdir(folder)
        make_models()
        learn_sections(Path("models/sections"), "models/sentiment")
        for name, (job, model, settings, first, dark) in PICTURES.items():
            chosen = [f"task.model=models/{model}", f"output.path=results/{name}", *settings]
            run(job, *chosen, f"source.filter={first}")
            run(job, *chosen)
            target = ROOT / "batchnlp" / "report" / f"{name}.png"
            with Browser() as chromium:
                chromium.open(f"results/{name}/_report.html", WIDTH, dark=dark)
                target.write_bytes(chromium.picture(height=HEIGHT))
            subprocess.run(["pngquant", "--force", "--ext", ".png", "--nofs", str(COLOURS), target], check=True)
            sys.stderr.write(f"{target.name}: {target.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
