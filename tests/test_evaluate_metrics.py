"""Every metric equals the library that everybody has, to 1e-9 on random cases; where there is none, examples worked by hand."""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sacrebleu
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equalized_odds_difference,
)
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.preprocessing import MultiLabelBinarizer

from batchnlp.evaluate import groups, paired, retrieval, spans, texts
from batchnlp.evaluate.labels import Labels, calibration
from batchnlp.evaluate.sums import RESAMPLES, SEED, Sums, joined, measured, resampled

SEEDS = range(5)
EXACT = 1e-9
AVERAGES = ("micro", "macro", "weighted")
WORDS = "the a cat dog sat on mat with red blue fast slow house tree went came".split()  # noqa: SIM905


def near(value: float) -> Any:
    return pytest.approx(value, abs=EXACT)


def drawn(seed: int, classes: int = 4, count: int = 200) -> tuple[list[str], list[str]]:
    """Truth and answers that are right half of the time; one class is never answered, one never true."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes - 1, count)
    answers = np.where(rng.random(count) < 0.5, truth, rng.integers(1, classes, count))
    return [f"c{i}" for i in truth], [f"c{i}" for i in answers]


def labels(truth: list[str], answers: list[str]) -> Labels:
    return Labels.of(pa.array(truth), pa.array(answers), multi=False)


# --- classes


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_are_scikit_learn_s(seed: int) -> None:
    truth, answers = drawn(seed)
    found = labels(truth, answers)
    values = found.sums.values()
    assert values["accuracy"] == near(sk.accuracy_score(truth, answers))
    for average in AVERAGES:
        expected = sk.precision_recall_fscore_support(truth, answers, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert values[f"{average}_{name}"] == near(value), (average, name)
    each = sk.precision_recall_fscore_support(truth, answers, labels=found.names, zero_division=0)
    for i, row in enumerate(found.classes()):
        assert [row[k] for k in ("precision", "recall", "f1")] == [near(column[i]) for column in each[:3]]
        assert row["support"] == each[3][i]
    confusion = found.confusion()
    assert confusion is not None
    assert confusion["truth_by_answer"] == sk.confusion_matrix(truth, answers, labels=found.names).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_several_labels_are_scikit_learn_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = np.array(list("abcde"))
    truth, answers = ([names[row].tolist() for row in rng.random((100, 5)) < share] for share in (0.3, 0.4))
    kind = pa.list_(pa.string())
    values = Labels.of(pa.array(truth, kind), pa.array(answers, kind), multi=True).sums.values()
    binarizer = MultiLabelBinarizer(classes=list(names))
    y, z = binarizer.fit_transform(truth), binarizer.transform(answers)
    assert values["accuracy"] == near(sk.accuracy_score(y, z))
    for average in AVERAGES:
        expected = sk.precision_recall_fscore_support(y, z, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert values[f"{average}_{name}"] == near(value), (average, name)


def test_a_label_that_is_there_twice_is_there_once() -> None:
    kind = pa.list_(pa.string())
    found = Labels.of(pa.array([["a", "a"], []], kind), pa.array([["a"], []], kind), multi=True)
    assert found.sums.values()["accuracy"] == 1
    assert found.classes() == [{"label": "a", "support": 1, "precision": 1.0, "recall": 1.0, "f1": 1.0}]


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_is_the_gap_of_fifteen_bins(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.concatenate([rng.random(500), np.arange(16) / 15])  # edges too
    right = rng.random(len(scores)) < scores**2
    expected = 0.0
    for i in range(15):
        inside = (scores > i / 15) & (scores <= (i + 1) / 15) if i else scores <= 1 / 15
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - scores[inside].mean())
    assert calibration(right, scores).values()["ece"] == near(expected)


def test_what_is_sure_and_right_is_calibrated() -> None:
    assert calibration(np.ones(3, bool), np.ones(3)).values() == {"ece": 0.0}
    assert calibration(np.zeros(3, bool), np.ones(3)).values() == {"ece": 1.0}


# --- spans


def tagged(rng: np.random.Generator, length: int) -> list[str]:
    """A sequence of BIO tags without an I- that begins nothing."""
    tags: list[str] = []
    while len(tags) < length:
        kind, size = rng.choice(["PER", "LOC", "ORG", ""]), int(rng.integers(1, 4))
        tags += [f"B-{kind}", *[f"I-{kind}"] * (size - 1)] if kind else ["O"] * size
    return tags[:length]


def spans_of(tags: list[str]) -> list[spans.Span]:
    found: list[spans.Span] = []
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append((i, i + 1, tag[2:]))
        elif tag.startswith("I-"):
            start, _, kind = found[-1]
            found[-1] = (start, i + 1, kind)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_strict_spans_are_seqeval_s(seed: int) -> None:
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    rng = np.random.default_rng(seed)
    truth = [tagged(rng, 30) for _ in range(20)]
    answers = [[t if rng.random() < 0.8 else a for t, a in zip(row, tagged(rng, 30), strict=True)] for row in truth]
    answers = [
        [t.replace("I-", "B-") if not i or row[i - 1][2:] != t[2:] else t for i, t in enumerate(row)] for row in answers
    ]
    values = spans.Spans(list(map(spans_of, truth)), list(map(spans_of, answers))).sums.values()
    for average in AVERAGES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = precision_recall_fscore_support(truth, answers, average=average, scheme=IOB2, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert values[f"strict_{average}_{name}"] == near(value), (average, name)


def test_partial_spans_count_half() -> None:
    def credit(truth: set[spans.Span], answers: set[spans.Span]) -> float:
        return spans.credit(truth, answers)

    person = (0, 5, "PER")
    assert credit({person}, {person}) == 1
    assert credit({person}, {(3, 9, "PER")}) == 0.5
    assert credit({person}, {(3, 9, "LOC")}) == 0, "of another label"
    assert credit({person}, {(5, 9, "PER")}) == 0, "beside it"
    assert credit({person}, {(0, 2, "PER"), (3, 5, "PER")}) == 0.5, "each entity counts once"
    assert credit({(0, 2, "PER"), (3, 5, "PER")}, {person}) == 0.5
    sums = spans.Spans([[person], []], [[(3, 9, "PER")], [(0, 1, "PER")]]).sums
    values = sums.values()
    assert (values["partial_precision"], values["partial_recall"]) == (0.25, 0.5)
    assert values["partial_f1"] == near(1 / 3)
    assert values["strict_micro_f1"] == 0


def test_impossible_entities_have_a_reason() -> None:
    assert spans.flaw([(0, 3, "A"), (3, 5, "A"), (0, 5, "B")], 5) == "", "side by side, and one inside another"
    assert spans.flaw([(0, 3, "A"), (2, 5, "A")], 5) == "crossing"
    assert spans.flaw([(0, 6, "A")], 5) == spans.flaw([(-1, 2, "A")], 5) == "outside of the text"
    assert spans.flaw([(2, 2, "A")], 5) == spans.flaw([(3, 2, "A")], None) == "empty"
    assert spans.flaw([(0, 6, "A")], None) == "", "nobody knows the text"


# --- texts


def sentences(seed: int, count: int = 20) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(3, 12)))) for _ in range(count)]


def squad(answer: str, gold: str) -> tuple[float, float]:
    """The official script of SQuAD 1.1, less its input and output."""

    def normalize(s: str) -> str:
        bare = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())

    prediction, truth = normalize(answer).split(), normalize(gold).split()
    common = Counter(prediction) & Counter(truth)
    same = sum(common.values())
    exact = float(normalize(answer) == normalize(gold))
    if same == 0:
        return exact, exact
    precision, recall = same / len(prediction), same / len(truth)
    return exact, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", SEEDS)
def test_words_are_squad_s(seed: int) -> None:
    answers, gold = sentences(seed), sentences(seed + 100)
    answers[:5] = [text.title() + "." for text in gold[:5]]
    answers[5] = gold[6] = ""
    expected = np.mean([squad(a, g) for a, g in zip(answers, gold, strict=True)], axis=0)
    values = texts.matches(answers, [[g] for g in gold]).values()
    assert [values["exact_match"], values["f1"]] == [near(v) for v in expected]


def test_no_answer_is_right_where_there_is_none() -> None:
    assert texts.matches(["", "a cat", ""], [[], [], ["cat"]]).values() == {
        "exact_match": near(1 / 3),
        "f1": near(1 / 3),
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_rouge_is_rouge_score_s(seed: int) -> None:
    answers, gold, other = (sentences(seed + i) for i in (0, 100, 200))
    scorer = RougeScorer(list(texts.ROUGE))
    values = texts.rouge(answers, [[g] for g in gold]).values()
    for name in texts.ROUGE:
        assert values[name] == near(
            np.mean([scorer.score(g, a)[name].fmeasure for a, g in zip(answers, gold, strict=True)])
        )
    both = texts.rouge(answers, list(zip(gold, other, strict=True))).values()
    assert all(both[name] >= values[name] for name in texts.ROUGE), "the better of two references"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("language", ["", "zho_Hans"])
def test_translations_are_sacrebleu_s(seed: int, language: str) -> None:
    answers, gold, other = (sentences(seed + i) for i in (0, 0, 200))
    answers = [text.replace("cat", "dog") for text in answers]
    if language:
        answers, gold, other = (
            [t.replace("the", "\u732b\u5750\u5728") for t in some] for some in (answers, gold, other)
        )
    tokenize = "zh" if language else "13a"
    for references in ([gold], [gold, other]):
        sums, signatures = texts.translation(answers, list(zip(*references, strict=True)), language)
        values = sums.values()
        assert values["bleu"] == near(sacrebleu.corpus_bleu(answers, references, tokenize=tokenize).score)
        assert values["chrf"] == near(sacrebleu.corpus_chrf(answers, references).score)
        assert f"nrefs:{len(references)}|" in signatures["bleu"]
        assert f"tok:{tokenize}|" in signatures["bleu"]
        assert f"version:{sacrebleu.__version__}" in signatures["chrf"]


def test_references_may_differ_in_number() -> None:
    sums, _ = texts.translation(["the cat sat on the mat", "a dog"], [["the cat sat on the mat"], ["dogs", "a dog"]])
    bleu = sacrebleu.corpus_bleu(
        ["the cat sat on the mat", "a dog"], [["the cat sat on the mat", "dogs"], [None, "a dog"]]
    )
    assert sums.values()["bleu"] == near(bleu.score)


def test_perplexity_is_of_all_tokens() -> None:
    values = texts.perplexity([[np.log(0.5)] * 3, [np.log(0.25)], []]).values()
    assert values["perplexity"] == near(np.exp(-(3 * np.log(0.5) + np.log(0.25)) / 4))


# --- retrieval


@pytest.mark.parametrize("seed", SEEDS)
def test_ndcg_is_scikit_learn_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    names = [f"c{i}" for i in rng.integers(0, 5, 60)]
    sums, asking = retrieval.retrieval(vectors, retrieval.ByLabel(names))
    assert len(asking) == 60
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine, same = unit @ unit.T, np.equal.outer(names, names)
    ndcg, recall = [], []
    for i in range(60):
        others = np.arange(60) != i
        ndcg.append(sk.ndcg_score([same[i][others]], [cosine[i][others]], k=10))
        first = np.argsort(-cosine[i][others], kind="stable")[:10]
        recall.append(same[i][others][first].sum() / same[i][others].sum())
    assert sums.values() == {"ndcg_at_10": near(np.mean(ndcg)), "recall_at_10": near(np.mean(recall))}


def test_relevant_ids() -> None:
    vectors = np.eye(3, dtype=np.float32) + np.array([[0, 0.5, 0]], np.float32)
    relevant = retrieval.ByIds([["b"], ["nobody"], []], ["a", "b", "c"])
    sums, asking = retrieval.retrieval(vectors, relevant)
    assert (asking.tolist(), relevant.unknown) == ([0], 1)
    assert sums.values() == {"ndcg_at_10": 1.0, "recall_at_10": 1.0}


# --- intervals


def test_an_interval_is_that_of_a_plain_bootstrap() -> None:
    truth, answers = (np.array(values) for values in drawn(3, count=80))
    found = measured(labels(list(truth), list(answers)).sums)["macro_f1"]
    rng, values = np.random.default_rng([SEED, 0]), []
    for row in rng.integers(0, len(truth), (RESAMPLES, len(truth))):
        values.append(sk.f1_score(truth[row], answers[row], average="macro"))
    assert (found.low, found.high) == tuple(near(v) for v in np.percentile(values, [2.5, 97.5]))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchnlp.evaluate import sums as module

    sums = labels(*drawn(1)).sums
    whole = resampled(sums)
    monkeypatch.setattr(module, "BLOCK", 7 * 200)
    assert np.array_equal(resampled(sums), whole)


def test_sums_that_are_joined_are_resampled_together() -> None:
    truth, answers = drawn(2)
    one = labels(truth, answers).sums
    scores = np.linspace(0, 1, len(truth))
    both = measured(joined([one, calibration(np.equal(truth, answers), scores)]))
    assert both["accuracy"] == measured(one)["accuracy"]
    assert both.keys() > measured(one).keys()


def test_nothing_is_judged_as_nothing() -> None:
    assert all(metric.value is None for metric in measured(labels([], []).sums).values())


# --- two models


def test_the_same_model_is_no_better_than_itself() -> None:
    sums = labels(*drawn(4)).sums
    found = paired.differences(sums, sums)["macro_f1"]
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_a_better_model_is_told_from_chance() -> None:
    truth, answers = drawn(5)
    better = [t if i % 2 else a for i, (t, a) in enumerate(zip(truth, answers, strict=True))]
    found = paired.differences(labels(truth, better).sums, labels(truth, answers).sums)["accuracy"]
    assert found.ours is not None
    assert found.low is not None
    assert found.p is not None
    assert found.difference == near(np.equal(truth, better).mean() - np.equal(truth, answers).mean())
    assert found.low > 0
    assert found.p < 0.01


def test_mcnemar_is_the_exact_test() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random(300) < 0.7, rng.random(300) < 0.6
    found = paired.mcnemar(ours, theirs)
    only = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    assert (found["only_ours_right"], found["only_theirs_right"]) == only
    assert found["p"] == near(binomtest(only[0], sum(only)).pvalue)
    assert paired.mcnemar(ours, ours)["p"] == 1


# --- groups


@pytest.mark.parametrize("seed", SEEDS)
def test_groups_are_fairlearn_s(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 600
    by = rng.choice(["x", "y", "z"], count, p=[0.5, 0.3, 0.2])
    truth = rng.integers(0, 2, count)
    answers = np.where(rng.random(count) < np.where(by == "x", 0.9, 0.6), truth, 1 - truth)
    names = [[f"c{v}" for v in values] for values in (truth, answers)]
    found = groups.compare("g", list(by), labels(*names).sums, ("c0", "c1"))
    frame = MetricFrame(
        metrics={"accuracy": sk.accuracy_score, "macro_f1": lambda y, z: sk.f1_score(y, z, average="macro")},
        y_true=truth, y_pred=answers, sensitive_features=by,
    )  # fmt: skip
    for group in found.groups:
        assert group.documents == (by == group.group).sum()
        for name in ("accuracy", "macro_f1"):
            assert group.metrics[name].value == near(frame.by_group.loc[group.group, name])
    expected = {
        "accuracy_difference": frame.difference()["accuracy"], "macro_f1_difference": frame.difference()["macro_f1"],
        groups.PARITY: demographic_parity_difference(truth, answers, sensitive_features=by),
        groups.ODDS: equalized_odds_difference(truth, answers, sensitive_features=by),
    }  # fmt: skip
    for name, value in expected.items():
        assert found.differences[name].value == near(value), name


def test_of_several_classes_the_one_farthest_apart_counts() -> None:
    rng = np.random.default_rng(1)
    by = np.repeat(["x", "y"], 100)
    truth = rng.choice(["a", "b", "c"], 200)
    answers = np.where((by == "y") & (truth == "c"), "b", truth)  # c is never found among y
    found = groups.compare("g", list(by), labels(list(truth), list(answers)).sums, ("a", "b", "c"))
    each = [demographic_parity_difference(truth == c, answers == c, sensitive_features=by) for c in "abc"]
    assert found.differences[groups.PARITY].value == near(max(each))
    assert found.differences[groups.ODDS].value == 1
    assert found.farthest[groups.ODDS] == "c"


def test_a_small_group_is_insufficient_and_never_zero() -> None:
    by = ["x"] * 50 + ["y"] * 50 + ["z"] * (groups.FEWEST - 1)
    truth = ["a", "b"] * (len(by) // 2) + ["a"] * (len(by) % 2)
    answers = truth[:100] + ["b"] * (groups.FEWEST - 1)
    found = groups.compare("g", by, labels(truth, answers).sums, ("a", "b"))
    small = next(group for group in found.groups if group.group == "z")
    assert (small.insufficient, small.metrics) == (True, {})
    assert found.differences["accuracy_difference"].value == 0, "the others are alike"
    alone = groups.compare("g", by[50:], labels(truth[50:], answers[50:]).sums, ("a", "b"))
    assert {metric.value for metric in alone.differences.values()} == {None}


def test_a_class_that_a_group_hardly_has_says_nothing_of_its_hits() -> None:
    by = ["x"] * 60 + ["y"] * 60
    truth = ["a", "b"] * 30 + ["a"] * 55 + ["b"] * 5  # five are too few
    answers = truth[:115] + ["a"] * 5
    sums: Sums = labels(truth, answers).sums
    assert sums.values()["accuracy"] < 1
    odds = groups.compare("g", by, sums, ("a", "b")).differences[groups.ODDS].value
    assert odds == 0, "hits of b among y, and false alarms of a there, are unknown, not 1"


def test_columns_are_crossed_too() -> None:
    both = groups.crossed({"sex": ["f", "m"], "lang": ["en", "de"]})
    assert both == {"sex": ["f", "m"], "lang": ["en", "de"], "sex,lang": ["f / en", "m / de"]}
