"""Useful tokens a second: in flight, beside generate() in static batches and generate_batch. Side by side, in one run.

    in flight       ours: rows enter and leave one by one
    static          model.generate on batches of 32 in the order of the prompts, each until its longest answer is done
    generate_batch  transformers' continuous batching (decoder-only models)

A model of random weights and no end token; how long each answer becomes is drawn beforehand, log-normal from 4 to 128
tokens, so that all contenders write the same number. Prompts are drawn too. Useful: tokens of answers, none after an
answer's end.

python benchmarks/generation.py [--shape llama|bart] [--prompts 96] [--rounds 2] [--dtype float32|bfloat16]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from common import finish

from batchnlp.backends.device import probe_hardware
from batchnlp.backends.in_flight import InFlight
from batchnlp.backends.torch_generator import TorchGenerator
from batchnlp.types import Decoding, ModelFiles, Pieces, Resolved

SHORTEST, LONGEST = 4, 128
PROMPT = (8, 256)  # tokens


def build(shape: str, dtype: torch.dtype) -> Any:
    """A 124 M decoder (576 wide, 30 layers, 9 heads over 3), or the shape of BART-base."""
    from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if shape == "llama":
        config = LlamaConfig(
            vocab_size=16_000, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, tie_word_embeddings=True, bos_token_id=0, eos_token_id=None, pad_token_id=1,
            max_position_embeddings=1024,
        )  # fmt: skip
        return LlamaForCausalLM(config).to(dtype).eval()
    config = BartConfig(
        vocab_size=16_000, d_model=768, encoder_layers=6, decoder_layers=6, encoder_ffn_dim=3072, decoder_ffn_dim=3072,
        encoder_attention_heads=12, decoder_attention_heads=12, max_position_embeddings=1024, eos_token_id=None,
        forced_eos_token_id=None, pad_token_id=1, bos_token_id=0, decoder_start_token_id=2,
    )  # fmt: skip
    return BartForConditionalGeneration(config).to(dtype).eval()


class Work:
    """Prompts, and how long each answer is to be."""

    def __init__(self, count: int) -> None:
        rng = np.random.RandomState(0)
        lengths = np.clip(rng.lognormal(4.1, 0.6, count).astype(int), *PROMPT)
        self.prompts = [rng.randint(5, 16_000, n).tolist() for n in lengths]
        self.most = np.clip(rng.lognormal(3.3, 0.8, count).astype(int), SHORTEST, LONGEST)
        self.useful = int(self.most.sum())

    def pieces(self) -> Pieces:
        """As a task would hand them over."""
        n = len(self.prompts)
        starts = np.concatenate([[0], np.cumsum([len(p) for p in self.prompts])]).astype(np.int64)
        ids = np.concatenate([np.array(p, np.int32) for p in self.prompts])
        return Pieces(
            ids, starts, np.arange(n, dtype=np.int32), np.ones(n, np.int32), max_new=self.most.astype(np.int32)
        )


def static(model: Any, work: Work, size: int = 32) -> None:
    """As the documentation shows it."""
    for start in range(0, len(work.prompts), size):
        batch = work.prompts[start : start + size]
        longest = max(map(len, batch))
        pads = [longest - len(p) for p in batch]
        right = model.config.is_encoder_decoder
        ids = torch.tensor([p + [1] * n if right else [1] * n + p for p, n in zip(batch, pads, strict=True)])
        new = int(work.most[start : start + size].max())
        mask = torch.tensor([[1] * len(p) + [0] * n if right else [0] * n + [1] * len(p)
                             for p, n in zip(batch, pads, strict=True)])  # fmt: skip
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False,
                       pad_token_id=1)  # fmt: skip


def continuous(model: Any, work: Work) -> None:
    """transformers' continuous batching, in waves of prompts whose answers are of one length class."""
    from transformers import GenerationConfig

    order = np.argsort(work.most)
    for wave in np.array_split(order, 4):
        config = GenerationConfig(
            max_new_tokens=int(work.most[wave].max()), do_sample=False, eos_token_id=-1, pad_token_id=1
        )
        model.generate_batch([work.prompts[i] for i in wave], generation_config=config, progress_bar=False)


def timed(run: Callable[[], Any]) -> float:
    """Seconds."""
    began = perf_counter()
    run()
    return perf_counter() - began


def main() -> None:
    """Alternate the contenders and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["llama", "bart"], default="llama")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--no-batch", action="store_true", help="leave generate_batch out")
    args = parser.parse_args()
    hardware = probe_hardware()
    dtype = args.dtype if args.dtype != "auto" else "bfloat16" if hardware.fast_bfloat16 else "float32"
    work = Work(args.prompts)
    with tempfile.TemporaryDirectory() as folder:
        model = build(args.shape, getattr(torch, dtype))
        model.save_pretrained(folder)
        files = ModelFiles("bench", folder, "local", "", "", json.loads(Path(folder, "config.json").read_text()), 1024)
        ours = TorchGenerator(
            files, Resolved("cpu", dtype, "torch", 4096, ""), "completions", hardware.cpus,
            Decoding(max_new_tokens=LONGEST),
        )  # fmt: skip
        assert isinstance(ours.engine, InFlight), ours.note
        contenders: dict[str, Callable[[], Any]] = {
            "in_flight": lambda: ours.forward(work.pieces()), "static_32": lambda: static(model, work),
        }  # fmt: skip
        if args.shape == "llama" and not args.no_batch:
            contenders["generate_batch"] = lambda: continuous(model, work)
        ours.forward(work.pieces())  # pays for allocations
        before = ours.engine.row_steps
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for i in range(args.rounds):
            for name, run in contenders.items():
                seconds[name].append(timed(run))
                print(f"round {i + 1}: {name:15} {work.useful / seconds[name][-1]:8.1f} useful tokens/s", flush=True)
        steps = (ours.engine.row_steps - before) / args.rounds
    found: dict[str, Any] = {name: work.useful / median(times) for name, times in seconds.items()}
    found |= {
        "shape": args.shape, "dtype": dtype, "prompts": args.prompts, "useful_tokens": work.useful,
        "steps_over_useful": steps / (work.useful - args.prompts),
        "over_static": found["in_flight"] / found["static_32"],
    }  # fmt: skip
    floors = {"over_static": (">=", 3.0), "steps_over_useful": ("<=", 1.05)}
    if "generate_batch" in found:
        found["over_generate_batch"] = found["in_flight"] / found["generate_batch"]
        floors["over_generate_batch"] = (">=", 1.0)
    finish("generation", found, floors)


if __name__ == "__main__":
    main()
