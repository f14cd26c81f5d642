"""Does the answer change when only a name, a pronoun or a way of speaking does? Terms are swapped, and the model is asked again.

    gender:                      a set of pairs with a name
      - [he, she]
      - [his, her]               "her" goes back to the first that has it
    dialect: [[going to, gonna], [isn't, ain't]]

Both directions at once, at word borders, in the letters' case: He → She, HE → SHE. The model answers both texts in this
process, so that nothing but the text differs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from batchnlp.errors import SpecError
from batchnlp.evaluate.groups import FEWEST
from batchnlp.evaluate.sums import SEED, Metric, measured
from batchnlp.evaluate.texts import means
from batchnlp.job.load import parse_yaml
from batchnlp.types import Docs

KINDS = ("classify", "zero-shot")
METRICS = ("flip_rate", "score_shift")
MOST = 1000  # documents of a set that are asked about, drawn with the seed
Pairs = dict[str, list[tuple[str, str]]]
Answer = Callable[
    [Sequence[str]], pa.Table
]  # texts → label, and scores of all labels as a struct; null where there is none


@dataclass(frozen=True, slots=True)
class Swapped:
    """What swapping a set of terms did."""

    pairs: str
    documents: int  # that have one of the terms, and were asked about
    insufficient: bool  # too few of them to tell
    metrics: dict[str, Metric] = field(default_factory=dict)
    toward: dict[str, float] = field(
        default_factory=dict
    )  # label → mean change of its score from first terms to second ones


class Swap:
    """Swaps the terms of some pairs in a text."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._other: dict[str, tuple[str, str, int]] = {}  # term in lower case → as written, its counterpart, its side
        for pair in pairs:
            for side in (0, 1):
                self._other.setdefault(pair[side].lower(), (pair[side], pair[1 - side], side))
        terms = "|".join(re.escape(term) for term in sorted(self._other, key=len, reverse=True))
        self._term = re.compile(rf"(?<!\w)(?:{terms})(?!\w)", re.IGNORECASE)

    def sides(self, text: str) -> set[int]:
        """Which sides of the pairs occur."""
        return {known[2] for found in self._term.finditer(text) if (known := self._known(found))}

    def __call__(self, text: str) -> str:
        """The text with every term for its counterpart."""
        return self._term.sub(self._swap, text)

    def _swap(self, found: re.Match[str]) -> str:
        term, known = found[0], self._known(found)
        if known is None:
            return term
        written, other, _ = known
        if term == written:
            return other
        if term.isupper() and len(term) > 1:
            return other.upper()
        return other[:1].upper() + other[1:] if term[:1].isupper() else other[:1].lower() + other[1:]

    def _known(self, found: re.Match[str]) -> tuple[str, str, int] | None:
        """What is known of the term; None where an accent follows, which makes it another word."""
        after = found.string[found.end() : found.end() + 1]
        return None if after and unicodedata.category(after)[0] == "M" else self._other.get(found[0].lower())


def load_pairs(path: str) -> Pairs:
    """The sets of pairs in a YAML file. SpecError where it holds anything else."""
    hint = "write name: [[he, she], [his, her]]"
    try:
        tree = parse_yaml(Path(path).expanduser().read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
        raise SpecError(f"{path} cannot be read: {reason}", "evaluate.counterfactual is a YAML file") from None
    sets = {"pairs": tree} if isinstance(tree, list) else tree
    if not isinstance(sets, dict) or not sets:
        raise SpecError(f"{path} holds no pairs of terms", hint)
    found: Pairs = {}
    for name, pairs in sets.items():
        if not isinstance(pairs, list) or not pairs:
            raise SpecError(f"{path}: {name} is no list of pairs", hint)
        found[str(name)] = [_pair(path, pair, hint) for pair in pairs]
    return found


def _pair(path: str, pair: object, hint: str) -> tuple[str, str]:
    terms = pair if isinstance(pair, list) and len(pair) == 2 else [None]
    if any(not isinstance(term, str) or not term.strip() for term in terms) or terms[0] == terms[1]:
        raise SpecError(f"{path}: {pair!r} is no pair of two terms", f"{hint}; quote what YAML takes for more, as 'no'")
    return str(terms[0]).strip(), str(terms[1]).strip()


def examine(pairs: Pairs, documents: Iterable[Docs], answer: Answer) -> list[Swapped]:
    """Ask about every document that has a term, as it is and swapped."""
    swaps = {name: Swap(terms) for name, terms in pairs.items()}
    texts: dict[str, list[str]] = {name: [] for name in swaps}
    for docs in documents:
        for text in filter(None, docs.text.to_pylist()):
            for name, swap in swaps.items():
                if swap.sides(text):
                    texts[name].append(text)
    return [_examine(name, swap, _drawn(texts[name]), answer) for name, swap in swaps.items()]


def _drawn(texts: list[str]) -> list[str]:
    if len(texts) <= MOST:
        return texts
    return [texts[i] for i in np.sort(np.random.default_rng(SEED).choice(len(texts), MOST, replace=False))]


def _examine(name: str, swap: Swap, texts: list[str], answer: Answer) -> Swapped:
    if len(texts) < FEWEST:
        return Swapped(name, len(texts), insufficient=True)
    found = answer([*texts, *(swap(text) for text in texts)])
    labels, scores = found["label"].to_pylist(), _scores(found["scores"].combine_chunks())
    count = len(texts)
    sound = [i for i in range(count) if labels[i] is not None and labels[i + count] is not None]
    if len(sound) < FEWEST:
        return Swapped(name, len(sound), insufficient=True)
    names = [f.name for f in found.schema.field("scores").type]
    changes = scores[[i + count for i in sound]] - scores[sound]  # [documents, labels]
    flips = [labels[i] != labels[i + count] for i in sound]
    shift = [abs(change[names.index(labels[i])]) for i, change in zip(sound, changes, strict=True)]
    sums = means(METRICS, np.column_stack([flips, shift]))
    return Swapped(
        name, len(sound), False, measured(sums), _toward(names, changes, [swap.sides(texts[i]) for i in sound])
    )


def _toward(
    names: list[str], changes: np.ndarray[tuple[int, ...], np.dtype[np.float64]], sides: list[set[int]]
) -> dict[str, float]:
    """Of documents with terms of one side only; what goes from second to first counts the other way round."""
    signs = np.array([0 if len(side) != 1 else 1 - 2 * next(iter(side)) for side in sides])
    if not signs.any():
        return {}
    means_ = (changes * signs[:, None])[signs != 0].mean(axis=0)
    return dict(zip(names, means_.tolist(), strict=True))


def _scores(column: pa.StructArray) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """[documents, labels]"""
    return np.column_stack([np.asarray(values.cast(pa.float64()).fill_null(np.nan)) for values in column.flatten()])
