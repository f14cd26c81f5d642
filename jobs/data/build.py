"""Build the quickstart corpus from the HTML pages of the Python documentation.

Purpose: a small, diverse, freely licensed set of English documents that ships with the repository, so that
the first run needs nothing from outside. One document is one section or one entry (a function, a class, a
glossary term, an FAQ question, a what's-new item); markup is gone, code examples stay, indented.

    python jobs/data/build.py PATH/TO/html [OUT.parquet] [--license LICENSE.txt]

Trade-offs:

* It reads the rendered HTML rather than the reStructuredText sources: roles, substitutions and autodoc
  directives are resolved there already, and the standard library's parser is enough to read it.
* A section's text leaves out its subsections and the functions and classes described in it, because these
  are documents of their own; a class keeps its methods, which is where most of the long documents come from.
* The selection is evenly spaced over the documentation's own order, within quotas for area and length, with
  no randomness: the same pages and the same pyarrow give the same bytes.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 200
MIN_CHARS = 30

# How many documents each area of the documentation gives at most, and which folders make up an area.
AREAS: dict[str, int] = {
    "library": 330,
    "c-api": 80,
    "reference": 75,
    "tutorial": 65,
    "howto": 75,
    "faq": 75,
    "glossary": 75,
    "whatsnew": 75,
    "using": 35,
    "extending": 25,
    "distutils": 20,
    "installing": 8,
    "distributing": 8,
}
# Upper bounds of the length classes, in characters, and each class's share of an area's quota. One-liners
# and several-page documents both get more than they would have by chance, because both are worth testing.
LENGTH_CLASSES: list[tuple[float, float]] = [
    (120, 0.12),
    (400, 0.24),
    (1000, 0.28),
    (3000, 0.22),
    (10_000, 0.11),
    (float("inf"), 0.03),
]
SKIPPED_PAGES = {"whatsnew/changelog"}

SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("doc_id", "title", "section", "text")],
)

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
BLOCK = {"p", "div", "section", "ul", "ol", "dl", "li", "dt", "dd", "pre", "table", "blockquote", "aside", "figure"}
BLOCK |= {"h1", "h2", "h3", "h4", "h5", "h6", "hr"}
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
# Navigation and decoration: permalinks, local tables of contents, footnote marks, images.
DROPPED_TAGS = {"script", "style", "img", "nav", "object", "hr"}
DROPPED_CLASSES = {"headerlink", "contents", "toctree-wrapper", "footnote-reference", "viewcode-link", "topic"}
# The classes of a `dl` that describes an object of some domain rather than being a list in prose.
DOMAINS = {"py", "c", "std"}
# Paragraphs that say where or since when something is, not what: a document of nothing else is no document.
BOILERPLATE = re.compile(
    r"(New|Changed) in version [\d.]+\.?|Part of the Stable ABI.*|Source code: .*|[Aa]uthor:|Release:|Date:|  .*"
)


@dataclass
class Node:
    """An element of a page: its tag, its attributes and what is in it."""

    tag: str
    attrs: dict[str, str] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    @property
    def classes(self) -> set[str]:
        """Return the element's classes."""
        return set(self.attrs.get("class", "").split())

    @property
    def elements(self) -> list[Node]:
        """Return the child elements, without the text between them."""
        return [child for child in self.children if isinstance(child, Node)]


@dataclass(frozen=True)
class Document:
    """One row of the corpus."""

    doc_id: str
    title: str
    section: str
    text: str


class TreeBuilder(HTMLParser):
    """Build a tree of nodes from a page."""

    def __init__(self) -> None:
        """Start with an empty page."""
        super().__init__(convert_charrefs=True)
        self.root = Node("root")
        self.stack = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element."""
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.stack[-1].children.append(node)
        if tag not in VOID:
            self.stack.append(node)

    def handle_endtag(self, tag: str) -> None:
        """Close an element and whatever was left open in it."""
        for depth in range(len(self.stack) - 1, 0, -1):
            if self.stack[depth].tag == tag:
                del self.stack[depth:]
                return

    def handle_data(self, data: str) -> None:
        """Add text to the open element."""
        self.stack[-1].children.append(data)


def parse(path: Path) -> Node:
    """Return a page's tree."""
    builder = TreeBuilder()
    builder.feed(path.read_text(encoding="utf-8"))
    builder.close()
    return builder.root


