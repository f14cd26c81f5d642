"""doctor: silent on what is right, loud on a mask or a position that is wrong, in every task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_readers
import torch
from commands import QUICK, invoke, last_json
from writing import LONG, Corpus, spec

from batchnlp.backends import packed_attention
from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.reference import Reference
from batchnlp.backends.slots import SlotModel
from batchnlp.backends.static import StaticBatches
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.engine.doctor import Diagnosis, examine
from batchnlp.engine.equality import allowed, compare, deviations
from batchnlp.errors import UsageError
from batchnlp.job.load import build_spec
from batchnlp.types import Pieces, Resolved

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
TASKS: dict[str, tuple[str, dict[str, Any]]] = {  # the model's fixture, the task
    "classify": ("classifier", {"kind": "classify"}),
    "multi-label": ("multi_label", {"kind": "classify"}),
    "entailment": ("nli", {"kind": "zero-shot", "labels": "sport,law,music"}),
    "similarity": ("encoder", {"kind": "zero-shot", "labels": "sport,law,music"}),
    "embed": ("encoder", {"kind": "embed"}),
    "ner": ("tagger", {"kind": "ner"}),
    "ner by words": ("tagger", {"kind": "ner", "aggregation": "average"}),
    "qa": ("reader", {"kind": "qa", "question": "which game?"}),
    "summarize": ("bart", {"kind": "summarize", "max_new_tokens": 8}),
    "summarize by T5": ("t5", {"kind": "summarize", "max_new_tokens": 8}),
    "translate": (
        "coded",
        {"kind": "translate", "source_language": "eng_Latn", "target_language": "deu_Latn", "max_new_tokens": 6},
    ),
    "generate": ("gpt2", {"kind": "generate", "max_new_tokens": 12, "on_long": "truncate"}),
    "chat": ("llama", {"kind": "chat", "max_new_tokens": 12, "on_long": "truncate"}),
    "penalties": ("gpt2", {"kind": "generate", "max_new_tokens": 12, "on_long": "truncate", "repetition_penalty": 1.5,
                           "min_new_tokens": 4, "stop": ["er", "a "]}),
    "beams": ("bart", {"kind": "summarize", "max_new_tokens": 8, "num_beams": 3}),
    "sampling": ("gpt2", {"kind": "generate", "max_new_tokens": 12, "on_long": "truncate", "sample": True, "n": 2,
                          "temperature": 0.7}),
    "json": ("llama", {"kind": "chat", "max_new_tokens": 12, "on_long": "truncate", "json_schema": SCHEMA}),
}  # fmt: skip
TEXTS = [*tiny.texts(11), LONG, None]


@pytest.fixture(scope="module")
def tagger(models: Path) -> str:
    return tiny_readers.save_reader(models / "doctor-tagger")


@pytest.fixture(scope="module")
def reader(models: Path) -> str:
    return tiny_readers.save_reader(models / "doctor-reader", labels=None)


def diagnosis(task: str, dtype: str, corpus: Corpus, tmp_path: Path, request: pytest.FixtureRequest) -> Diagnosis:
    fixture, wish = TASKS[task]
    job = spec(corpus(TEXTS), request.getfixturevalue(fixture), tmp_path, **wish)
    found = examine(job.model_copy(update={"engine": job.engine.model_copy(update={"dtype": dtype})}))
    assert not (tmp_path / "out").exists(), "nothing is written"
    assert json.dumps(found.advice)
    assert (found.documents, found.compared) == (13, 12)
    assert (found.status == "equal") == all(check.ok for check in found.checks)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_what_is_right_passes(task: str, corpus: Corpus, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = diagnosis(task, "float32", corpus, tmp_path, request)
    assert found.status == "equal", found
    assert not found.apart


@pytest.mark.parametrize(
    "task", ["classify", "entailment", "similarity", "embed", "ner", "qa", "summarize", "generate", "chat", "json"]
)
def test_rounding_passes(task: str, corpus: Corpus, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = diagnosis(task, "bfloat16", corpus, tmp_path, request)
    assert found.status == "equal", found


# --- a wrong mask, a wrong position

Break = Callable[[pytest.MonkeyPatch], None]


def padding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The padded batch of an encoder attends to its padding."""
    right = TorchEncoder._inputs

    def wrong(self: TorchEncoder, *args: Any) -> Any:
        inputs = right(self, *args)
        return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}

    monkeypatch.setattr(TorchEncoder, "_inputs", wrong)


