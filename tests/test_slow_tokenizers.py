"""Marian's tokenizer, which transformers has in Python only, does what it does there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

import batchnlp
from batchnlp.errors import MissingExtraError, SpecError
from batchnlp.text import slow
from batchnlp.text.encode import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Recommended")  # sacremoses, for a normaliser that is never called
ENGINE = {"device": "cpu", "dtype": "float32"}
TEXTS = ["the game server", "a small network tool", "fast"]


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Helsinki-NLP publishes them, but for its size: two sentencepiece models and a vocabulary."""
    import sentencepiece

    path = tmp_path_factory.mktemp("marian")
    (path / "corpus.txt").write_text("\n".join(tiny.texts(300)))
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(path / "corpus.txt"), model_prefix=str(path / side), vocab_size=80, minloglevel=2
        )
        (path / f"{side}.model").rename(path / f"{side}.spm")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path / "source.spm"))
    words = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
    names = dict.fromkeys(
        ["</s>", "<unk>", *[w for w in words if w not in ("<s>", "</s>", "<unk>")], ">>deu<<", "<pad>"]
    )
    (path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(names)}))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "MarianTokenizer", "model_max_length": 64})
    )
    config = MarianConfig(
        vocab_size=len(names), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, init_std=0.3,
        pad_token_id=len(names) - 1, eos_token_id=0, decoder_start_token_id=len(names) - 1, forced_eos_token_id=None,
    )  # fmt: skip
    MarianMTModel(config).save_pretrained(path)
    return path


def test_it_encodes_and_decodes_as_transformers_does(marian: Path) -> None:
    theirs, ours = MarianTokenizer.from_pretrained(marian), Tokenizer.load(str(marian))
    tokens = ours.encode(pa.array(TEXTS, pa.large_string()))
    runs = [run.tolist() for run in np.split(tokens.ids, tokens.starts[1:-1])]
    assert runs == [theirs(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert ours.single.after.tolist() == [theirs.eos_token_id]
    assert ours.decode(tokens.ids, tokens.starts) == [theirs.decode(run, skip_special_tokens=True) for run in runs]


def test_a_model_with_several_targets_needs_one(marian: Path) -> None:
    with pytest.raises(SpecError, match=r"task\.target_language is needed"):
        batchnlp.apply("translate", TEXTS, model=str(marian), engine=ENGINE)
    with pytest.raises(SpecError, match=r"knows no language 'de' \(did you mean deu\?\)"):
        batchnlp.apply("translate", TEXTS, model=str(marian), engine=ENGINE, target_language="de")
    got = batchnlp.apply(
        "translate", TEXTS, model=str(marian), engine=ENGINE, target_language="deu", max_new_tokens=4
    ).to_pylist()
    assert [row["error"] for row in got] == [None] * 3


def test_without_sentencepiece_the_extra_is_named(marian: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'batchnlp\[sentencepiece\]'"):
        batchnlp.apply("translate", TEXTS, model=str(marian), engine=ENGINE, target_language="deu")