def descend(node: Node) -> Iterator[Node]:
    """Yield the elements under a node, in document order."""
    for child in node.elements:
        yield child
        yield from descend(child)


def dropped(node: Node) -> bool:
    """Tell whether an element carries no text of its own."""
    return node.tag in DROPPED_TAGS or bool(node.classes & DROPPED_CLASSES)


def raw_text(node: Node) -> str:
    """Return the text in a node with its whitespace as it stands."""
    parts: list[str] = []
    for child in node.children:
        if isinstance(child, str):
            parts.append(child)
        elif child.tag == "br":
            parts.append("\n")
        elif not dropped(child):
            parts.append(raw_text(child))
    return "".join(parts)


def inline(node: Node) -> str:
    """Return the text in a node on one line."""
    return squeeze(raw_text(node))


def squeeze(text: str) -> str:
    """Collapse whitespace; soft and zero-width characters of the HTML go too."""
    return re.sub(r"\s+", " ", text.replace("\u200b", "").replace("\u00ad", "")).strip()


def indent(text: str, prefix: str) -> str:
    """Indent every line that is not empty."""
    return "\n".join(prefix + line if line else line for line in text.split("\n"))


def is_entry(node: Node) -> bool:
    """Tell whether a node describes an object; one that only names it belongs to the text around it."""
    if node.tag != "dl" or not node.classes & DOMAINS or entry_id(node) is None:
        return False
    return bool(entry_text(node))


def is_separate(node: Node) -> bool:
    """Tell whether a node becomes a document, or several, of its own."""
    return node.tag == "section" or is_entry(node) or (node.tag == "dl" and "glossary" in node.classes)


def entry_id(node: Node) -> str | None:
    """Return the id of an object description, which its first signature carries."""
    return next((child.attrs["id"] for child in node.elements if child.tag == "dt" and "id" in child.attrs), None)


def blocks(node: Node, *, own_only: bool = False) -> list[str]:
    """Return the paragraphs of a node; `own_only` leaves out what becomes a document of its own."""
    found: list[str] = []
    line: list[str] = []

    def flush() -> None:
        text = squeeze("".join(line))
        line.clear()
        if text:
            found.append(text)

    for child in node.children:
        if isinstance(child, str):
            line.append(child)
        elif dropped(child) or (own_only and is_separate(child)):
            continue
        elif child.tag in BLOCK:
            flush()
            found.extend(block(child, own_only=own_only))
        else:
            line.append("\n" if child.tag == "br" else raw_text(child))
    flush()
    return found


def block(node: Node, *, own_only: bool) -> list[str]:
    """Return the paragraphs of one block element."""
    if node.tag == "pre":
        code = raw_text(node).strip("\n").rstrip()
        return [indent(code, "    ")] if code.strip() else []
    if node.tag in {"ul", "ol"}:
        return listing(node, own_only=own_only)
    if node.tag == "dl":
        return definitions(node, own_only=own_only)
    if node.tag == "table":
        return table(node)
    if node.tag == "aside" and "footnote" in node.classes:
        return [squeeze(" ".join(blocks(node)))]
    if "admonition-title" in node.classes:
        return [inline(node).rstrip(":") + ":"]
    if "line-block" in node.classes:
        return ["\n".join(text for text in blocks(node))]
    return blocks(node, own_only=own_only)


def listing(node: Node, *, own_only: bool) -> list[str]:
    """Return a list, each item marked, in one paragraph where every item is one."""
    items: list[str] = []
    for number, item in enumerate((child for child in node.elements if child.tag == "li"), 1):
        mark = f"{number}. " if node.tag == "ol" else "- "
        body = "\n\n".join(blocks(item, own_only=own_only))
        if body:
            items.append(mark + indent(body, " " * len(mark)).lstrip(" "))
    loose = any("\n\n" in item for item in items)
    return items if loose else ["\n".join(items)] if items else []