def no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the kind that the generator's own comparison at its start does not see."""
    monkeypatch.setattr("batchnlp.backends.torch_generator.compare", lambda slots, begin: None)


def others_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row in flight attends to what is behind its end."""
    no_canary(monkeypatch)
    monkeypatch.setattr(
        packed_attention, "_mask",
        lambda step, ends, longest, window, dtype: torch.zeros(len(ends), 1, 1, longest, dtype=dtype),
    )  # fmt: skip


def one_position_off(monkeypatch: pytest.MonkeyPatch) -> None:
    no_canary(monkeypatch)
    right = SlotModel.decode
    monkeypatch.setattr(SlotModel, "decode", lambda self, ids, positions, *more: right(self, ids, positions - 1, *more))


def static_padding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = StaticBatches._padded

    def wrong(self: StaticBatches, prompts: list[list[int]]) -> Any:
        ids, mask = right(self, prompts)
        return ids, torch.ones_like(mask)

    monkeypatch.setattr(StaticBatches, "_padded", wrong)


BROKEN: list[tuple[str, Break, str]] = [
    ("classify", padding_is_seen, "float32"), ("classify", padding_is_seen, "bfloat16"),
    ("entailment", padding_is_seen, "float32"), ("similarity", padding_is_seen, "bfloat16"),
    ("embed", padding_is_seen, "float32"), ("embed", padding_is_seen, "bfloat16"),
    ("ner", padding_is_seen, "float32"), ("ner", padding_is_seen, "bfloat16"), ("qa", padding_is_seen, "bfloat16"),
    ("generate", others_are_seen, "float32"), ("generate", one_position_off, "bfloat16"),
    ("chat", others_are_seen, "bfloat16"), ("summarize", others_are_seen, "bfloat16"),
    ("summarize by T5", one_position_off, "float32"), ("translate", others_are_seen, "float32"),
    ("beams", static_padding_is_seen, "float32"), ("beams", static_padding_is_seen, "bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "broken", "dtype"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_wrong_fails(
    task: str, broken: Break, dtype: str, corpus: Corpus, tmp_path: Path, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    broken(monkeypatch)
    found = diagnosis(task, dtype, corpus, tmp_path, request)
    if (task, dtype) == ("beams", "bfloat16"):
        assert found.status == "equal"
        assert any("which only float32 can judge" in note for note in found.notes)
        return
    assert found.status == "different", found
    assert "do not trust this job's answers" in found.advice
    assert ("engine.dtype=float32" in found.advice) == (dtype == "bfloat16")
    assert found.apart
    assert all(".parquet#" in row["id"] and row["differs"] for row in found.apart)


def test_a_document_that_only_the_batch_fails_on(
    classifier: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = TorchEncoder._inputs

    def wrong(self: TorchEncoder, pieces: Pieces, batch: Any, lengths: Any) -> Any:
        if 3 in pieces.doc[batch.index]:
            raise ValueError("no")
        return right(self, pieces, batch, lengths)

    monkeypatch.setattr(TorchEncoder, "_inputs", wrong)
    found = examine(spec(corpus(TEXTS), classifier, tmp_path, kind="classify"))
    assert (found.status, found.compared) == ("different", 11)
    assert [(c.value, c.ok) for c in found.checks if "fail only" in c.what] == [(1, False)]
    assert [(row["id"], row["differs"]) for row in found.apart] == [("00.parquet#3", "no answer")]


def test_another_backend_is_held_against_the_same_reference(
    encoder: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = spec(corpus(TEXTS), encoder, tmp_path, kind="embed")
    job = job.model_copy(update={"engine": job.engine.model_copy(update={"dtype": "bfloat16", "backend": "openvino"})})
    found = examine(job)
    assert (found.status, found.resolved["backend"], found.notes) == ("equal", "openvino", [])
    padding_is_seen(monkeypatch)
    found = examine(job)
    assert found.status == "different"
    assert "engine.backend=torch" in found.advice


# --- what rounding explains


def test_the_price_of_8_bits_is_told(classifier: str, corpus: Corpus, tmp_path: Path) -> None:
    job = spec(corpus(TEXTS), classifier, tmp_path, kind="classify")
    found = examine(
        job.model_copy(update={"engine": job.engine.model_copy(update={"dtype": "int8", "backend": "openvino"})})
    )
    assert found.resolved["dtype"] == "int8"
    assert found.notes == []
    by_what = {check.what: check for check in found.checks}
    assert by_what["largest difference of model outputs"].value > 1e-4, "no rounding of float32"
    assert found.advice.startswith("int8 changes answers") == (found.status == "different")


def test_a_label_that_rounding_turns_is_harmless_and_its_margin_is_told(corpus: Corpus, tmp_path: Path) -> None:
    """Two labels with nearly the same weights: in bfloat16 some documents change sides."""
    from safetensors.torch import load_file, save_file

    path = tiny.save_classifier(tmp_path / "model", ("a", "b"))
    weights = load_file(f"{path}/model.safetensors")
    head = weights["classifier.weight"]
    torch.manual_seed(0)
    head[1] = head[0] + 1e-3 * torch.randn(head.shape[1])
    save_file(weights, f"{path}/model.safetensors", metadata={"format": "pt"})
    job = spec(corpus(tiny.texts(40)), path, tmp_path, kind="classify")
    assert examine(job).status == "equal"
    found = examine(job.model_copy(update={"engine": job.engine.model_copy(update={"dtype": "bfloat16"})}), 40)
    turned = [row for row in found.apart if row["differs"] == "label"]
    assert turned
    assert all(row["margin"] < 0.01 for row in turned)
    by_what = {check.what: check for check in found.checks}
    assert all(check.ok for what, check in by_what.items() if not what.startswith("share"))
    assert not by_what["share of labels that bfloat16 alone changes"].ok, "and a model so undecided is told too"


def test_a_model_that_bfloat16_is_too_coarse_for(t5: str, corpus: Corpus, tmp_path: Path) -> None:
    """The tiny T5's logits go to hundreds: bfloat16 by itself changes a quarter of its tokens."""
    job = spec(corpus(TEXTS), t5, tmp_path, kind="summarize", max_new_tokens=12)
    found = examine(job.model_copy(update={"engine": job.engine.model_copy(update={"dtype": "bfloat16"})}))
    assert found.status == "different"
    assert [c.what for c in found.checks if not c.ok] == ["share of tokens that bfloat16 alone changes"]
    assert "engine.dtype=float32" in found.advice


