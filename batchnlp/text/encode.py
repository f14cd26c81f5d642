"""Text to token ids, as columns: tokenise once without special tokens, then cut and frame with numpy.

Truncation and special tokens are left to us, not to the tokenizer, because then one pass tells both how many tokens a
document has and what becomes of them. What the tokenizer would have added around a sequence is learnt from a probe.

Sizes: an Encoding of the Rust tokenizer weighs some 100 bytes a token, four token ids 16. So texts go through in
blocks of about a megabyte, and only the flat ids are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from batchnlp.errors import ModelError
from batchnlp.text.characters import Block, Bool, Places
from batchnlp.types import Int32, Int64

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around one text, or around and between two."""

    before: Int32
    between: Int32  # empty for one text
    after: Int32
    type_ids: tuple[int, int]  # segment id of the first and of the second text, with what follows them

    @property
    def size(self) -> int:
        """Special tokens in all."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenised texts without special tokens: text i is `ids[starts[i]:starts[i + 1]]`."""

    ids: Int32
    starts: Int64
    lead: Int64 | int = 0  # [texts] tokens at the head of each that are a prompt's, and go before every window
    places: Places | None = None  # where the tokens are in the texts, for tasks that need them

    @property
    def lengths(self) -> Int64:
        """[texts] tokens of each text, without its prompt."""
        return np.asarray(np.diff(self.starts) - self.lead, np.int64)


