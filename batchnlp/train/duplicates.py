"""Copies and near-copies of texts. The near ones are found by rensa: MinHash over word triples, by locality-sensitive
hashing, so that no two texts are compared that do not look alike. The first of each kind stays.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.errors import MissingExtraError

Bool = npt.NDArray[np.bool_]
PERMUTATIONS = 128
BANDS = 16  # of 8: a pair of Jaccard similarity 0.8 is met with a probability of 0.95, one of 0.5 with 0.06
WORDS = re.compile(r"\w+")
BLOCK = 2_000  # texts whose words are in memory at once


def copies(texts: pa.Array, wanted: str, similarity: float) -> tuple[Bool, Bool]:
    """[texts] (whether it is a copy of one before it; whether it is a near-copy of one)."""
    exact, near = np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.bool_)
    if wanted == "keep":
        return exact, near
    _, first = np.unique(np.array(digests(texts)), return_index=True)
    exact[:] = True
    exact[first] = False
    if wanted == "near":
        kept = np.flatnonzero(~exact)
        near[kept] = _near(texts.take(pa.array(kept)), similarity)
    return exact, near


def digests(texts: pa.Array) -> list[bytes]:
    """[texts] a hash of the words of each: white space at line ends and between words does not tell copies apart."""
    return [
        hashlib.blake2b(" ".join((text or "").split()).encode(), digest_size=16).digest() for text in _strings(texts)
    ]


def _near(texts: pa.Array, similarity: float) -> Bool:
    rensa = _rensa()
    # A fixed seed: which near-copies are found must not depend on when it is asked.
    seen = rensa.RMinHashDeduplicator(similarity, PERMUTATIONS, True, BANDS, 42)
    pairs = ((str(i), _triples(text)) for i, text in enumerate(_strings(texts)))
    return ~np.asarray(seen.add_pairs(pairs), np.bool_)


def _triples(text: str) -> list[str]:
    words = WORDS.findall(text.lower())
    return [" ".join(words[i : i + 3]) for i in range(max(len(words) - 2, 1))]


def _strings(texts: pa.Array) -> Iterator[str]:
    for start in range(0, len(texts), BLOCK):
        yield from texts.slice(start, BLOCK).to_pylist()


def _rensa() -> Any:
    try:
        import rensa
    except ImportError:
        raise MissingExtraError.of("rensa", "train") from None
    return rensa
