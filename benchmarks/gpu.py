"""All GPU scenarios in one process, inline, within ten minutes: no Ray, no data sets, no package with a model is needed.

    python benchmarks/gpu.py [--minutes 9] [--tiny] [--only NAME,NAME]

Models are built from configs, with random weights; the corpus is jobs/data's, each text over and over with a number of its
own, and the tokenizer is trained on it. Scenarios go in the order of their weight; those that there is no time for are named.
`--tiny` runs all of it at the smallest size, on a CPU too. The last line is one JSON object; exit 1 below a floor.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from contenders.generate import Generate
from contenders.in_flight import Ours as InFlight
from contenders.ours import Ours
from contenders.parts_of_ours import Half
from contenders.pipeline import Pipeline
from harness import environment
from harness.contender import Facts, measure
from harness.prompts import Prompts
from harness.scenario import Floor

ROUNDS = 3
CORPUS = Path(__file__).parents[1] / "jobs" / "data" / "python-docs.parquet"
SHAPES: dict[str, dict[str, int]] = {
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "llama-0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                   "intermediate_size": 4864, "vocab_size": 151_936},
    "llama-8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "intermediate_size": 14_336, "vocab_size": 128_256},
}  # fmt: skip
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


@dataclass(frozen=True, slots=True)
class Where:
    """What all scenarios are run with."""

    folder: Path
    device: str
    dtype: str
    threads: int
    tiny: bool

    def setup(self, work: Facts, **settings: Any) -> Facts:
        """A setup as the harness hands it to a contender."""
        device = {"device": self.device}
        return {
            "work": work,
            "settings": settings,
            "threads": self.threads,
            "dtype": self.dtype,
            "fresh": False,
        } | device


def encoder(where: Where, shape: str, docs: int) -> Iterator[tuple[str, float, Floor | None]]:
    """(metric, value, floor): a classifier from Parquet to Parquet, beside its own two halves and the pipeline."""
    work = encoder_work(where, shape, docs)
    forward = alternate({"forward": Half(where.setup(work, part="forward"))})["forward"]
    yield f"{shape} forward docs/s", rate(forward), None
    yield f"{shape} share of the matmul peak", median(f["matmul_share"] for f in forward), Floor(min=0.60)
    yield f"{shape} executed / real tokens", forward[-1]["executed_over_real"], Floor(max=1.02)
    if shape != "bert-base":
        return
    tokenizer = alternate({"tokenizer": Half(where.setup(work, part="tokenizer"))})["tokenizer"]
    yield f"{shape} tokenizer docs/s", rate(tokenizer), None
    both = alternate(
        {"ours": Ours(where.setup(work)), "pipeline": Pipeline(where.setup(work))}, {"pipeline": {"batch": 32}}
    )
    yield f"{shape} end to end docs/s", rate(both["ours"]), None
    yield f"{shape} end to end / limit", rate(both["ours"]) / min(rate(forward), rate(tokenizer)), Floor(min=0.95)
    yield f"{shape} end to end / pipeline(32)", ratio(both["ours"], both["pipeline"]), Floor(min=4)


def decoder(where: Where, shape: str, prompts: int, share: float) -> Iterator[tuple[str, float, Floor | None]]:
    """The same for writing: beside the bandwidth's limit, and `generate` in batches of answers of like length."""
    work = decoder_work(where, shape, prompts)
    ours = alternate({"ours": InFlight(where.setup(work, tokens_per_batch=16_384))})["ours"]
    yield f"{shape} useful tokens/s", rate(ours), None
    yield (
        f"{shape} share of the bandwidth limit",
        median(f["limit_seconds"] / f["seconds"] for f in ours),
        Floor(min=share),
    )
    yield f"{shape} row-steps / useful", ours[-1]["steps_over_useful"], Floor(max=1.05)
    settings = {"way": "static", "sorted": True, "batch": 64}
    static = alternate({"static": Generate(where.setup(work, **settings))}, {"static": settings}, rounds=1)["static"]
    yield f"{shape} / generate sorted static", ratio(ours, static), Floor(min=5)


def alternate(
    contenders: dict[str, Any], settings: dict[str, Facts] | None = None, rounds: int = ROUNDS
) -> dict[str, list[Facts]]:
    """The facts of each contender's rounds, one after the other; the models go with the dictionary."""
    settings = settings or {}
    found: dict[str, list[Facts]] = {name: [] for name in contenders}
    for name, contender in contenders.items():
        measure(contender, settings.get(name, {}), sample=True)
    for _ in range(rounds):
        for name, contender in contenders.items():
            found[name].append(measure(contender, settings.get(name, {}), sample=False))
    contenders.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def rate(rounds: list[Facts]) -> float:
    """The median of the rounds."""
    return float(median(facts["rate"] for facts in rounds))


