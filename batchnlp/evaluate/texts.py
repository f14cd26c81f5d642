"""Written answers against reference texts: exact match and F1 of words (as SQuAD), ROUGE, BLEU and chrF, perplexity.

A document may have several references; exact match, F1 and ROUGE take the one that fits best, BLEU and chrF know all of them.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from batchnlp.evaluate.library import need
from batchnlp.evaluate.sums import Array, Sums, dense, share

ROUGE = ("rouge1", "rouge2", "rougeL")
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = set(string.punctuation)
References = Sequence[
    Sequence[str]
]  # of each document; none, or an empty one, where the right answer is that there is none


def means(names: Sequence[str], values: Array) -> Sums:
    """Metrics that are the mean of a number a document, [documents, names]."""
    rows = dense(np.column_stack([values, np.ones(len(values))]))

    def metrics(total: Array) -> dict[str, Array]:
        return {name: share(total[..., i], total[..., -1]) for i, name in enumerate(names)}

    return Sums(rows, metrics)


# --- words


def words(text: str) -> list[str]:
    """Lower case, without punctuation and English articles, as SQuAD's own script has them."""
    bare = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return ARTICLES.sub(" ", bare).split()


def overlap(answer: str, reference: str) -> float:
    """F1 of the words in common; 1 where both have none."""
    ours, theirs = words(answer), words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def matches(answers: Sequence[str], references: References) -> Sums:
    """exact_match and f1."""
    scores = []
    for answer, wanted in zip(answers, references, strict=True):
        some = wanted or [""]
        exact = max(words(answer) == words(reference) for reference in some)
        scores.append((exact, max(overlap(answer, reference) for reference in some)))
    return means(("exact_match", "f1"), np.array(scores, np.float64).reshape(-1, 2))


# --- libraries


def rouge(answers: Sequence[str], references: References) -> Sums:
    """F1 of ROUGE-1, -2 and -L, without stemming."""
    scorer = need("rouge_score.rouge_scorer").RougeScorer(list(ROUGE), use_stemmer=False)
    scores = []
    for answer, wanted in zip(answers, references, strict=True):
        found = scorer.score_multi(list(wanted), answer)
        scores.append([found[name].fmeasure for name in ROUGE])
    return means(ROUGE, np.array(scores, np.float64).reshape(-1, len(ROUGE)))


def translation(answers: Sequence[str], references: References, language: str = "") -> tuple[Sums, dict[str, str]]:
    """(bleu and chrf, their signatures). Chinese is tokenised as such; all else as sacrebleu does by default."""
    metrics = need("sacrebleu.metrics")
    bleu = metrics.BLEU(tokenize="zh") if language.lower().startswith("zh") else metrics.BLEU()
    return _corpus({"bleu": bleu, "chrf": metrics.CHRF()}, answers, references)


def _corpus(metrics: dict[str, Any], answers: Sequence[str], references: References) -> tuple[Sums, dict[str, str]]:
    """Metrics of sacrebleu, which are functions of sums themselves; the sums are its own."""
    most = max(map(len, references), default=1)
    streams = [[wanted[i] if i < len(wanted) else None for wanted in references] for i in range(most)]
    blocks, ends = [], [0]
    for metric in metrics.values():
        metric._check_corpus_score_args(answers, streams)
        blocks.append(np.array(metric._extract_corpus_statistics(answers, streams), np.float64))
        ends.append(ends[-1] + blocks[-1].shape[1])
    scores: list[Callable[[list[int]], Any]] = [metric._compute_score_from_stats for metric in metrics.values()]

    def of(total: Array) -> dict[str, Array]:
        flat, found = total.reshape(-1, total.shape[-1]), {}
        for name, score, start, end in zip(metrics, scores, ends[:-1], ends[1:], strict=True):
            part = flat[:, start:end]
            values = [score([round(n) for n in row]).score if row.any() else np.nan for row in part]
            found[name] = np.array(values, np.float64).reshape(total.shape[:-1])
        return found

    return Sums(dense(np.hstack(blocks)), of), {name: str(metric.get_signature()) for name, metric in metrics.items()}


# --- what the model tells by itself


def perplexity(logprobs: Sequence[Sequence[float]]) -> Sums:
    """Of the answers' own tokens, under the model that wrote them: exp of the mean negative log-probability."""
    rows = np.array([(sum(run), len(run)) for run in logprobs], np.float64).reshape(-1, 2)

    def metrics(total: Array) -> dict[str, Array]:
        return {"perplexity": np.exp(-share(total[..., 0], total[..., 1]))}

    return Sums(dense(rows), metrics)
