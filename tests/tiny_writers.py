"""Tiny models that write: GPT-2, a Llama with a chat template, BART, T5, and one with language codes.

Their tokenizer is byte-level BPE, trained on the words of `tiny`; their weights are random, and wide enough that answers
differ from text to text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from tokenizers import processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from jobs.models import train_tokenizer

POSITIONS = 96
VOCABULARY = 400
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LANGUAGES = ["eng_Latn", "deu_Latn", "fra_Latn"]


def save_tokenizer(path: Path, *, frame: str = "", chat: str | None = None, more: list[str] | None = None) -> Any:
    """Byte-level BPE; `frame` is the template around a text, as "<s> $A </s>"."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", *(more or [])]
    tokenizer = train_tokenizer(tiny.texts(200), VOCABULARY, special)
    if frame:
        names = [(name, tokenizer.token_to_id(name)) for name in frame.split() if name != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=names)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=POSITIONS, additional_special_tokens=more or None,
    )  # fmt: skip
    fast.chat_template = chat
    fast.save_pretrained(path)
    return fast


def _ids(fast: Any) -> dict[str, int]:
    return {
        "vocab_size": len(fast), "pad_token_id": fast.pad_token_id, "bos_token_id": fast.bos_token_id,
        "eos_token_id": fast.eos_token_id,
    }  # fmt: skip


def save_gpt2(path: Path) -> str:
    fast = save_tokenizer(path)
    torch.manual_seed(3)
    config = GPT2Config(n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4, **_ids(fast))
    GPT2LMHeadModel(config).save_pretrained(path)
    return str(path)


def save_llama(path: Path, chat: str | None = CHAT) -> str:
    fast = save_tokenizer(path, frame="<s> $A", chat=chat)
    torch.manual_seed(5)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=POSITIONS, initializer_range=0.3, **_ids(fast),
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def save_bart(path: Path) -> str:
    fast = save_tokenizer(path, frame="<s> $A </s>")
    torch.manual_seed(9)
    config = BartConfig(
        **_ids(fast), decoder_start_token_id=fast.eos_token_id, forced_eos_token_id=None, **_sizes(), init_std=0.3
    )
    BartForConditionalGeneration(config).save_pretrained(path)
    return str(path)


def save_t5(path: Path) -> str:
    fast = save_tokenizer(path, frame="$A </s>")
    torch.manual_seed(9)
    params = {
        "summarization": {"prefix": "summarize: "},
        "translation_en_to_de": {"prefix": "translate English to German: "},
        "translation_en_to_fr": {"prefix": "translate English to French: "},
    }
    config = T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=fast.pad_token_id,
        initializer_factor=4.0, task_specific_params=params, **_ids(fast),
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(path)
    return str(path)


def save_coded(path: Path) -> str:
    """As NLLB: the source language's token before the text, the target language's forced at the answer's start."""
    fast = save_tokenizer(path, frame="eng_Latn $A </s>", more=LANGUAGES)
    torch.manual_seed(9)
    config = M2M100Config(**_ids(fast), decoder_start_token_id=fast.eos_token_id, **_sizes(), init_std=0.3)
    M2M100ForConditionalGeneration(config).save_pretrained(path)
    return str(path)


def _sizes() -> dict[str, int]:
    return {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": POSITIONS,
    }  # fmt: skip
