"""Generation: the same answers as transformers' generate on each prompt alone, whoever shares the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models as small
import torch

from batchnlp.backends.base import Aborted
from batchnlp.backends.in_flight import InFlight
from batchnlp.backends.static import StaticBatches
from batchnlp.backends.torch_generator import TorchGenerator
from batchnlp.errors import BackendError
from batchnlp.types import Completions, Decoding, Pieces, Resolved

CPU = Resolved("cpu", "float32", "torch", 256, "")
STATIC = {"bloom"}


def generator(model: Any, path: Path, rows: int = 6, **decoding: Any) -> TorchGenerator:
    made = TorchGenerator(small.save(model, path), CPU, "completions", 1, Decoding(**decoding))
    if isinstance(made.engine, InFlight):
        made.engine.most = made.engine._limit = rows
    return made


def answers(raw: Completions) -> list[list[int]]:
    return [raw.ids[a:b].tolist() for a, b in zip(raw.starts, raw.starts[1:], strict=False)]


class Feed:
    """Shards as a worker hands them over."""

    def __init__(self, *shards: Pieces) -> None:
        self.shards, self.taken = list(enumerate(shards)), 0

    @property
    def ended(self) -> bool:
        return not self.shards

    def take(self, *, wait: bool) -> Any:
        self.taken += bool(self.shards)
        return self.shards.pop(0) if self.shards else None


@pytest.mark.parametrize("name", small.MODELS)
def test_greedy_answers_are_those_of_generate_on_each_prompt_alone(name: str, tmp_path: Path) -> None:
    model = small.make(name)
    prompts = small.prompts(24, head=20)
    most = np.random.RandomState(1).randint(1, 30, 24).astype(np.int32)
    made = generator(model, tmp_path)
    assert isinstance(made.engine, StaticBatches if name in STATIC else InFlight), made.note
    assert made.note.startswith("static batches, because" if name in STATIC else ""), (
        "what is slower than need be is told"
    )
    assert bool(made.note) == (name in STATIC)
    raw = made.forward(small.pieces(prompts, max_new=most))
    want = [small.alone(model, prompt, int(n)) for prompt, n in zip(prompts, most, strict=True)]
    assert answers(raw) == want
    assert list(raw.finish) == ["length" if len(a) == n else "stop" for a, n in zip(want, most, strict=True)]


@pytest.mark.parametrize("name", ["llama", "bart", "bloom"])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_models_generation_config_is_obeyed(name: str, beams: int, tmp_path: Path) -> None:
    model = small.make(name, repetition_penalty=1.3, no_repeat_ngram_size=3, min_length=5, num_beams=beams)
    prompts = small.prompts(10)
    raw = generator(model, tmp_path, max_new_tokens=20).forward(small.pieces(prompts))
    assert answers(raw) == [small.alone(model, prompt, 20) for prompt in prompts]


@pytest.mark.parametrize("name", ["llama", "bart", "bloom"])
@pytest.mark.parametrize("wish", ["min_length", "min_new_tokens", "bad_words_ids", "exponential_decay_length_penalty"])
def test_what_the_model_says_of_its_end_is_obeyed(name: str, wish: str, tmp_path: Path) -> None:
    """As BART's summarizers (min_length) and Marian (bad_words_ids) do; here the end is a token that the model likes."""
    model, prompts = small.make(name, eos_token_id=None), small.prompts(8, longest=10)
    said = [small.alone(model, prompt, 12) for prompt in prompts]
    end, word = said[0][2], said[1][3]
    wished = {
        "min_length": 12,
        "min_new_tokens": 6,
        "bad_words_ids": [[word]],
        "exponential_decay_length_penalty": (2, 3.0),
    }
    setattr(model.generation_config, wish, wished[wish])
    model.generation_config.eos_token_id = end
    raw = generator(model, tmp_path, max_new_tokens=12).forward(small.pieces(prompts))
    want = []
    for prompt in prompts:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0].tolist()
        new = out[1:] if model.config.is_encoder_decoder else out[len(prompt) :]
        want.append(new[: new.index(end)] if end in new else new)
    assert answers(raw) == want
    assert want != [row[: row.index(end)] if end in row else row for row in said], "the wish must matter"


