"""Tiny models that read: token classifiers and extractive readers, with three kinds of tokenizers.

`save_reader` draws their weights at random. `save_spotter` sets them by hand: it knows one name of four tokens, and knows
each of them only if it sees the name's other end in the same window, so that it finds nothing where a border cuts the name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

from jobs.models import train_tokenizer

SCRIPTS = [
    "Zoë Müller ate a naïve café crème in Ångström",
    "Zoe\u0308 Mu\u0308ller ate a nai\u0308ve cafe\u0301 in A\u030angstro\u0308m",  # the same, taken apart
    "東京都の山田太郎は2024年に北京大学へ行った。",
    "김철수는 서울에서 왔다",
    "שלום לכם, אני דוד מתל אביב",
    "هذا محمد من القاهرة\u200f.",
    "บ้านของสมชายอยู่ที่กรุงเทพ",
    "नमस्ते दिल्ली क्षत्रिय",
    "👩‍👩‍👧 met 👨🏽‍🚒 in 🇩🇪🇫🇷 with ❤️ and 😀",
    "a\u0301\u0302\u0303 b\u0331c",
    "ﬁne ½ ﷺ İstanbul Straße ǆ",
    " two  spaces,\ttabs\nand\u00a0lines ",
    "x",
]
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NAME = "Ada Lovelace King"  # ada love ##lace king
KINDS = ("wordpiece", "bytes", "unigram")


def save_tokenizer(path: Path, kind: str, limit: int) -> Any:
    """MiniLM's own (lower-casing, without accents); byte-level BPE that takes the space along; Unigram with NFKC and ▁."""
    if kind == "wordpiece":
        fast = AutoTokenizer.from_pretrained(tiny.minilm())
        fast.model_max_length = limit
    else:
        fast = PreTrainedTokenizerFast(
            tokenizer_object=_bytes() if kind == "bytes" else _unigram(), cls_token="<s>", sep_token="</s>",
            pad_token="<pad>", unk_token="<unk>", model_max_length=limit,
        )  # fmt: skip
    fast.save_pretrained(path)
    return fast


SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def _framed(tokenizer: Tokenizer) -> Tokenizer:
    frame = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=frame
    )
    return tokenizer


def _bytes() -> Tokenizer:
    return _framed(train_tokenizer(tiny.texts(200), 400, SPECIAL))


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([*tiny.texts(200), *SCRIPTS[:8]], trainer)
    return _framed(tokenizer)


def save_reader(
    path: Path, *, labels: Sequence[str] | None = BIO, kind: str = "wordpiece", limit: int = tiny.LIMIT, **more: Any
) -> str:
    """A token classifier for `labels`; an extractive reader without them."""
    fast = save_tokenizer(path, kind, limit)
    torch.manual_seed(17)
    sizes = {"hidden_size": tiny.HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(fast), max_position_embeddings=limit, initializer_range=0.4, pad_token_id=fast.pad_token_id,
        **(_labels(labels) if labels else {}), **(sizes | more),
    )  # fmt: skip
    (BertForTokenClassification if labels else BertForQuestionAnswering)(config).save_pretrained(path)
    return str(path)


def _labels(labels: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


@torch.no_grad()
def save_spotter(path: Path, *, answers: bool = False, limit: int = 512) -> str:
    """Finds `NAME`: as an entity PER, or as the answer to any question, else "not here"."""
    fast = save_tokenizer(path, "wordpiece", limit)
    config = BertConfig(
        vocab_size=len(fast), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=1,
        max_position_embeddings=limit, **({} if answers else _labels(BIO[:3])),
    )  # fmt: skip
    model = (BertForQuestionAnswering if answers else BertForTokenClassification)(config)
    for name, weights in model.named_parameters():
        weights.fill_(1 if name.endswith("LayerNorm.weight") else 0)
    name = fast(NAME, add_special_tokens=False)["input_ids"]
    assert len(name) == 4
    words = model.bert.embeddings.word_embeddings.weight
    words[:, 0] = 1  # dimension 0: any word; 1 to 4: those of the name; 6: [CLS]
    for dimension, token in (*enumerate(name, 1), (6, fast.cls_token_id)):
        words[token, 0], words[token, dimension] = 0, 1
    attention = model.bert.encoder.layer[0].attention
    query, key, value = (getattr(attention.self, part).weight for part in ("query", "key", "value"))
    query[0, 3:5] = query[1, 1:3] = 20  # its second half looks for the first word, its first half for the last
    key[0, 1] = key[1, 4] = 1
    value[5, 1] = value[5, 4] = 1  # dimension 5: found
    attention.output.dense.weight.copy_(torch.eye(16))
    if answers:
        model.qa_outputs.weight[0, [1, 5, 6]] = torch.tensor([10.0, 10, 12])
        model.qa_outputs.weight[1, [4, 5, 6]] = torch.tensor([10.0, 10, 12])
    else:
        model.classifier.weight[1, [1, 5]] = 10
        model.classifier.weight[2, 2:6] = 10
        model.classifier.bias.copy_(torch.tensor([0.0, -40, -34]))
    model.save_pretrained(path)
    return str(path)