def definitions(node: Node, *, own_only: bool) -> list[str]:
    """Return a description list: terms, and what they mean, indented."""
    found: list[str] = []
    for child in node.elements:
        if child.tag == "dt":
            found.append(inline(child))
        else:
            found.extend(indent(text, "  ") for text in blocks(child, own_only=own_only))
    return [text for text in found if text]


def table(node: Node) -> list[str]:
    """Return a table, a row a line and its cells between bars."""
    rows = [item for item in descend(node) if item.tag == "tr"]
    lines = [" | ".join(inline(cell) for cell in row.elements if cell.tag in {"td", "th"}) for row in rows]
    return ["\n".join(lines)] if lines else []


def heading(node: Node) -> str:
    """Return a section's heading, without its number."""
    title = next((inline(child) for child in node.elements if child.tag in HEADINGS), "")
    return re.sub(r"^(\d+\.)+\s*", "", title)


def section_text(node: Node) -> str:
    """Return what a section says itself, under its heading."""
    body = Node(node.tag, node.attrs, [c for c in node.children if isinstance(c, str) or c.tag not in HEADINGS])
    paragraphs = blocks(body, own_only=True)
    return "\n\n".join(paragraphs) if says_something(paragraphs) else ""


def entry_text(node: Node) -> str:
    """Return an object's signatures and its description, or nothing where that describes nothing."""
    signatures = [inline(child) for child in node.elements if child.tag == "dt"]
    body = [text for child in node.elements if child.tag == "dd" for text in blocks(child)]
    return "\n\n".join(["\n".join(signatures), *body]) if says_something(body) else ""


def says_something(paragraphs: list[str]) -> bool:
    """Tell whether any paragraph is more than boilerplate."""
    return any(not BOILERPLATE.fullmatch(text) for text in paragraphs)


def entry_title(node: Node) -> str:
    """Return the name that a reader would call an object by, such as `os.path.join` or `PYTHONPATH`."""
    name = entry_id(node) or ""
    if "std" in node.classes:  # options and the like: their ids are mangled, their signatures are names
        return next(inline(child) for child in node.elements if child.tag == "dt")
    return name.removeprefix("c.")


def glossary(node: Node, page: str) -> Iterator[Document]:
    """Yield one document a term."""
    term: Node | None = None
    for child in node.elements:
        if child.tag == "dt":
            term = child
        elif term is not None and "id" in term.attrs:
            yield Document(f"{page}#{term.attrs['id']}", inline(term), page, "\n\n".join(blocks(child)))


def documents(node: Node, page: str, area: str) -> Iterator[Document]:
    """Yield the documents under a node, in the page's order."""
    for child in node.elements:
        if is_entry(child):
            yield Document(f"{page}#{entry_id(child)}", entry_title(child), area, entry_text(child))
            continue
        if child.tag == "dl" and "glossary" in child.classes:
            yield from glossary(child, page)
        elif child.tag == "section" and "id" in child.attrs:
            yield Document(f"{page}#{child.attrs['id']}", heading(child), area, section_text(child))
        yield from documents(child, page, area)


def pages(root: Path, area: str) -> list[Path]:
    """Return the pages of an area in a stable order."""
    single = root / f"{area}.html"
    found = [single] if single.is_file() else sorted((root / area).rglob("*.html"))
    return [path for path in found if page_name(root, path) not in SKIPPED_PAGES]


def page_name(root: Path, path: Path) -> str:
    """Return a page's name as the documentation links to it."""
    return path.relative_to(root).with_suffix("").as_posix()


def area_documents(root: Path, area: str) -> Iterator[Document]:
    """Yield every document of an area that has a title and enough text."""
    for path in pages(root, area):
        for document in documents(parse(path), page_name(root, path), area):
            # A text that only leads up to what became documents of its own says nothing by itself.
            dangling = len(document.text) < 200 and document.text.endswith(":")
            if document.title and len(document.text) >= MIN_CHARS and not dangling:
                yield document