@pytest.mark.parametrize("name", ["gpt2", "t5", "bloom"])
def test_a_sampled_answer_does_not_depend_on_who_shares_the_batch(name: str, tmp_path: Path) -> None:
    model, prompts = small.make(name), small.prompts(12)
    seeds = np.arange(12) * 7
    found = []
    for i, (rows, order) in enumerate([(6, 1), (2, -1)]):
        made = generator(model, tmp_path / str(i), rows, sample=True, temperature=0.9, top_p=0.9, max_new_tokens=12)
        raw = made.forward(small.pieces(prompts[::order], seed=seeds[::order].copy()))
        found.append(answers(raw)[::order])
    assert found[0] == found[1]
    other = made.forward(small.pieces(prompts, seed=seeds + 1))
    assert answers(other) != found[0]


def test_draws_follow_the_distribution(tmp_path: Path) -> None:
    model = small.make("llama")
    made = generator(model, tmp_path, 64, sample=True, top_k=4, max_new_tokens=1)
    prompt = small.prompts(1)[0]
    raw = made.forward(small.pieces([prompt] * 2000, seed=np.arange(2000)))
    with torch.no_grad():
        logits, tokens = model(torch.tensor([prompt])).logits[0, -1].topk(4)
    share = [sum(answer == [token] for answer in answers(raw)) / 2000 for token in tokens.tolist()]
    np.testing.assert_allclose(share, torch.softmax(logits, 0).numpy(), atol=0.05)


def test_the_batch_rolls_on_over_the_borders_of_shards(tmp_path: Path) -> None:
    model = small.make("llama", eos_token_id=None)
    made, prompts = generator(model, tmp_path, 4, max_new_tokens=10), small.prompts(10)
    most = np.array([10, 1, 1, 1, 1], np.int32)
    shards = [small.pieces(prompts[i : i + 5], max_new=most) for i in (0, 5)]
    feed, order = Feed(*shards), {}
    taken_at: list[int] = []
    made.on_batch = lambda *_: taken_at.append(feed.taken)
    for key, raw in made.run(feed):
        order[key] = answers(raw)
        if key == 0:
            assert feed.taken == 2, "the second shard has begun before the first is done"
    assert order == {
        i: [small.alone(model, p, int(n)) for p, n in zip(prompts[5 * i :], most, strict=False)] for i in (0, 1)
    }


def test_no_step_is_wasted_and_shared_beginnings_are_computed_once(tmp_path: Path) -> None:
    model = small.make("llama", eos_token_id=None)
    prompts = small.prompts(20, head=40)
    prompts[3] = prompts[8]
    most = np.random.RandomState(2).randint(1, 30, 20).astype(np.int32)
    most[3] = most[8]
    made = generator(model, tmp_path)
    made.forward(small.pieces(prompts, max_new=most))
    assert isinstance(made.engine, InFlight)
    alike = [i for i in range(20) if i != 3]
    assert made.engine.row_steps == sum(int(most[i]) - 1 for i in alike), "each step makes a token that is asked for"
    assert made.engine.prefilled == 40 + sum(len(prompts[i]) - 40 for i in alike)


def test_log_probabilities_are_the_models(tmp_path: Path) -> None:
    model, prompts = small.make("gpt2"), small.prompts(5)
    raw = generator(model, tmp_path, max_new_tokens=6, logprobs=True).forward(small.pieces(prompts))
    assert raw.values.shape == (len(raw.ids), 1)
    for i, new in enumerate(answers(raw)):
        with torch.no_grad():
            logits = model(torch.tensor([prompts[i] + new])).logits[0, len(prompts[i]) - 1 : -1]
        want = torch.log_softmax(logits, -1)[range(len(new)), new]
        np.testing.assert_allclose(raw.values[raw.starts[i] : raw.starts[i + 1], 0], want, atol=1e-4)


def test_a_prompt_without_room_for_an_answer_is_a_failure_of_its_own(tmp_path: Path) -> None:
    model = small.make("llama")
    prompts = [*small.prompts(3), list(range(8, 8 + 130)), list(range(8, 8 + 120))]
    raw = generator(model, tmp_path, max_new_tokens=20).forward(small.pieces(prompts))
    assert [(f.doc, f.code) for f in raw.failures] == [(3, "too_long")]
    assert answers(raw)[4] == small.alone(model, prompts[4], 8), "an answer ends where the positions do"


