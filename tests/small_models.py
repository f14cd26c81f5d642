"""A model of each architecture that generation is tested with: two layers, random, wide enough to differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as t

from batchnlp.types import ModelFiles, Pieces

VOCABULARY = 200
POSITIONS = 128
EOS = 7

_LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": POSITIONS, "initializer_range": 0.3,
}  # fmt: skip
_GROUPED = {**_LLAMA, "num_key_value_heads": 2}
_BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": POSITIONS,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "init_std": 0.3,
}  # fmt: skip
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2,
    "num_heads": 4, "decoder_start_token_id": 0, "initializer_factor": 3.0,
}  # fmt: skip
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}

MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**_GPT2, initializer_range=0.3)),
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**_GROUPED)),
    "qwen": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**_GROUPED)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**_GROUPED, sliding_window=8)),
    "gemma": lambda: t.GemmaForCausalLM(t.GemmaConfig(**_LLAMA, num_key_value_heads=1, head_dim=8)),
    "gpt-neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**_LLAMA)),
    "phi": lambda: t.PhiForCausalLM(t.PhiConfig(**_LLAMA)),
    "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**_BART)),
    "pegasus": lambda: t.PegasusForConditionalGeneration(t.PegasusConfig(**_BART)),
    "marian": lambda: t.MarianMTModel(t.MarianConfig(**_BART)),
    "m2m-100": lambda: t.M2M100ForConditionalGeneration(t.M2M100Config(**_BART)),
    "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**_T5)),
    "umt5": lambda: t.UMT5ForConditionalGeneration(t.UMT5Config(**_T5)),
    # Soft caps low enough to be felt, and a window in every other layer.
    "gemma2": lambda: t.Gemma2ForCausalLM(
        t.Gemma2Config(
            **_LLAMA,
            num_key_value_heads=2,
            head_dim=8,
            attn_logit_softcapping=0.5,
            final_logit_softcapping=20.0,
            sliding_window=8,
            query_pre_attn_scalar=8,
        )
    ),
    # Positions inside the attention, which packed tokens do not allow: static batches.
    "bloom": lambda: t.BloomForCausalLM(
        t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    ),
}

# Beyond 32 positions all are turned otherwise, those before included: by the longest row of a call.
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 32, "factor": 4.0,
    "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
}  # fmt: skip


def longrope() -> Any:
    """As the long Phi models."""
    torch.manual_seed(3)
    model = t.LlamaForCausalLM(t.LlamaConfig(**_GROUPED, rope_parameters=LONGROPE)).eval()
    model.generation_config.eos_token_id = EOS
    return model


def make(name: str, **generation: Any) -> Any:
    """The model, with an end token and what else its generation_config is to say."""
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    for key, value in {"eos_token_id": EOS, "pad_token_id": 1, **generation}.items():
        setattr(model.generation_config, key, value)
    return model


def save(model: Any, path: Path) -> ModelFiles:
    """The model on disk, as the planner would have found it."""
    model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    return ModelFiles("small", str(path), "local", "weights", "tokenizer", config, POSITIONS)


def prompts(count: int, longest: int = 60, head: int = 0, seed: int = 0) -> list[list[int]]:
    """Random prompts; all begin with the same `head` tokens."""
    rng = np.random.RandomState(seed)
    begin = rng.randint(8, VOCABULARY, head).tolist()
    return [begin + rng.randint(8, VOCABULARY, rng.randint(1, longest)).tolist() for _ in range(count)]


def pieces(of: Sequence[Sequence[int]], **columns: Any) -> Pieces:
    """Prompts as a task would hand them over."""
    n = len(of)
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in of])]).astype(np.int64)
    ids = np.concatenate([np.array(p, np.int32) for p in of]) if n else np.empty(0, np.int32)
    return Pieces(ids, starts, np.arange(n, dtype=np.int32), np.ones(n, np.int32), **columns)


def alone(model: Any, prompt: Sequence[int], max_new: int, **more: Any) -> list[int]:
    """What transformers' own generate answers to one prompt by itself, the end token left off."""
    out = model.generate(torch.tensor([prompt]), max_new_tokens=max_new, do_sample=False, **more)[0].tolist()
    new = out[1:] if model.config.is_encoder_decoder else out[len(prompt) :]
    return new[: new.index(EOS)] if EOS in new else new