def unique(candidates: Iterable[Document]) -> list[Document]:
    """Return the documents whose id and text are new, in order."""
    ids: set[str] = set()
    texts: set[str] = set()
    kept: list[Document] = []
    for document in candidates:
        if document.doc_id not in ids and document.text not in texts:
            kept.append(document)
        ids.add(document.doc_id)
        texts.add(document.text)
    return kept


def spaced(candidates: list[Document], count: int) -> list[Document]:
    """Return `count` documents evenly spaced over the candidates, or all where there are fewer."""
    if count >= len(candidates):
        return candidates
    return [candidates[(2 * number + 1) * len(candidates) // (2 * count)] for number in range(count)]


def select(candidates: list[Document], quota: int) -> list[Document]:
    """Choose an area's documents: each length class its share, in the documentation's order."""
    if quota >= len(candidates):
        return candidates
    chosen: set[str] = set()
    lower = 0.0
    for upper, share in LENGTH_CLASSES:
        members = [document for document in candidates if lower <= len(document.text) < upper]
        chosen.update(document.doc_id for document in spaced(members, round(quota * share)))
        lower = upper
    return [document for document in candidates if document.doc_id in chosen]


def build(root: Path) -> list[Document]:
    """Return the corpus: every area's choice, areas in the order of the table above."""
    everything = unique(document for area in AREAS for document in area_documents(root, area))
    by_area = {area: [document for document in everything if document.section == area] for area in AREAS}
    corpus = [document for area, quota in AREAS.items() for document in select(by_area[area], quota)]
    if not corpus:
        raise SystemExit(f"no documentation pages under {root}")
    return corpus


def write(corpus: list[Document], out: Path) -> None:
    """Write the corpus in several row groups, each of its pages with a checksum."""
    table_ = pa.Table.from_pylist([vars(document) for document in corpus], schema=SCHEMA)
    pq.write_table(table_, out, compression="zstd", write_page_checksum=True, row_group_size=ROW_GROUP_ROWS)


NOTICE = """\
The file python-docs.parquet beside this notice is a derivative work of the Python documentation. Brief summary
of the changes: a selection of its sections and entries, split into one document each, with the HTML markup
removed. The text that follows is the documentation's own copyright notice and licence."""


def license_notice(root: Path) -> str:
    """Return the documentation's own copyright and licence pages as text, and the summary that they ask for."""
    parts = [NOTICE]
    for name in ("copyright", "license"):
        for node in descend(parse(root / f"{name}.html")):
            if node.tag != "section":
                continue
            if node.attrs.get("id", "").startswith("licenses-and-acknowledgements"):
                break  # what follows is about software that the interpreter includes, not the documentation
            title = heading(node)
            parts += [title + "\n" + "=" * len(title), section_text(node)]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(corpus: list[Document], out: Path) -> str:
    """Return the counts and the length distribution as the README gives them."""
    lengths = sorted(len(document.text) for document in corpus)
    quantiles = statistics.quantiles(lengths, n=100, method="inclusive")
    shown = {"min": lengths[0], **{f"p{q}": quantiles[q - 1] for q in (10, 25, 50, 75, 90, 99)}, "max": lengths[-1]}
    areas = Counter(document.section for document in corpus)
    return "\n".join(
        [
            f"rows={len(corpus)} chars={sum(lengths)} bytes={out.stat().st_size}",
            " ".join(f"{name}={value:.0f}" for name, value in shown.items()),
            f"over_10000={sum(length > 10_000 for length in lengths)} under_120={sum(n < 120 for n in lengths)}",
            " ".join(f"{area}={count}" for area, count in areas.items()),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Build the quickstart corpus from the Python documentation.")
    parser.add_argument("root", type=Path, metavar="HTML", help="the folder that holds the documentation's index.html")
    default = Path(__file__).with_name("python-docs.parquet")
    parser.add_argument("out", type=Path, nargs="?", default=default, metavar="OUT.parquet")
    parser.add_argument("--license", type=Path, metavar="FILE", help="also write the documentation's licence here")
    args = parser.parse_args(argv)
    corpus = build(args.root)
    write(corpus, args.out)
    if args.license:
        args.license.write_text(license_notice(args.root), encoding="utf-8")
    sys.stdout.write(summary(corpus, args.out) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
