"""Small stand-ins for the models that the jobs name, so that every job runs without a hub: `make models`.

Each is built from a config, with random weights and a tokenizer trained on the quickstart corpus: what it says means nothing,
but it has the shape of the original, and goes the same way through batchnlp. `--set task.model=models/NAME` uses one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CORPUS = Path(__file__).parent / "data" / "python-docs.parquet"
VOCABULARY = 2_000
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEQ2SEQ = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "init_std": 0.1, "decoder_start_token_id": 2,
}  # fmt: skip
DECODER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 2, "initializer_range": 0.1}  # fmt: skip
ENCODER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
           "initializer_range": 0.2}  # fmt: skip
NAMES = [f"{part}-{kind}" for kind in ("MISC", "PER", "ORG", "LOC") for part in "BI"]
CLASSIFIER = {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "initializer_range": 0.2}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
      "task_specific_params": {"summarization": {"prefix": "summarize: "}}}  # fmt: skip


def labels(*names: str) -> dict[str, Any]:
    """The labels of a classifier, of texts or of tokens."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


# name → (what it stands for, model class, config class, config, special tokens around a text, positions)
STAND_INS: dict[str, tuple[str, str, str, dict[str, Any], str, int]] = {
    "bart": ("facebook/bart-large-cnn", "BartForConditionalGeneration", "BartConfig", SEQ2SEQ, "<s> $A </s>", 1024),
    "t5": ("google-t5/t5-small", "T5ForConditionalGeneration", "T5Config", T5, "$A </s>", 512),
    "marian": ("Helsinki-NLP/opus-mt-en-de", "MarianMTModel", "MarianConfig", SEQ2SEQ, "$A </s>", 512),
    "gpt2": ("gpt2", "GPT2LMHeadModel", "GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4}, "$A", 1024),
    "qwen": ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2ForCausalLM", "Qwen2Config", DECODER, "$A", 2048),
    "sentiment": (
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english", "DistilBertForSequenceClassification",
        "DistilBertConfig", CLASSIFIER | labels("NEGATIVE", "POSITIVE"), "<s> $A </s>", 512,
    ),
    "spam": (
        "mrm8488/bert-tiny-finetuned-sms-spam-detection", "DistilBertForSequenceClassification", "DistilBertConfig",
        CLASSIFIER | labels("ham", "spam"), "<s> $A </s>", 512,
    ),
    "ner": (
        "dslim/bert-base-NER", "BertForTokenClassification", "BertConfig", ENCODER | labels("O", *NAMES), "<s> $A </s>", 512,
    ),
    "qa": (
        "deepset/roberta-base-squad2", "RobertaForQuestionAnswering", "RobertaConfig", ENCODER, "<s> $A </s>", 512,
    ),
}  # fmt: skip


def train_tokenizer(texts: Iterable[str], size: int, special: Sequence[str]) -> Tokenizer:
    """Byte-level BPE of `size` tokens, the special ones first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build(name: str, target: Path, tokenizer: Tokenizer) -> None:
    """One stand-in."""
    _, model, config, sizes, frame, positions = STAND_INS[name]
    used = [(token, SPECIAL.index(token)) for token in frame.split() if token != "$A"]
    pair = f"{frame} </s> $B </s>" if frame == "<s> $A </s>" else None  # as BART and RoBERTa have it
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, pair=pair, special_tokens=used)
    end = "<|im_end|>" if name == "qwen" else "</s>"
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=end, pad_token="<pad>", unk_token="<unk>",
        model_max_length=positions,
    )  # fmt: skip
    fast.chat_template = CHAT if name == "qwen" else None
    fast.save_pretrained(target)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": SPECIAL.index(end)}
    limit = {} if name == "t5" else {"n_positions" if name == "gpt2" else "max_position_embeddings": positions}
    torch.manual_seed(1)
    made = getattr(tf, config)(vocab_size=tokenizer.get_vocab_size(), **ids, **limit, **sizes)
    getattr(tf, model)(made).save_pretrained(target)


def main(target: str = "models") -> None:
    """All of them, below `target`."""
    tf.utils.logging.disable_progress_bar()
    texts = pq.read_table(CORPUS, columns=["text"])["text"].to_pylist()
    tokenizer = train_tokenizer(texts, VOCABULARY, SPECIAL)
    for name, (original, *_) in STAND_INS.items():
        build(name, Path(target) / name, tokenizer)
        sys.stdout.write(f"{target}/{name} stands for {original}\n")


if __name__ == "__main__":
    main(*sys.argv[1:2])
