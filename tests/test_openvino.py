"""The encoder on OpenVINO answers as the one on torch does, and steps aside where it cannot."""

from __future__ import annotations

import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pyarrow as pa
import pytest
import small_encoders
import tiny

from batchnlp.backends import canary, openvino_encoder, torch_encoder
from batchnlp.backends.base import Aborted
from batchnlp.backends.device import Hardware, resolve, resume
from batchnlp.backends.fallback import fast_or_plain, reason
from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.openvino_encoder import OpenVinoEncoder
from batchnlp.backends.openvino_library import load_openvino
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.backends.torch_model import load_model
from batchnlp.errors import Interrupted, MissingExtraError, UsageError
from batchnlp.job.spec import EngineSpec
from batchnlp.job.task import TaskSpec
from batchnlp.tasks.classify import Classify
from batchnlp.tasks.embed import Embed
from batchnlp.tasks.zero_shot import make as zero_shot
from batchnlp.types import Docs, Encoded, Pieces, Resolved

TEXTS = tiny.texts(40, longest=70)
CPU = Hardware(2, 0, "", 0, False)


def encode(kind: str, path: str, **more: object) -> Encoded:
    task = {"classify": Classify, "embed": Embed, "zero-shot": zero_shot}[kind]
    spec = TaskSpec.model_validate({"kind": kind, "model": path, **more})
    return task(resolve_model(path, None), spec).encode(Docs.of(pa.array(TEXTS, pa.large_string())))  # type: ignore[operator]


def both(path: str, kind: str, dtype: str = "float32", budget: int = 300) -> tuple[TorchEncoder, TorchEncoder]:
    model, resolved = resolve_model(path, None), Resolved("cpu", dtype, "openvino", budget, "")
    encoder = openvino_encoder.make(model, resolved, kind, 2)
    assert isinstance(encoder, OpenVinoEncoder), encoder.note
    return encoder, TorchEncoder(model, resolved, kind, 2)


def test_scores_are_those_of_torch(classifier: str) -> None:
    pieces = encode("classify", classifier).pieces
    ours, theirs = both(classifier, "scores")
    got, wanted = ours.forward(pieces), theirs.forward(pieces)
    np.testing.assert_allclose(got.values, wanted.values, atol=1e-5)
    assert (got.tokens, got.executed) == (wanted.tokens, wanted.executed)


