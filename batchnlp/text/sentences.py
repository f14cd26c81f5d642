"""Where sentences end, by simple rules that hold in many languages, and where to cut a text that is too long.

The rules: . ! ? and their like end a sentence before white space, unless the word before is an abbreviation, an initial
or a number in a list, or the next word begins in lower case; the full-width ones of Chinese and Japanese end it anywhere;
a line break always does. White space belongs to no sentence, so that it can be put back exactly.
"""

from __future__ import annotations

import re
from bisect import bisect_left

from batchnlp.types import Int32

CLOSING = "\"'”’»›)\\]}」』）】"
END = re.compile(
    rf"[.!?…։؟۔।॥]+[{CLOSING}]*(?=\s)"  # before white space
    rf"|[。！？｡]+[{CLOSING}]*"  # anywhere
    r"|[ \t]*[\r\n\u2028\u2029\x85]+"  # a line break
)
ABBREVIATIONS = frozenset(
    """
    mr mrs ms dr prof sr jr st vs etc e.g i.e eg ie fig figs nos vol pp p ed eds al cf ca approx dept est inc ltd co corp
    jan feb mar apr jun jul aug sep sept oct nov dec gen col lt sgt capt rev hon u.s u.k a.m p.m ph.d b.sc m.sc
    z.b d.h bzw usw nr bd hrsg u.a s.o vgl abb evtl ggf inkl str mio mrd tel
    m mme mlle av bibl chap art sra srta ud uds pág núm sig dott sig.ra ecc dhr mevr bijv enz
    """.split()  # noqa: SIM905 - a list of strings would be no easier to read
)
WORD = re.compile(r"[^\s(\[{\"'“‘«]+$")


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, in order; what lies between is white space."""
    found, start = [], 0
    for match in END.finditer(text):
        if _ends(text, start, match):
            found.append((start, match.end()))
            start = match.end()
    found.append((start, len(text)))
    return [span for span in (_strip(text, *span) for span in found) if span[0] < span[1]]


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends."""
    part = text[start:end]
    bare = part.strip()
    start += len(part) - len(part.lstrip()) if bare else len(part)
    return start, start + len(bare)


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    mark = match.group()
    if not mark.startswith((".", "…")):
        return True
    after = text[match.end() : match.end() + 40].lstrip()
    if after[:1].islower():
        return False
    if mark != ".":
        return True
    word = WORD.search(text, max(start, match.start() - 40), match.start())
    bare = word.group() if word else ""
    initial = len(bare) == 1 and bare.isalpha() and bare.isupper() and bare != "I"
    numbering = bare.isdigit() and word is not None and not text[start : word.start()].strip()
    return not (initial or numbering or bare.lower() in ABBREVIATIONS)


def windows(text: str, spans: Int32, room: int, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """(start, end) of runs of at most `room` tokens (`spans` says where they lie) that make up `text[start:end]`.

    A run ends with a sentence where one ends in its second half, else with a word, else with a token.
    """
    end = len(text) if end is None else end
    begins = [int(begin) for begin, _ in spans]
    found = []
    first, stop = bisect_left(begins, start), bisect_left(begins, end)
    while stop - first > room:
        half, limit = begins[first + room // 2], begins[first + room]
        cut = _border(text, half, limit)
        if cut <= start:
            cut = limit if limit > start else min(start + 1, end)
        found.append((start, cut))
        start, first = cut, max(bisect_left(begins, cut), first + 1)
    return [*found, (start, end)]


def _border(text: str, half: int, limit: int) -> int:
    part = text[half:limit]
    ends = [match.end() for match in END.finditer(part)]
    if ends:
        return half + ends[-1]
    space = max(part.rfind(" "), part.rfind("\n"), part.rfind("\t"))
    return half + space + 1 if space > 0 else limit