def broken(made: TorchGenerator, fault: Callable[[list[int]], Exception | None]) -> None:
    """Raise what `fault` returns for the pieces that a call of the model is about."""
    engine = made.engine
    assert isinstance(engine, InFlight)
    enter, step = engine._enter, engine._step

    def faulty(rows: list[Any]) -> None:
        if error := fault([row.piece for row in rows]):
            raise error

    def entering(rows: list[Any]) -> None:
        faulty(rows)
        enter(rows)

    def stepping() -> None:
        faulty(engine._rows)
        step()

    engine._enter, engine._step = entering, stepping  # type: ignore[method-assign]


def test_a_prompt_that_breaks_the_model_is_the_only_dead_letter(tmp_path: Path) -> None:
    model, prompts = small.make("llama"), small.prompts(16)
    made = generator(model, tmp_path, max_new_tokens=8)
    made.engine._worked = True  # type: ignore[union-attr]
    broken(made, lambda pieces: ValueError("bad luck") if 11 in pieces else None)
    raw = made.forward(small.pieces(prompts))
    assert [(f.doc, f.code, f.message) for f in raw.failures] == [(11, "forward_error", "ValueError: bad luck")]
    want = [small.alone(model, prompt, 8) for prompt in prompts]
    want[11] = []
    assert answers(raw) == want


def test_a_row_that_finished_in_the_step_that_failed_is_answered_once(tmp_path: Path) -> None:
    """The fault comes after some rows of the step had their last token."""
    model, prompts = small.make("llama", eos_token_id=None), small.prompts(6)
    most = np.array([1, 1, 1, 5, 5, 5], np.int32)
    made, faults = generator(model, tmp_path), [ValueError("once")]
    engine = made.engine
    assert isinstance(engine, InFlight)
    engine._worked = True

    def counted(finished: int, *_: Any) -> None:
        if finished and faults:
            raise faults.pop()

    made.on_batch = counted
    raw = made.forward(small.pieces(prompts, max_new=most))
    assert not raw.failures
    assert answers(raw) == [small.alone(model, prompt, int(n)) for prompt, n in zip(prompts, most, strict=True)]


def test_a_failure_that_does_not_come_back_does_not_keep_the_batch_small(tmp_path: Path) -> None:
    model, prompts = small.make("llama"), small.prompts(16)
    made, faults = generator(model, tmp_path, 8, max_new_tokens=4), [ValueError("once")]
    sizes: list[int] = []

    def once(pieces: list[int]) -> Exception | None:
        sizes.append(len(pieces))
        return faults.pop() if faults else None

    broken(made, once)
    raw = made.forward(small.pieces(prompts))
    assert not raw.failures
    assert answers(raw) == [small.alone(model, prompt, 4) for prompt in prompts]
    assert max(sizes[1:8]) <= 4, "what failed is begun again in halves"
    made.forward(small.pieces(prompts))
    assert max(sizes[-8:]) == 8, "the next shard goes in whole batches"


class Memory:
    """A device for so many positions: rows, times the longest prompt with its answer."""

    def __init__(self, made: TorchGenerator, prompts: list[list[int]], new: int, ceiling: int) -> None:
        self.needs, self.ceiling = [len(prompt) + new for prompt in prompts], ceiling
        self.asked: list[int] = []  # positions of every call
        self.rows: list[int] = []  # rows of those that fitted
        broken(made, self)

    def __call__(self, pieces: list[int]) -> Exception | None:
        self.asked.append(len(pieces) * max(self.needs[piece] for piece in pieces))
        if self.asked[-1] > self.ceiling:
            return torch.OutOfMemoryError("no memory")
        self.rows.append(len(pieces))
        return None

    @property
    def refused(self) -> list[int]:
        return [asked for asked in self.asked if asked > self.ceiling]


def test_out_of_memory_halves_the_positions_and_is_remembered(tmp_path: Path) -> None:
    model, prompts = small.make("bart"), small.prompts(16)
    made = generator(model, tmp_path, 12, max_new_tokens=8)
    memory = Memory(made, prompts, 9, 4 * 69)
    raw = made.forward(small.pieces(prompts))
    assert not raw.failures
    assert answers(raw) == [small.alone(model, prompt, 8) for prompt in prompts]
    assert 1 <= len(memory.refused) <= 3
    assert all(later < earlier for earlier, later in pairwise(memory.refused)), "nothing as large is tried again"
    before = len(memory.refused)
    made.forward(small.pieces(prompts))
    assert len(memory.refused) == before, "nor in the next shard"