class Tokenizer:
    """A fast tokenizer that answers in flat arrays."""

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.fast = tokenizer  # of the tokenizers library
        self.single = self._probe_single()

    @classmethod
    def load(cls, path: str, *, lower_case: bool = False) -> Tokenizer:
        """The tokenizer of the model directory `path`; torch is needed only where `tokenizer.json` is missing."""
        tokenizer = cls._fast(path)
        if lower_case:
            from tokenizers import normalizers

            own = [tokenizer.normalizer] if tokenizer.normalizer else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        return cls(tokenizer)

    @staticmethod
    def _fast(path: str) -> Any:
        file = Path(path) / "tokenizer.json"
        if file.is_file():
            from tokenizers import Tokenizer as Fast

            return Fast.from_file(str(file))
        from transformers import AutoTokenizer

        from batchnlp.text.slow import Slow, check_sentencepiece

        check_sentencepiece(path)
        slow = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        return slow.backend_tokenizer if getattr(slow, "is_fast", False) else Slow(slow)

    def encode(self, texts: pa.Array, *, places: bool = False) -> Tokens:
        """Token ids of `texts` (large_string, no nulls), special tokens not included; with their places where asked for,
        because those cost time."""
        flat: list[Int32] = []
        lengths: list[Int32] = []
        found: list[Places] = []
        encode = self.fast.encode_batch if places else self.fast.encode_batch_fast
        for block in _blocks(texts):
            encodings = encode(block, add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings]
            lengths.append(np.fromiter(map(len, ids), np.int32, len(ids)))
            flat.append(np.fromiter(chain.from_iterable(ids), np.int32, int(lengths[-1].sum())))
            if places:
                located = Block(block, [encoding.offsets for encoding in encodings])
                found.append(located.places(self._word_begins(flat[-1], located)))
        return Tokens(_join(flat), offsets(_join(lengths)), places=Places.join(found) if places else None)

    @property
    def knows_places(self) -> bool:
        """Whether it can tell where its tokens are in a text."""
        return hasattr(self.fast, "encode_batch")

    def _word_begins(self, ids: Int32, block: Block) -> Bool:
        """[tokens] as transformers' token classification pipeline tells words from parts of words: where the tokenizer
        marks the parts (##), by a token that is not as long as its characters; else by spaces, and no other white space.
        That errs, as with an accent that stands by itself; but who moves here expects the entities he had."""
        unknown = self.token_id(getattr(self.fast.model, "unk_token", None) or "<unk>")
        if not getattr(self.fast.model, "continuing_subword_prefix", None):
            return np.asarray(block.spaced() | (ids == unknown), np.bool_)
        return np.asarray((self._sizes[ids] == block.sizes) | (ids == unknown), np.bool_)

    @cached_property
    def _sizes(self) -> Int64:
        """[vocabulary] characters of each token as it is written in the vocabulary."""
        vocabulary = self.fast.get_vocab(with_added_tokens=True)
        sizes = np.zeros(max(vocabulary.values()) + 1, np.int64)
        sizes[list(vocabulary.values())] = list(map(len, vocabulary))
        return sizes

    def spans(self, text: str) -> Int32:
        """[tokens, 2] where in the text each token begins and ends; special tokens not included."""
        found = self.fast.encode(text, add_special_tokens=False).offsets
        return np.array(found, np.int32).reshape(-1, 2)

    def decode(self, ids: Int32, starts: Int64) -> list[str]:
        """The texts of runs of token ids, without special tokens."""
        flat = ids.tolist()
        runs = [flat[a:b] for a, b in pairwise(starts.tolist())]
        return list(self.fast.decode_batch(runs, skip_special_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The id of a token; None where there is no such token."""
        found = self.fast.token_to_id(token)
        return None if found is None else int(found)

    def pair(self) -> Frame:
        """The special tokens around and between two texts; ModelError where the tokenizer takes no pairs."""
        a, b = self._plain("first"), self._plain("second")
        framed = self.fast.encode("first", "second", add_special_tokens=True)
        ids = np.array(framed.ids, np.int32)
        first = _find(ids, a, 0)
        second = _find(ids, b, first + len(a)) if first >= 0 else -1
        if first < 0 or second < 0:
            raise ModelError("the tokenizer does not keep pairs of texts apart")
        kinds = framed.type_ids
        return Frame(ids[:first], ids[first + len(a) : second], ids[second + len(b) :], (kinds[first], kinds[second]))

    def _probe_single(self) -> Frame:
        plain, framed = self._plain("probe"), self.fast.encode("probe", add_special_tokens=True)
        ids = np.array(framed.ids, np.int32)
        at = _find(ids, plain, 0)
        if at < 0 or not len(plain):
            raise ModelError(
                "the tokenizer changes a text when it adds special tokens", "this tokenizer cannot be used"
            )
        return Frame(ids[:at], np.empty(0, np.int32), ids[at + len(plain) :], (framed.type_ids[at], 0))

    def _plain(self, text: str) -> Int32:
        return np.array(self.fast.encode(text, add_special_tokens=False).ids, np.int32)


def _blocks(texts: pa.Array) -> Iterator[list[str]]:
    """Runs of texts of about `BLOCK_BYTES`, as Python strings, which is what the tokenizer wants."""
    if not len(texts):
        return
    ends = np.cumsum(np.asarray(pc.binary_length(texts)))
    start = 0
    while start < len(texts):
        base = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, base + BLOCK_BYTES, side="right")))
        yield texts.slice(start, stop - start).to_pylist()
        start = stop


def _find(ids: Int32, run: Int32, start: int) -> int:
    for at in range(start, len(ids) - len(run) + 1):
        if np.array_equal(ids[at : at + len(run)], run):
            return at
    return -1


def _join(arrays: Sequence[Int32]) -> Int32:
    return np.concatenate(arrays) if arrays else np.empty(0, np.int32)


def offsets(lengths: Int64 | Int32) -> Int64:
    """[n] lengths to [n + 1] starts."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def ranges(starts: Int64, lengths: Int64) -> Int64:
    """The positions `starts[i] ... starts[i] + lengths[i] - 1` of all runs, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    run: Int64 = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return run


def led_by(tokens: Tokens, prompt: Int32) -> Tokens:
    """`tokens` of texts that were tokenised with `prompt` before them, and how much of it each begins with: its last
    token may have become one with the text's first, and is then the text's."""
    lead = np.zeros(len(tokens.starts) - 1, np.int64)
    lengths = tokens.lengths
    for place, token in enumerate(prompt):
        same = np.flatnonzero((lead == place) & (lengths > place))
        lead[same] += tokens.ids[tokens.starts[same] + place] == token
    return Tokens(tokens.ids, tokens.starts, lead)


@dataclass(frozen=True, slots=True)
class Windows:
    """Which run of which text each piece holds."""

    text: Int32  # [windows] index of the text
    start: Int64  # [windows] position in Tokens.ids
    length: Int64  # [windows] content tokens
    skip: Int64  # [windows] of these, tokens at its start that the window before owns
    own: Int64  # [windows] tokens after them that it owns; what is left at its end belongs to the next window


def cut(tokens: Tokens, room: Int64 | int, *, window: bool, overlap: Int64 | int = 0) -> Windows:
    """Cut every text into runs of at most `room` tokens (one number, or one a text); without `window` only the first
    run. A window repeats the last `overlap` tokens of the one before, fewer than `room`.

    Every token is owned by one window: of two that see it, by the one in which it is farther from the border.
    """
    lengths, first = tokens.lengths, tokens.starts[:-1] + tokens.lead
    room, overlap = (np.broadcast_to(np.asarray(n, np.int64), lengths.shape) for n in (room, overlap))
    if not window:
        length = np.minimum(lengths, room)
        return Windows(np.arange(len(lengths), dtype=np.int32), first, length, np.zeros_like(length), length)
    count = np.maximum(-(-(lengths - overlap) // (room - overlap)), 1)
    text = np.repeat(np.arange(len(lengths), dtype=np.int32), count)
    nth = ranges(np.zeros(len(count), np.int64), count)
    start = nth * (room - overlap)[text]
    length = np.minimum(lengths[text] - start, room[text])
    skip = np.where(nth > 0, overlap[text] // 2, 0)
    left = np.where(nth + 1 < count[text], overlap[text] - overlap[text] // 2, 0)
    return Windows(text, first[text] + start, length, skip, length - skip - left)


def frame(tokens: Tokens, windows: Windows, special: Frame) -> tuple[Int32, Int64]:
    """Put the special tokens of `special` around every window, and the prompt before it: (flat ids, starts)."""
    head, tail = len(special.before), len(special.after)
    lead = np.broadcast_to(np.asarray(tokens.lead, np.int64), tokens.lengths.shape)[windows.text]
    starts = offsets(windows.length + lead + head + tail)
    ids = np.empty(int(starts[-1]), np.int32)
    ids[ranges(starts[:-1] + head, lead)] = tokens.ids[ranges(tokens.starts[windows.text], lead)]
    ids[ranges(starts[:-1] + head + lead, windows.length)] = tokens.ids[ranges(windows.start, windows.length)]
    for place, token in enumerate(special.before):
        ids[starts[:-1] + place] = token
    for place, token in enumerate(special.after):
        ids[starts[1:] - tail + place] = token
    return ids, starts


def frame_pairs(
    first: Int32, a: tuple[Int64, Int64], second: Int32, b: tuple[Int64, Int64], special: Frame
) -> tuple[Int32, Int64, npt.NDArray[np.uint8] | None]:
    """Put the special tokens of `special` around and between runs of two flat id arrays: (flat ids, starts, segment ids
    or None where all are zero). Of pair i the runs begin at `a[0][i]` and `b[0][i]`, and have `a[1][i]` and `b[1][i]`
    tokens."""
    head, middle, tail = len(special.before), len(special.between), len(special.after)
    starts = offsets(a[1] + b[1] + special.size)
    ids = np.empty(int(starts[-1]), np.int32)
    at = starts[:-1] + head + a[1] + middle  # where the second runs begin
    ids[ranges(starts[:-1] + head, a[1])] = first[ranges(*a)]
    ids[ranges(at, b[1])] = second[ranges(*b)]
    places = (starts[:-1], special.before), (at - middle, special.between), (starts[1:] - tail, special.after)
    for base, tokens in places:
        for place, token in enumerate(tokens):
            ids[base + place] = token
    if special.type_ids == (0, 0):
        return ids, starts, None
    type_ids = np.zeros(len(ids), np.uint8)
    type_ids[ranges(at, starts[1:] - at)] = special.type_ids[1]
    return ids, starts, type_ids
