"""Models with weights set by hand, that answer with the place a text names, and with nothing where it names none.

A token is one number of its state. Attention finds the token of a place among whatever else is there and copies it to where the
head reads; a place that has been said ends the answer. So an answer comes from the text that the model was shown, and
from nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from jobs.models import train_tokenizer

LIMIT = 512  # tokens the models take
PLACES = ["Zanzibar", "Oslo", "Quito"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
EOS = 2


def save_tokenizer(path: Path, frame: str) -> Any:
    """Byte-level BPE in which each place is one token."""
    from tokenizers import processors

    tokenizer = train_tokenizer(tiny.texts(100), 300, SPECIAL)
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=[("</s>", EOS)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=LIMIT,
    )  # fmt: skip
    fast.add_tokens(PLACES)
    fast.save_pretrained(path)
    return fast


def zeroed(model: Any) -> Any:
    """All weights zero, but for the scales of norms."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0)
    return model


def save_t5(path: Path) -> str:
    """An encoder-decoder."""
    fast = save_tokenizer(path, "$A </s>")
    size, places = len(fast), fast.convert_tokens_to_ids(PLACES)
    config = T5Config(
        vocab_size=size, d_model=size, d_kv=size, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=1,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=EOS,
    )  # fmt: skip
    model = zeroed(T5ForConditionalGeneration(config))
    cross = model.decoder.block[0].layer[1].EncDecAttention
    with torch.no_grad():
        model.shared.weight.copy_(torch.eye(size))
        cross.q.weight[0, 0] = 1.0  # the first token asks for a place,
        cross.k.weight[0, places] = 1.0
        cross.k.weight[0, EOS] = 0.5  # and where there is none, for the end;
        cross.q.weight[1, places] = 1.0  # a place asks for the end
        cross.k.weight[1, EOS] = 1.0
        for token in (*places, EOS):
            cross.v.weight[token, token] = 1.0
        cross.o.weight.copy_(torch.eye(size))
    _save(model, path)
    return str(path)


def save_gpt2(path: Path) -> str:
    """A decoder alone."""
    fast = save_tokenizer(path, "")
    size, places = len(fast), fast.convert_tokens_to_ids(PLACES)
    # A token is read from the first half and said in the second; one number more says that there is nothing to say.
    wide = 2 * size + 2
    config = GPT2Config(
        vocab_size=size, n_positions=LIMIT, n_embd=wide, n_layer=1, n_head=1, n_inner=8, pad_token_id=0, bos_token_id=1,
        eos_token_id=EOS, tie_word_embeddings=False,
    )  # fmt: skip
    model = zeroed(GPT2LMHeadModel(config))
    attention = model.transformer.h[0].attn
    with torch.no_grad():
        model.transformer.wte.weight[:, :size] = torch.eye(size)
        query, key, value = attention.c_attn.weight.split(wide, 1)
        query[:size, 0] = 1.0  # every token asks, but a place that has been said
        query[places, 0] = 0.0
        key[places, 0] = 1.0
        for place in places:
            value[place, size + place] = 1.0
        attention.c_proj.weight.copy_(torch.eye(wide))
        model.transformer.ln_f.bias[2 * size] = 1.0
        model.lm_head.weight[:, size : 2 * size] = torch.eye(size)
        model.lm_head.weight[EOS, 2 * size] = 5.0
        model.lm_head.weight[EOS, places] = 100.0
    _save(model, path)
    return str(path)


def _save(model: Any, path: Path) -> None:
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, 0
    model.save_pretrained(path)