def test_one_giant_prompt_does_not_leave_its_companions_to_go_one_by_one(tmp_path: Path) -> None:
    model, prompts = small.make("llama"), [*small.prompts(15, longest=6), *small.prompts(1, longest=2)]
    prompts[7] = (prompts[7] * 100)[:100]
    made = generator(model, tmp_path, 12, max_new_tokens=4)
    memory = Memory(made, prompts, 4, 120)
    raw = made.forward(small.pieces(prompts))
    assert not raw.failures
    assert answers(raw) == [small.alone(model, prompt, 4) for prompt in prompts]
    assert memory.rows[0] == 1, "the giant goes alone"
    assert max(memory.rows) > 3, "the others together"
    assert len(memory.refused) <= 4


def test_a_prompt_too_large_for_the_memory_alone_is_the_only_one_lost(tmp_path: Path) -> None:
    model, prompts = small.make("llama"), small.prompts(8, longest=6)
    prompts[3] = (prompts[3] * 60)[:60]
    made = generator(model, tmp_path, 8, max_new_tokens=4)
    Memory(made, prompts, 4, 50)
    raw = made.forward(small.pieces(prompts))
    assert [(f.doc, f.code) for f in raw.failures] == [(3, "device_oom")]
    assert sum(map(bool, answers(raw))) >= 6


def test_a_prompt_that_breaks_the_model_costs_few_calls(tmp_path: Path) -> None:
    """The rows that were at work begin again in halves: so many calls fail as halves there are."""
    model, prompts = small.make("llama"), small.prompts(32)
    for bad in (0, 13, 31):
        made = generator(model, tmp_path / str(bad), 32, max_new_tokens=6)
        made.engine._worked = True  # type: ignore[union-attr]
        failed: list[int] = []

        def fault(pieces: list[int], bad: int = bad, failed: list[int] = failed) -> Exception | None:
            failed.extend([len(pieces)] * (bad in pieces))
            return ValueError("bad luck") if bad in pieces else None

        broken(made, fault)
        raw = made.forward(small.pieces(prompts))
        assert [failure.doc for failure in raw.failures] == [bad]
        assert len(failed) <= math.log2(32) + 1, failed
        assert failed[-1] == 1


def test_a_model_that_fails_on_everything_ends_the_run(tmp_path: Path) -> None:
    made = generator(small.make("llama"), tmp_path)
    broken(made, lambda pieces: ValueError("no way"))
    with pytest.raises(BackendError, match="every document"):
        made.forward(small.pieces(small.prompts(16)))


def test_an_abort_ends_between_two_steps(tmp_path: Path) -> None:
    made = generator(small.make("llama"), tmp_path)
    steps: list[int] = []
    made.on_batch = lambda *_: steps.append(1)
    made.aborted = lambda: len(steps) >= 3
    with pytest.raises(Aborted):
        made.forward(small.pieces(small.prompts(16)))
    assert len(steps) == 3


def test_an_empty_shard_has_an_empty_answer(tmp_path: Path) -> None:
    for name in ("llama", "bloom"):
        raw = generator(small.make(name), tmp_path / name).forward(small.pieces([]))
        assert (len(raw.ids), raw.starts.tolist(), raw.finish) == (0, [0], ())


def test_a_row_that_turns_all_positions_otherwise_is_alone(tmp_path: Path) -> None:
    model = small.longrope()
    short = small.prompts(8, longest=14)
    prompts = [*short, *small.prompts(3, longest=14, head=60, seed=2), *small.prompts(8, longest=4, head=18)]
    made = generator(model, tmp_path, max_new_tokens=8)
    assert isinstance(made.engine, InFlight), made.note
    assert answers(made.forward(small.pieces(prompts))) == [small.alone(model, prompt, 8) for prompt in prompts]
    most: list[int] = []
    step = made.engine._step
    made.engine._step = lambda: (most.append(len(made.engine._rows)), step())[1]  # type: ignore[method-assign, union-attr]
    made.forward(small.pieces(short))
    assert max(most) > 1, "short ones go together"


def test_progress_counts_what_has_the_same_prompt(tmp_path: Path) -> None:
    prompts = small.prompts(5)
    for name in ("llama", "bloom"):
        made = generator(small.make(name), tmp_path / name, max_new_tokens=4)
        rows: list[int] = []
        made.on_batch = lambda answered, *_, rows=rows: rows.append(answered)  # type: ignore[misc]
        made.forward(small.pieces(prompts * 3))
        assert sum(rows) == 15, name