def test_what_equal_means() -> None:
    assert allowed(None) == pytest.approx(1e-4)
    assert allowed(None, 50.0) == pytest.approx(5e-3)
    assert allowed(0.01) == pytest.approx(0.04)
    assert allowed(0.0) == pytest.approx(1e-4)
    tokens = [[(1, 0.9), (1, 0.8)], [(1, 0.9), (2, 0.9)], [(1, 0.5), (2, 0.5)], [(1, 0.4), (2, 0.45)]]
    mine, reference = (np.array([pair[i] for pair in tokens], np.float32) for i in (0, 1))
    far = deviations("token_scores", mine, reference)
    np.testing.assert_allclose(far, [0.1, 0.8, 0.0, 0.05], atol=1e-6)
    np.testing.assert_allclose(deviations("scores", mine, reference), [0.1, 1, 1, 1], atol=1e-6)
    a = {"label": "x", "scores": {"x": 0.6, "y": 0.4}, "entities": [{"text": "q", "start": 1, "score": 0.5}]}
    assert compare(a, a) == ([], 0.0)
    names, far = compare({**a, "label": "y", "entities": []}, a)
    assert (names, far) == (["label", "entities"], 0.0)
    names, far = compare({**a, "entities": [{"text": "q", "start": 1, "score": 0.25}]}, a)
    assert (names, far) == ([], 0.25)
    assert compare({**a, "entities": [{"text": "q", "start": 2, "score": 0.5}]}, a)[0] == ["entities"]


# --- the reference itself