def ratio(ours: list[Facts], theirs: list[Facts]) -> float:
    """The median of the pairs' ratios, or of the medians where the one had fewer rounds."""
    if len(ours) != len(theirs):
        return rate(ours) / rate(theirs)
    return float(median(a["rate"] / b["rate"] for a, b in zip(ours, theirs, strict=True)))


def encoder_work(where: Where, shape: str, docs: int) -> Facts:
    """Corpus, tokenizer and model."""
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    texts = pq.read_table(CORPUS)["text"].to_pylist()
    path = where.folder / shape
    tokenizer = train(texts)
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), num_labels=3, **(TINY if where.tiny else SHAPES[shape]))
    build(lambda: BertForSequenceClassification(config), where, path)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(path)
    for name, count in (("corpus", docs), ("sample", min(docs, 256))):
        ids = [f"d{i}" for i in range(count)]
        rows = [f"{i} {texts[i % len(texts)]}" for i in range(count)]
        pq.write_table(pa.table({"package": ids, "text": rows}), where.folder / f"{name}.parquet")
    corpus, sample = str(where.folder / "corpus.parquet"), str(where.folder / "sample.parquet")
    return {"corpus": corpus, "sample": sample, "path": str(path), "task": {"kind": "classify", "model": str(path)}}


def train(texts: list[str]) -> Any:
    """A WordPiece tokenizer."""
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import BertProcessing

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=8000, show_progress=False)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    inner = tokenizer._tokenizer
    inner.post_processor = BertProcessing(*ids)
    return inner


def decoder_work(where: Where, shape: str, prompts: int) -> Facts:
    """Prompts and model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {**TINY, "num_key_value_heads": 2, "vocab_size": 512} if where.tiny else SHAPES[shape]
    config = LlamaConfig(**sizes, eos_token_id=None, bos_token_id=0, pad_token_id=1, max_position_embeddings=1024)
    path = where.folder / shape
    build(lambda: LlamaForCausalLM(config), where, path)
    longest = 16 if where.tiny else 128
    files = {"prompts": prompts, "sample_prompts": max(prompts // 8, 4)}
    drawn = {key: Prompts.draw(n, min(config.vocab_size, 16_000), longest) for key, n in files.items()}
    return {key: one.write(where.folder / f"{shape}-{key}.npz") for key, one in drawn.items()} | {"path": str(path)}


def build(make: Callable[[], Any], where: Where, path: Path) -> None:
    """A model on the device, where it is made fastest, saved in its dtype."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, where.dtype))
    try:
        with torch.device(where.device):
            make().save_pretrained(path)
    finally:
        torch.set_default_dtype(before)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def scenarios(where: Where) -> dict[str, Callable[[], Iterator[tuple[str, float, Floor | None]]]]:
    """In the order of their weight."""
    docs, prompts = (96, 8) if where.tiny else (20_000, 512)
    return {
        "bert-base": lambda: encoder(where, "bert-base", docs),
        "llama-0.5b": lambda: decoder(where, "llama-0.5b", prompts, 0.35),
        "bert-large": lambda: encoder(where, "bert-large", docs),
        "llama-8b": lambda: decoder(where, "llama-8b", prompts, 0.60),
    }


def main() -> int:
    """All scenarios that there is time for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="no scenario begins after this time")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", help="these scenarios, separated by commas")
    args = parser.parse_args()
    began, facts = monotonic(), environment.capture()
    if not facts["gpu"] and not args.tiny:
        raise SystemExit("there is no GPU here; --tiny shows on a CPU that everything runs")
    device = "cuda" if facts["gpu"] else "cpu"
    metrics, missed, reasons = {}, [], {}
    with tempfile.TemporaryDirectory() as folder:
        where = Where(
            Path(folder), device, "bfloat16" if facts["fast_bfloat16"] else "float32", facts["usable"], args.tiny
        )
        for name, run in scenarios(where).items():
            if args.only and name not in args.only.split(","):
                continue
            if monotonic() - began > 60 * args.minutes:
                reasons[name] = "no time was left"
                continue
            try:
                for metric, value, floor in run():
                    metrics[metric] = value
                    word = "" if floor is None else f"{floor!s:9} {'ok' if floor.holds(value) else 'MISSED'}"
                    missed += [metric] if floor is not None and not floor.holds(value) else []
                    print(f"{metric:44} {value:14.5g}  {word}", flush=True)
            except Exception as error:  # noqa: BLE001 - the other scenarios are worth the rented minutes all the same
                reasons[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                print(f"{name}: {reasons[name]}", flush=True)
    tree = {"benchmark": "gpu", "metrics": metrics, "missed": missed, "not_run": reasons, "environment": facts}
    print(json.dumps({**tree, "seconds": monotonic() - began, "tiny": args.tiny}))
    return 1 if missed or reasons else 0


if __name__ == "__main__":
    sys.exit(main())