@pytest.mark.parametrize("longest", [openvino_encoder.SHORT, openvino_encoder.SHORT + 1])
def test_a_version_without_the_option_for_short_texts_runs_without_it(
    longest: int, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = load_openvino().Core
    asked: list[bool] = []

    def compile_model(
        self: Any, graph: Any, device: str, options: dict[str, Any], whole: Any = core.compile_model
    ) -> Any:
        asked.append(openvino_encoder.IN_STEPS.items() <= options.items())
        if asked[-1]:
            raise RuntimeError("unknown property")
        return whole(self, graph, device, options)

    monkeypatch.setattr(core, "compile_model", compile_model)
    model = replace(resolve_model(classifier, None), max_length=longest)
    encoder = openvino_encoder.make(model, Resolved("cpu", "float32", "", 300, ""), "scores", 2)
    assert isinstance(encoder, OpenVinoEncoder), encoder.note
    assert asked == ([True, False] if longest <= openvino_encoder.SHORT else [False])


def test_in_8_bits_scores_are_near(classifier: str) -> None:
    pieces = encode("classify", classifier).pieces
    model = resolve_model(classifier, None)
    ours = openvino_encoder.make(model, Resolved("cpu", "int8", "openvino", 300, ""), "scores", 2)
    assert isinstance(ours, OpenVinoEncoder), ours.note
    got = ours.forward(pieces).values
    wanted = TorchEncoder(model, Resolved("cpu", "float32", "torch", 300, ""), "scores", 2).forward(pieces).values
    far = np.abs(got - wanted).max()
    assert 1e-5 < far < 0.2 * np.abs(wanted).max(), "another precision, and no other model"


@pytest.mark.parametrize(
    ("engine", "needs", "said"),
    [({"backend": "torch"}, "scores", "the backend torch on cpu"), ({}, "completions", "a task that writes")],
)
def test_8_bits_are_refused_where_there_are_none(
    classifier: str, engine: dict[str, str], needs: str, said: str
) -> None:
    with pytest.raises(UsageError, match=rf"int8 is for encoders on OpenVINO, and this is {said}.*engine\.dtype=auto"):
        resolve(EngineSpec.model_validate({"dtype": "int8", **engine}), resolve_model(classifier, None), CPU, needs)


def test_pairs_keep_their_segments(nli: str) -> None:
    pieces = encode("zero-shot", nli, labels=["sport", "law"]).pieces
    assert pieces.type_ids is not None
    ours, theirs = both(nli, "scores")
    np.testing.assert_allclose(ours.forward(pieces).values, theirs.forward(pieces).values, atol=1e-5)


@pytest.mark.parametrize(("modes", "dense"), [(("mean",), 0), (("cls", "max"), 8), (("last",), 0)])
def test_vectors_are_those_of_torch_pooling_and_dense_layers_included(
    modes: tuple[str, ...], dense: int, tmp_path: Path
) -> None:
    path = tiny.save_encoder(tmp_path / "encoder", modes, dense)
    pieces = encode("embed", path).pieces
    ours, theirs = both(path, "vectors")
    np.testing.assert_allclose(ours.forward(pieces).values, theirs.forward(pieces).values, atol=1e-5)


@pytest.mark.parametrize("kind", ["token_scores", "span_scores"])
@pytest.mark.parametrize("by_word", [False, True])
def test_values_of_tokens_are_those_of_torch(kind: str, by_word: bool, tmp_path: Path) -> None:
    small_encoders.save("bert", kind, tmp_path)
    lengths = [5, 17, 17, 3, 40, 9]
    rng = np.random.default_rng(1)
    ids = rng.integers(1000, small_encoders.VOCABULARY, sum(lengths)).astype(np.int32)
    starts = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    word = np.concatenate([np.arange(n, dtype=np.int32) // 2 * 2 for n in lengths]) if by_word else None
    pieces = Pieces(ids, starts, np.arange(len(lengths), dtype=np.int32), np.ones(len(lengths), np.int32), word=word)
    ours, theirs = both(str(tmp_path), kind, budget=60)
    got, wanted = ours.forward(pieces), theirs.forward(pieces)
    assert not [*got.failures, *wanted.failures]
    np.testing.assert_allclose(got.values, wanted.values, atol=1e-5)


def test_bfloat16_is_near(encoder: str) -> None:
    pieces = encode("embed", encoder).pieces
    ours, theirs = both(encoder, "vectors", "bfloat16")
    got, wanted = ours.forward(pieces).values, theirs.forward(pieces).values
    cosines = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosines.min() > 0.99


def test_a_batch_that_fails_is_halved_to_the_one_document(classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = encode("classify", classifier).pieces
    ours, theirs = both(classifier, "scores")
    start, poison = ours._start, int(pieces.ids[pieces.starts[17] + 1 : pieces.starts[18] - 1].max())  # type: ignore[attr-defined]
    docs = {
        int(pieces.doc[i]) for i in range(len(pieces)) if poison in pieces.ids[pieces.starts[i] : pieces.starts[i + 1]]
    }

    def broken(batch: object, inputs: dict[str, object]) -> object:
        if (inputs["input_ids"] == poison).any():  # type: ignore[attr-defined]
            raise RuntimeError("a kernel fails")
        return start(batch, inputs)

    monkeypatch.setattr(ours, "_start", broken)
    raw, wanted = ours.forward(pieces), theirs.forward(pieces)
    assert {failure.doc for failure in raw.failures} == docs
    good = ~np.isnan(raw.values[:, 0])
    np.testing.assert_allclose(raw.values[good], wanted.values[good], atol=1e-5)


def test_a_model_that_differs_is_run_on_torch_and_the_note_says_so(
    classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(canary.TOLERANCE, "float32", -1.0)
    resolved = Resolved("cpu", "float32", "openvino", 300, "")
    encoder = openvino_encoder.make(resolve_model(classifier, None), resolved, "scores", 2)
    assert type(encoder) is TorchEncoder
    assert "on torch, because" in encoder.note
    assert "standard deviations" in encoder.note


def test_auto_takes_it_for_encoders_on_a_cpu_where_it_is_installed(
    classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolve_model(classifier, None)
    assert resolve(EngineSpec(), model, CPU, "scores").backend == "openvino"
    assert resolve(EngineSpec(backend="torch"), model, CPU, "scores").backend == "torch"
    begun = resolve(EngineSpec(), model, CPU, "scores")
    monkeypatch.setattr("batchnlp.backends.device.find_spec", lambda name: None)
    assert resolve(EngineSpec(), model, CPU, "scores").backend == "torch"
    assert resume(begun, EngineSpec(), model, CPU, "scores").backend == "torch", "it is not there any more"
    with pytest.raises(MissingExtraError, match=r"pip install 'batchnlp\[openvino\]'"):
        resolve(EngineSpec(backend="openvino"), model, CPU, "scores")


def test_it_is_no_backend_for_a_gpu(classifier: str) -> None:
    hardware = Hardware(2, 1, "GPU", 80 << 30, True)
    with pytest.raises(UsageError, match=r"openvino computes on the CPU.*engine\.device=cpu"):
        resolve(EngineSpec(backend="openvino"), resolve_model(classifier, None), hardware, "scores")


def test_nothing_of_its_usage_is_reported(classifier: str) -> None:
    both(classifier, "scores")
    assert sys.modules["openvino_telemetry"] is None


def test_a_job_that_says_nothing_runs_on_it(corpus: commands.Corpus, tmp_path: Path, classifier: str) -> None:
    source = corpus()
    rows = {}
    for backend in ("auto", "torch"):
        setting = f"engine.backend={backend}"
        result = commands.classify(source, out := tmp_path / backend, classifier, "--set", setting, "--json")
        rows[backend] = [row | {"score": pytest.approx(row["score"], abs=1e-5)} for row in commands.rows_of(out)]
        wanted = {"auto": "openvino"}.get(backend, backend)
        assert commands.last_json(result)["resolved"]["backend"] == wanted
    assert rows["auto"] == commands.rows_of(tmp_path / "torch")


def test_what_is_under_way_is_waited_for_when_a_run_is_stopped(classifier: str) -> None:
    """Its inputs and outputs are ours: given back too early, OpenVINO would write into memory of others."""
    pieces = encode("classify", classifier).pieces
    ours, theirs = both(classifier, "scores", budget=100)
    assert isinstance(ours, OpenVinoEncoder)
    asked = iter([False] * 4 + [True])
    ours.aborted = lambda: next(asked)
    with pytest.raises(Aborted):
        ours.forward(pieces)
    assert len(ours._idle) == 3, "no request is under way"
    ours.aborted = lambda: False
    np.testing.assert_allclose(ours.forward(pieces).values, theirs.forward(pieces).values, atol=1e-5)


def test_a_model_that_is_given_up_has_left_memory_when_it_is_loaded_again(
    classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[Any]] = []

    def loaded(*args: Any) -> Any:
        assert not [model for model in seen if model() is not None]
        seen.append(weakref.ref(model := load_model(*args)))
        return model

    monkeypatch.setattr(torch_encoder, "load_model", loaded)
    monkeypatch.setitem(canary.TOLERANCE, "float32", -1.0)
    resolved = Resolved("cpu", "float32", "openvino", 300, "")
    openvino_encoder.make(resolve_model(classifier, None), resolved, "scores", 2)
    assert len(seen) == 2


def test_an_error_of_the_job_is_no_reason_to_try_torch() -> None:
    def stopped() -> TorchEncoder:
        raise Interrupted("stopped by Ctrl-C")

    def never() -> TorchEncoder:
        raise AssertionError("it is not loaded again")

    with pytest.raises(Interrupted):
        fast_or_plain(stopped, never, "on torch")


def test_why_a_model_is_not_converted_is_the_models_own_word() -> None:
    said = "Couldn't get TorchScript module by tracing.\nException:\nno such head\nPlease check correctness of provided"
    assert reason(RuntimeError(f"{said} 'example_input'.\n You can also provide ...")) == "RuntimeError: no such head"
