"""An encoder of each architecture that batches are tested with: two layers, random, wide enough to differ.

All of them read MiniLM's tokenizer, so that a whole job can be run; what each model makes of positions, padding and segment ids
is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers as t

VOCABULARY = 30_522
_SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "initializer_range": 0.3, "max_position_embeddings": tiny.LIMIT, "pad_token_id": 0,
}  # fmt: skip
# Positions begin after the padding token's id, and published models of this family have no segments.
_ROBERTA = {**_SIZES, "max_position_embeddings": tiny.LIMIT + 2, "pad_token_id": 1, "type_vocab_size": 1}

CONFIGS: dict[str, Callable[..., Any]] = {
    "bert": lambda **more: t.BertConfig(**_SIZES, **more),
    "roberta": lambda **more: t.RobertaConfig(**_ROBERTA, **more),
    "xlm-roberta": lambda **more: t.XLMRobertaConfig(**_ROBERTA, **more),
    "camembert": lambda **more: t.CamembertConfig(**_ROBERTA, **more),
    "distilbert": lambda **more: t.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=tiny.LIMIT,
        initializer_range=0.3, **more,
    ),
    "electra": lambda **more: t.ElectraConfig(**_SIZES, embedding_size=16, **more),
    "albert": lambda **more: t.AlbertConfig(**_SIZES, embedding_size=16, **more),
    "deberta-v2": lambda **more: t.DebertaV2Config(  # as v3: relative positions, with buckets, and no others
        **_SIZES, relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, **more,
    ),
    "mpnet": lambda **more: t.MPNetConfig(**{**_SIZES, "max_position_embeddings": tiny.LIMIT + 2, "pad_token_id": 1}, **more),
    "modernbert": lambda **more: t.ModernBertConfig(
        **_SIZES, global_attn_every_n_layers=2, local_attention=8, bos_token_id=101, cls_token_id=101,
        eos_token_id=102, sep_token_id=102, **more,
    ),
}  # fmt: skip
# Not among those that every test goes through: without a mask for what they do beside attention, and with a head that wants
# the end token.
CONFIGS_UNMASKED: dict[str, Callable[..., Any]] = {
    "convbert": lambda **more: t.ConvBertConfig(**_SIZES, embedding_size=32, **more),
    "nystromformer": lambda **more: t.NystromformerConfig(**_SIZES, **more),
    "fnet": lambda **more: t.FNetConfig(**{k: v for k, v in _SIZES.items() if k != "num_attention_heads"}, **more),
}
BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.3, "eos_token_id": 102,
    "max_position_embeddings": tiny.LIMIT, "pad_token_id": 0, "bos_token_id": 101, "decoder_start_token_id": 102,
    "forced_eos_token_id": None,
}  # fmt: skip
HEADS = {
    "scores": t.AutoModelForSequenceClassification, "vectors": t.AutoModel,
    "token_scores": t.AutoModelForTokenClassification, "span_scores": t.AutoModelForQuestionAnswering,
}  # fmt: skip
SEGMENTS = ("bert", "electra", "albert")  # those that tell a second text from the first
ONE_SEGMENT = ("roberta", "xlm-roberta", "camembert")  # fail on any other, which their own tokenizers never give


def save(name: str, kind: str, path: Path) -> Any:
    """The model on disk, with its tokenizer; returned as transformers loads it."""
    torch.manual_seed(11)
    labels = (
        {} if kind in ("vectors", "span_scores") else {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
    )
    config = {**CONFIGS, **CONFIGS_UNMASKED, "bart": lambda **more: t.BartConfig(**BART, **more)}[name](**labels)
    HEADS[kind].from_config(config).save_pretrained(path)
    tiny.save_tokenizer(path)
    return HEADS[kind].from_pretrained(path).eval()
