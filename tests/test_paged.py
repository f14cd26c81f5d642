"""Generation on OpenVINO: the same answers as transformers' generate on each prompt alone, and no block of memory lost."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import small_models as small
import torch
from test_generator import Feed, answers

from batchnlp.backends import openvino_generator, paged_graph, torch_generator
from batchnlp.backends.blocks import Blocks
from batchnlp.backends.device import Hardware, resolve
from batchnlp.backends.in_flight import InFlight
from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.openvino_generator import OpenVinoGenerator
from batchnlp.backends.packed_attention import Span
from batchnlp.backends.paged import PagedModel
from batchnlp.backends.paged_seq2seq import PagedSeq2Seq
from batchnlp.backends.torch_generator import TorchGenerator
from batchnlp.backends.torch_model import load_model
from batchnlp.job.spec import EngineSpec
from batchnlp.types import Decoding, Resolved

CPU = Resolved("cpu", "float32", "openvino", 256, "")
PAGED = ["gpt2", "llama", "qwen", "mistral", "gemma", "gpt-neox", "phi"]  # the others cap or bias
SEQ2SEQ = ["bart", "pegasus", "marian", "m2m-100"]


def generator(model: Any, path: Path, rows: int = 6, **decoding: Any) -> TorchGenerator:
    made = openvino_generator.make(small.save(model, path), CPU, "completions", 1, Decoding(**decoding))
    if isinstance(made.engine, InFlight):
        made.engine.most = made.engine._limit = rows
    return made


def written(made: TorchGenerator) -> PagedSeq2Seq:
    assert isinstance(made, OpenVinoGenerator), made.note
    assert isinstance(made.engine, InFlight)
    found = made.engine._slots
    assert isinstance(found, PagedSeq2Seq)
    return found


def paged(made: TorchGenerator) -> PagedModel:
    assert isinstance(made, OpenVinoGenerator), made.note
    assert isinstance(made.engine, InFlight)
    found = made.engine._slots
    assert isinstance(found, PagedModel)
    return found


def check_blocks(blocks: Blocks, prefix: Sequence[int] = ()) -> None:
    """Every block is free, or used as often as tables and the prefix name it."""
    used = Counter(block for table in (*blocks.tables, prefix) for block in table)
    assert +blocks.users == used
    assert sorted([*blocks.free, *used]) == list(range(blocks.count))


@pytest.mark.parametrize("name", PAGED)
def test_greedy_answers_are_those_of_generate_on_each_prompt_alone(name: str, tmp_path: Path) -> None:
    model = small.make(name)
    prompts = small.prompts(24, head=40)  # longer than a block, so that one is shared and one is copied
    most = np.random.RandomState(1).randint(1, 30, 24).astype(np.int32)
    made = generator(model, tmp_path)
    slots = paged(made)
    assert made.note == ""
    raw = made.forward(small.pieces(prompts, max_new=most))
    assert answers(raw) == [small.alone(model, prompt, int(n)) for prompt, n in zip(prompts, most, strict=True)]
    check_blocks(slots.blocks, slots._prefix)


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoders_write_what_generate_does_on_each_source_alone(name: str, tmp_path: Path) -> None:
    model = small.make(name)
    sources = small.prompts(24, longest=60)  # over a block
    most = np.random.RandomState(1).randint(1, 30, 24).astype(np.int32)
    made = generator(model, tmp_path)
    slots = written(made)
    assert made.note == ""
    raw = made.forward(small.pieces(sources, max_new=most))
    assert answers(raw) == [small.alone(model, source, int(n)) for source, n in zip(sources, most, strict=True)]
    check_blocks(slots._own.blocks)
    check_blocks(slots._sources.blocks)


def test_sources_roll_on_over_shards_and_memory_runs_short(tmp_path: Path) -> None:
    model = small.make("bart")
    made = generator(model, tmp_path, max_new_tokens=12)
    slots = written(made)
    slots._sources.blocks.count, slots._sources.blocks.free = 8, list(range(8))
    shards = [small.prompts(8, longest=60, seed=seed) for seed in range(3)]
    got = dict(made.run(Feed(*(small.pieces(shard) for shard in shards))))
    for i, shard in enumerate(shards):
        assert answers(got[i]) == [small.alone(model, source, 12) for source in shard]


def test_a_longer_beginning_of_an_answer_is_read_token_by_token(tmp_path: Path) -> None:
    model = small.make("bart")
    slots = written(generator(model, tmp_path))
    ids, begin = torch.tensor([5, 9, 11, 7, 12]), torch.tensor([2, 8, 6])
    slots.reserve(2, 8, 8)
    states = slots.encode(ids, [Span(0, 0, 3), Span(1, 3, 5)])
    spans = [Span(0, 0, 3, source=(0, 3)), Span(1, 3, 4, source=(3, 5))]
    got = slots.prefill(torch.cat([begin, begin[:1]]), spans, states)
    with torch.inference_mode():
        first = model(input_ids=ids[None, :3], decoder_input_ids=begin[None]).logits[0, -1]
        second = model(input_ids=ids[None, 3:], decoder_input_ids=begin[None, :1]).logits[0, -1]
    torch.testing.assert_close(got, torch.stack([first, second]), atol=1e-4, rtol=1e-4)


def test_rows_roll_on_over_shards_with_other_beginnings(tmp_path: Path) -> None:
    model = small.make("llama")
    made = generator(model, tmp_path, max_new_tokens=12)
    shards = [small.prompts(8, longest=40, head=head, seed=seed) for seed, head in enumerate((64, 0, 33, 50))]
    got = dict(made.run(Feed(*(small.pieces(shard) for shard in shards))))
    for i, shard in enumerate(shards):
        assert answers(got[i]) == [small.alone(model, prompt, 12) for prompt in shard]
    slots = paged(made)
    check_blocks(slots.blocks, slots._prefix)


def test_without_a_free_block_fewer_rows_are_in_flight(tmp_path: Path) -> None:
    model = small.make("llama")
    prompts = small.prompts(20)
    made = generator(model, tmp_path, rows=12, max_new_tokens=40)
    slots = paged(made)
    slots.blocks.count, slots.blocks.free = 8, list(range(8))
    before = made.engine._budget  # type: ignore[union-attr]
    assert answers(made.forward(small.pieces(prompts))) == [small.alone(model, prompt, 40) for prompt in prompts]
    assert isinstance(made.engine, InFlight)
    assert made.engine._budget < before, "it is remembered"


def test_a_sampled_answer_is_that_of_torch(tmp_path: Path) -> None:
    model = small.make("llama")
    files = small.save(model, tmp_path)
    wish = Decoding(max_new_tokens=12, sample=True, temperature=0.8, top_k=20, logprobs=True)
    pieces = small.pieces(small.prompts(10), seed=np.arange(10, dtype=np.int64))
    ours = openvino_generator.make(files, CPU, "completions", 1, wish).forward(pieces)
    theirs = TorchGenerator(files, CPU, "completions", 1, wish).forward(pieces)
    assert answers(ours) == answers(theirs)
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-4)


def test_the_models_generation_config_is_obeyed(tmp_path: Path) -> None:
    model = small.make("llama", repetition_penalty=1.3, no_repeat_ngram_size=3, min_length=5)
    prompts = small.prompts(10)
    made = generator(model, tmp_path, max_new_tokens=20)
    paged(made)
    assert answers(made.forward(small.pieces(prompts))) == [small.alone(model, prompt, 20) for prompt in prompts]


@pytest.mark.parametrize(("name", "why"), [("gemma2", "caps"), ("bloom", "cannot be replaced"), ("t5", "biases")])
def test_what_it_does_not_run_is_run_on_torch(name: str, why: str, tmp_path: Path) -> None:
    model = small.make(name)
    prompts = small.prompts(6)
    made = generator(model, tmp_path, max_new_tokens=8)
    assert type(made) is TorchGenerator
    assert made.note.startswith("on torch, because OpenVINO does not run this model")
    assert why in made.note
    assert answers(made.forward(small.pieces(prompts))) == [small.alone(model, prompt, 8) for prompt in prompts]


def test_beams_are_searched_on_torch(tmp_path: Path) -> None:
    made = generator(small.make("llama"), tmp_path, num_beams=2)
    assert type(made) is TorchGenerator
    assert "beams" in made.note


def test_auto_takes_it_for_models_that_write_on_a_cpu(gpt2: str, bart: str) -> None:
    hardware = Hardware(2, 0, "", 0, False)
    for path in (gpt2, bart):
        assert resolve(EngineSpec(), resolve_model(path, None), hardware, "completions").backend == "openvino"


def test_a_job_that_says_nothing_runs_on_it(corpus: commands.Corpus, tmp_path: Path, gpt2: str) -> None:
    source, rows = corpus(["A story about a cat", "The game", "The game", "kernel"]), {}
    for backend in ("auto", "torch"):
        flags = ["--id-column", "doc_id", "--max-new-tokens", 6, *commands.QUICK, "--set", f"engine.backend={backend}"]
        result = commands.invoke("generate", source, "-o", tmp_path / backend, "--model", gpt2, *flags, "--json")
        assert result.exit_code == 0, result.output
        assert commands.last_json(result)["resolved"]["backend"] == {"auto": "openvino"}.get(backend, backend)
        rows[backend] = commands.rows_of(tmp_path / backend)
    assert rows["auto"] == rows["torch"]


def test_a_model_that_is_given_up_has_left_memory_when_it_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Any]] = []

    def loaded(*args: Any) -> Any:
        assert not [weights for weights in seen if weights() is not None]
        model = load_model(*args)
        seen.extend(weakref.ref(module) for module in model.modules())
        return model

    monkeypatch.setattr(torch_generator, "load_model", loaded)
    made = generator(small.make("gemma2"), tmp_path, max_new_tokens=8)
    assert type(made) is TorchGenerator
    assert not paged_graph._layers
