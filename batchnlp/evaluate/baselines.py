"""What a model must beat: the commonest label, words counted and weighed, the first sentence.

They are computed on the documents that are judged. The classifier of words is trained on the rows that the model was
trained on, where these can be had and are not judged by; else on four fifths of the documents and asked about the other fifth, in
turn. So it has seen no document that it is asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from batchnlp.evaluate.labels import Labels
from batchnlp.evaluate.library import need
from batchnlp.evaluate.sums import SEED, Sums
from batchnlp.evaluate.texts import References, rouge
from batchnlp.text.sentences import sentences

FOLDS = 5
MOST = 10_000  # documents that the classifier of words is tried on
MOST_TRAINED = 100_000  # and is trained on, where the model's own are there


def majority(labels: Sequence[str]) -> Sums:
    """Always the commonest label: of these documents, so that no other constant answer does better."""
    commonest = Counter(labels).most_common(1)[0][0]
    return Labels.of(pa.array(labels, pa.string()), pa.array([commonest] * len(labels)), multi=False).sums


def words(texts: Sequence[str], labels: Sequence[str]) -> Sums | str:
    """TF-IDF of words and pairs of words, and logistic regression; or why it cannot be."""
    counts = Counter(labels)
    if len(counts) < 2 or min(counts.values()) < FOLDS:
        return f"every label needs {FOLDS} documents, and there must be two labels"
    selection = need("sklearn.model_selection")
    folds = selection.StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    return _judged(labels, lambda: selection.cross_val_predict(classifier(), list(texts), list(labels), cv=folds))


def trained_words(
    train: Sequence[str], learnt: Sequence[str], texts: Sequence[str], labels: Sequence[str]
) -> Sums | str:
    """The same, of a classifier that has learnt from documents of its own."""
    return _judged(labels, lambda: classifier().fit(list(train), list(learnt)).predict(list(texts)))


def _judged(labels: Sequence[str], answer: Callable[[], Any]) -> Sums | str:
    try:
        answers = answer()
    except ValueError as error:  # no words in any text
        return " ".join(str(error).split())
    return Labels.of(pa.array(labels, pa.string()), pa.array(answers.tolist(), pa.string()), multi=False).sums


def classifier() -> Any:
    """TF-IDF and logistic regression, as one would begin with."""
    features = need("sklearn.feature_extraction.text").TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), max_features=50_000
    )
    regression = need("sklearn.linear_model").LogisticRegression(C=10.0, max_iter=1000, random_state=SEED)
    return need("sklearn.pipeline").make_pipeline(features, regression)


def lead(texts: Sequence[str], references: References) -> Sums:
    """The first sentence as the summary."""
    return rouge([first(text) for text in texts], references)


def first(text: str) -> str:
    """The first sentence of a text."""
    found = sentences(text)
    return text[found[0][0] : found[0][1]] if found else ""


def drawn(count: int, most: int = MOST) -> Any:
    """Positions of at most so many documents, always the same."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(SEED).choice(count, most, replace=False))