def test_a_piece_that_breaks_the_reference_is_a_failure(classifier: str) -> None:
    from test_backend import POISON, Poison, encode, hooked

    _, encoded = encode(classifier, ["a game", "terrible", "music"])
    assert POISON in encoded.pieces.ids
    made = Reference(resolve_model(classifier, None), Resolved("cpu", "float32", "torch", 1, ""), "scores", 1)
    with hooked(made, Poison()):  # type: ignore[arg-type]
        raw = made.forward(encoded.pieces)
    assert [(f.doc, f.code) for f in raw.failures] == [(1, "forward_error")]
    assert np.isnan(raw.values).all(1).tolist() == [False, True, False]


def test_answers_that_end_without_a_reason_are_told(gpt2: str) -> None:
    from batchnlp.types import Decoding

    made = Reference(
        resolve_model(gpt2, None), Resolved("cpu", "float32", "torch", 1, ""), "completions", 1, Decoding(8)
    )
    prompt = np.arange(20, 30, dtype=np.int32)
    model = made._model
    out = model.generate(torch.from_numpy(prompt)[None].long(), max_new_tokens=8, do_sample=False)[0, 10:].tolist()
    assert 2 not in out, "the model goes on to its limit"
    right = made.reread(prompt, 8, out, "length")
    assert right is not None
    assert right.at == -1
    for answer, finish, at in ((out[:5], "length", 4), (out[:5], "stop", 5), ([*out[:3], 9, *out[4:]], "length", 3)):
        read = made.reread(prompt, 8, answer, finish)
        assert read is not None
        assert read.at == at, (answer, finish)


# --- the command


def test_the_command(classifier: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job.yaml"
    source, out = corpus(tiny.texts(40)), tmp_path / "out"
    job.write_text(
        f"source: {{path: {source}, id: doc_id}}\ntask: {{kind: classify, model: {classifier}}}\noutput: {{path: {out}}}\n"
    )
    result = invoke("doctor", job, *QUICK, "--rows", 15, "--json")
    assert result.exit_code == 0, result.output
    tree = last_json(result)
    assert (tree["status"], tree["documents"], tree["compared"]) == ("equal", 15, 15)
    assert tree["resolved"]["dtype"] == "float32"
    assert {"what", "value", "limit", "ok"} == set(tree["checks"][0])
    assert "largest difference of scores" in result.stdout
    assert "change no answer by more than rounding" in result.stderr
    assert not out.exists()
    padding_is_seen(monkeypatch)
    result = invoke("doctor", job, *QUICK, "--json")
    assert result.exit_code == 1
    assert last_json(result)["status"] == "different"
    assert "FAILED" in result.stdout
    assert "doc-0" in result.stdout
    assert "run it, and doctor again, with engine.tokens_per_batch=1" in result.stderr
    result = invoke("doctor", job, *QUICK, "--set", "engine.tokens_per_batch=1")
    assert result.exit_code == 0, "and that helps"


def test_a_sample_without_an_answer_is_refused(classifier: str, corpus: Corpus, tmp_path: Path) -> None:
    message = "none of 3 documents has an answer to compare: empty_text, null_text"
    with pytest.raises(UsageError, match=message):
        examine(spec(corpus([None, "", None]), classifier, tmp_path, kind="classify"))
    job = spec(corpus(name="some"), classifier, tmp_path, kind="classify")
    nothing = job.model_copy(update={"source": job.source.model_copy(update={"filter": [("lang", "==", "none")]})})
    with pytest.raises(UsageError, match="no documents"):
        examine(nothing)


def test_a_filter_that_leaves_few_rows_leaves_them_to_the_doctor(gpt2: str, corpus: Corpus, tmp_path: Path) -> None:
    job = spec(corpus(tiny.texts(90)), gpt2, tmp_path, kind="generate", max_new_tokens=2)
    few = job.source.model_copy(update={"filter": [("doc_id", ">=", "doc-085")]})
    found = examine(job.model_copy(update={"source": few}), 32)
    assert found.documents == found.compared == 5


def test_a_server_cannot_be_compared_with(tmp_path: Path, corpus: Corpus) -> None:
    tree = {
        "source": {"path": str(corpus())}, "task": {"kind": "generate", "model": "m"},
        "engine": {"backend": "http", "url": "http://127.0.0.1:9/v1"}, "output": {"path": str(tmp_path / "out")},
    }  # fmt: skip
    with pytest.raises(UsageError, match="a server does not give them"):
        examine(build_spec(tree))
