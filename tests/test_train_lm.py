"""Language models: blocks without padding in which no document sees another, and honest numbers on held-out text."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_writers
import torch
from commands import QUICK, invoke, rows_of
from learning import record, rows, train, write
from transformers import AutoModelForCausalLM

from batchnlp.errors import ModelError
from batchnlp.job.train import TrainSpec
from batchnlp.text.encode import offsets
from batchnlp.train.examples import NOTHING
from batchnlp.train.lm import LanguageModel, check_packing, packed, whole


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rows") / "rows.parquet", rows())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "t"
    assert train("tokenizer", source, out, "vocab_size=320").exit_code == 0
    return out


def documents(count: int, longest: int, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(2, longest, count)
    return draw.integers(3, 300, lengths.sum()).astype(np.int32), offsets(lengths)


# --- tokenizers


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_a_tokenizer_is_judged_on_texts_it_has_not_seen(algorithm: str, tmp_path: Path, source: Path) -> None:
    from transformers import AutoTokenizer

    size = 320 if algorithm == "bpe" else 90
    result = train("tokenizer", source, tmp_path / "t", f"vocab_size={size}", f"algorithm={algorithm}",
                   "normalization=lower", "special_tokens=[<|x|>]")  # fmt: skip
    tree = record(result)
    found = tree["result"]["metrics"]["test"]
    assert tree["result"]["vocab_size"] <= size
    assert 1 < found["bytes_per_token"] < 8
    assert found["unknown_share"] == 0 or algorithm != "bpe"
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    ids = loaded("The PACKAGE <|x|>")["input_ids"]
    assert loaded.convert_tokens_to_ids("<|x|>") in ids
    if algorithm == "bpe":
        assert loaded.decode(ids) == "the package <|x|>"
    assert loaded.pad_token_id == 0


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path: Path, source: Path) -> None:
    result = train("tokenizer", source, tmp_path / "t", "vocab_size=100")
    assert result.exit_code == 2
    assert "has no room for all bytes (at least 260 for bpe)" in result.stderr


# --- packing


def test_blocks_are_full_and_hold_every_token_once() -> None:
    flat, starts = documents(40, 50)
    found = packed(flat, starts, 16, 0, seed=1)
    assert set(found.inputs.lengths.tolist()) == {16}
    padding = dict(found.counts)["padding"]
    assert len(found.inputs.flat) == len(flat) + padding
    assert 0 <= padding < 16
    assert sorted(found.inputs.flat[: len(flat)].tolist()) == sorted(flat.tolist())
    assert found.positions is not None
    assert found.targets is not None
    begins = found.positions.flat == 0
    assert (found.targets.flat[begins] == NOTHING).all(), "nobody has to guess what another document goes on with"
    assert begins[::16].all(), "positions begin anew with every block"
    judged = found.targets.flat != NOTHING
    assert (found.targets.flat[judged] == found.inputs.flat[judged]).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_packed_document_is_learnt_as_if_it_were_alone(kind: str, request: pytest.FixtureRequest) -> None:
    """Logits and gradients of a block against those of its documents one at a time."""
    path = request.getfixturevalue(kind)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    spec = TrainSpec.model_validate({"kind": "lm", "model": path, "source": {"path": "x"}, "output": {"path": "y"}})
    flat, starts = documents(6, 12)
    examples = packed(flat, starts, 32, 0, seed=1)
    tensors = LanguageModel(spec).tensors(examples, np.arange(len(examples)))
    assert "attention_mask" not in tensors
    together = model(**tensors, use_cache=False).logits
    losses = []
    ids, labels, positions = (tensors[name] for name in ("input_ids", "labels", "position_ids"))
    for block in range(len(ids)):
        borders = [*torch.nonzero(positions[block] == 0).flatten().tolist(), ids.shape[1]]
        for begin, end in itertools.pairwise(borders):
            alone = model(input_ids=ids[block : block + 1, begin:end], use_cache=False).logits
            torch.testing.assert_close(together[block, begin:end], alone[0], atol=2e-5, rtol=1e-4)
            if (labels[block, begin + 1 : end] != NOTHING).any():
                losses.append(torch.nn.functional.cross_entropy(
                    alone[0, :-1], labels[block, begin + 1 : end], ignore_index=NOTHING, reduction="sum"
                ))  # fmt: skip
    items = (labels[:, 1:] != NOTHING).sum()
    loss = model(**tensors, use_cache=False, num_items_in_batch=items).loss
    torch.testing.assert_close(loss, torch.stack(losses).sum() / items, atol=1e-4, rtol=1e-5)


def test_a_model_that_mixes_packed_documents_is_refused(gpt2: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.float32)
    check_packing(model)
    inner = model.forward
    model.forward = lambda position_ids=None, **more: inner(**more)  # as an architecture that does not heed them
    with pytest.raises(ModelError, match="mixes documents that are packed"):
        check_packing(model)


def test_held_out_documents_are_judged_token_by_token() -> None:
    flat, starts = documents(30, 60)
    found = whole(flat, starts, 16, 1)
    assert found.targets is not None
    judged = found.targets.flat[found.targets.flat != NOTHING]
    first = np.zeros(len(flat), bool)
    first[starts[:-1]] = True
    assert sorted(judged.tolist()) == sorted(flat[~first].tolist()), (
        "each token once, but the first, which nothing precedes"
    )
    assert found.inputs.lengths.max() <= 16


# --- a model from scratch, and one that goes on


def test_a_language_model_from_scratch_writes_as_a_job(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    shape = (
        "shape=llama-mini",
        "config={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2}",
        "max_length=32",
    )
    tree = record(train("lm", source, tmp_path / "m", *shape, f"tokenizer={tokenizer}", "steps=30", "batch_size=8",
                        "learning_rate=0.01"))  # fmt: skip
    told = tree["result"]
    assert told["metrics"]["test"]["perplexity"] == pytest.approx(math.exp(told["metrics"]["test"]["loss"]))
    assert told["metrics"]["test"]["bits_per_byte"] < 3
    assert told["baselines"]["fivegram_bits_per_byte"] < told["baselines"]["unigram_bits_per_byte"]
    assert told["examples"]["train"]["padding"] < 32
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["use_cache"], config["max_position_embeddings"]) == (True, 32)
    run = invoke("generate", source, "-o", tmp_path / "run", "--model", tmp_path / "m", "--max-new-tokens", 3,
                 "--prompt", "the", "--set", "source.filter=[[id, <, r010]]", "--id-column", "id", *QUICK)  # fmt: skip
    assert run.exit_code == 0, run.output
    assert len(rows_of(tmp_path / "run")) == 10


def test_bits_per_byte_are_those_of_the_model_by_hand(tmp_path: Path, source: Path, gpt2: str) -> None:
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    held_out = tmp_path / "test.parquet"
    tree = record(train("lm", source, tmp_path / "m", "steps=1", "batch_size=2",
                        flags=("--model", gpt2, "--held-out", held_out)))  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    fast = AutoTokenizer.from_pretrained(tmp_path / "m")
    nats, size = 0.0, 0
    for text in pq.read_table(held_out)["text"].to_pylist():
        ids = [fast.bos_token_id, *fast(text, add_special_tokens=False)["input_ids"], fast.eos_token_id]
        assert len(ids) <= tiny_writers.POSITIONS
        tensor = torch.tensor([ids])
        with torch.no_grad():
            nats += float(model(input_ids=tensor, labels=tensor).loss) * (len(ids) - 1)
        size += len(text.encode())
    assert tree["result"]["metrics"]["test"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


def test_a_strange_shape_or_tokenizer_is_refused(tmp_path: Path, source: Path, tokenizer: Path) -> None:
    cases = (
        (("shape=lama-mini", f"tokenizer={tokenizer}"), "did you mean llama-mini?"),
        (("shape=bart-mini", f"tokenizer={tokenizer}"), "cannot learn lm (take gpt2-mini or llama-mini)"),
        (("shape=gpt2-mini", f"tokenizer={tmp_path}"), "batchnlp train tokenizer makes one"),
        (("shape=gpt2-mini", f"tokenizer={tokenizer}", "config={n_hed: 2}", "steps=1"), "did you mean n_head?"),
    )
    for number, (settings, said) in enumerate(cases):
        result = train("lm", source, tmp_path / f"m{number}", *settings)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
