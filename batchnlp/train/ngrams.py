"""What a language model must beat: models that count tokens, over the same tokens.

`unigram` knows how frequent a token is; `fivegram` also what followed the four tokens before it, by Witten-Bell: a
context hands as much of its weight to the shorter one as it has different successors. Counts are sorted arrays, not
dictionaries: an n-gram is one number, made of its context's number and its last token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from batchnlp.train.examples import NOTHING, Examples
from batchnlp.types import Int64

ORDER = 5
Float64 = npt.NDArray[np.float64]


def baselines(train: Examples, held_out: Examples, size: int) -> dict[str, float]:
    """Bits for each of the `size` bytes of the held-out text, learnt from the same tokens as the model."""
    tokens, place = _stream(train)
    asked, at = _stream(held_out)
    judged = held_out.targets.flat != NOTHING if held_out.targets is not None else np.ones(len(asked), bool)
    vocabulary = int(max(tokens.max(initial=0), asked.max(initial=0))) + 1
    found: Float64 = np.full(len(asked), 1 / vocabulary)
    context, context_asked = np.zeros(len(tokens), np.int64), np.zeros(len(asked), np.int64)
    bits = {}
    for n in range(1, ORDER + 1):
        usable, usable_asked = place >= n - 1, at >= n - 1
        found = _deeper(context, tokens, usable, context_asked, asked, usable_asked, found, vocabulary)
        if n == 1:
            bits["unigram_bits_per_byte"] = _bits(found[judged], size)
        if n < ORDER:
            context, context_asked = _contexts(tokens, context, place, asked, context_asked, at, n, vocabulary)
    bits["fivegram_bits_per_byte"] = _bits(found[judged], size)
    return bits


def _bits(probability: Float64, size: int) -> float:
    return float(-np.log2(probability).sum() / max(size, 1))


def _stream(examples: Examples) -> tuple[Int64, Int64]:
    """(all tokens, how many tokens of its own document and window come before each)."""
    inputs = examples.inputs
    if examples.positions is not None:
        return inputs.flat.astype(np.int64), examples.positions.flat.astype(np.int64)
    lengths = inputs.lengths
    place = np.arange(len(inputs.flat)) - np.repeat(inputs.starts[:-1], lengths)
    return inputs.flat.astype(np.int64), place


def _contexts(
    tokens: Int64, before: Int64, place: Int64, asked: Int64, before_asked: Int64, at: Int64, n: int, vocabulary: int
) -> tuple[Int64, Int64]:
    """The number of the `n` tokens before each token, the same for the same tokens; -1 where there are fewer."""
    grown = [np.full(len(x), -1, np.int64) for x in (tokens, asked)]
    for out, stream, earlier, where in ((grown[0], tokens, before, place), (grown[1], asked, before_asked, at)):
        there = np.flatnonzero(where >= n)
        out[there] = earlier[there - 1] * vocabulary + stream[there - 1]
    known, numbers = np.unique(grown[0], return_inverse=True)
    spot = np.minimum(np.searchsorted(known, grown[1]), len(known) - 1)
    same = known[spot] == grown[1]
    return np.where(grown[0] < 0, -1, numbers), np.where(same & (grown[1] >= 0), spot, -1)


def _deeper(
    context: Int64, tokens: Int64, usable: npt.NDArray[np.bool_], context_asked: Int64, asked: Int64,
    usable_asked: npt.NDArray[np.bool_], shorter: Float64, vocabulary: int,
) -> Float64:  # fmt: skip
    """[asked] probabilities with this context, where it was seen; else those of the shorter one."""
    good = usable & (context >= 0)
    grams, counts = np.unique(context[good] * vocabulary + tokens[good], return_counts=True)
    owners = grams // vocabulary
    contexts, first, kinds = np.unique(owners, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, first) if len(first) else np.zeros(0, np.int64)
    out = shorter.copy()
    there = np.flatnonzero(usable_asked & (context_asked >= 0))
    spot = np.minimum(np.searchsorted(contexts, context_asked[there]), max(len(contexts) - 1, 0))
    seen = contexts[spot] == context_asked[there] if len(contexts) else np.zeros(len(there), bool)
    there, spot = there[seen], spot[seen]
    key = context_asked[there] * vocabulary + asked[there]
    gram = np.minimum(np.searchsorted(grams, key), len(grams) - 1)
    hits = np.where(grams[gram] == key, counts[gram], 0)
    out[there] = (hits + kinds[spot] * shorter[there]) / (totals[spot] + kinds[spot])
    return out
