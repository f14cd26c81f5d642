"""What a report says of outputs of every task and in every state, and that nothing of it is markup of others."""

from __future__ import annotations

import html
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_outputs
from report_outputs import ANSWER, ENTITY, NIGHT, TABLES, Night, labelled, table

from batchnlp.data.invocations import Invocation
from batchnlp.data.ledger import set_live
from batchnlp.report import history, measures, results, verdict
from batchnlp.report.changes import changes
from batchnlp.report.gather import comparison, page
from batchnlp.report.page import Page, Speed
from batchnlp.report.render import render
from batchnlp.report.words import count, duration, share

LABELS = ["games", "science", "web"]
EMPTY = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source"}  # tags without an end
PLANT = "\"><script>alert(1)</script><img src=x onerror=alert(2)>' {{ 7 * 7 }} \x00\ud800 </style></svg>"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output that is alone in its directory."""
    return tmp_path / "out"


class Tags(HTMLParser):
    """The tags and attributes of a page, which must be nested as they should."""

    def __init__(self, page: Any) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self._open: list[str] = []
        self.text = render(page).decode()
        self.feed(self.text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.names.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def assert_harmless(tags: Tags) -> None:
    """No script runs and nothing is loaded, whatever the texts say."""
    assert not tags.names & {"script", "img", "iframe", "object", "embed", "form", "base", "a"}
    for tag, name, value in tags.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action", "style", "xlink:href")
        assert name != "href" or (tag, value) == ("link", "data:,")
    assert "url(" not in tags.text
    assert "@import" not in tags.text


def night(root: Path, results_: pa.Table | None = None, kind: str = "classify", **more: Any) -> Night:
    return Night(root, labelled(LABELS, [0.5, 0.3, 0.2]) if results_ is None else results_, kind, **more)


def done(root: Path, results_: pa.Table | None = None, kind: str = "classify", **more: Any) -> Page:
    """The page on a run that went well."""
    return page(night(root, results_, kind, **more).work().finish().root)


# --- the tasks


@pytest.mark.parametrize("name", TABLES)
def test_every_task_has_its_results_at_a_glance(out: Path, name: str) -> None:
    kind, found, told = TABLES[name]
    made = done(out, found, kind)
    r = made.digest.results
    names = {fact.name for facts in (r.bars, r.histograms, r.numbers) for fact in facts}
    assert names == told | {"n_tokens", "windowed", "truncated"}
    assert (made.verdict.word, made.verdict.level) == ("Done", "good")
    assert made.verdict.sentence == "40 rows in = 40 results + 0 dead letters."
    assert (r.looked_at, r.of, made.unread) == (40, 40, ())
    assert len(made.samples.rows) == 8
    tags = Tags(made)
    assert_harmless(tags)
    for fact in (*r.bars, *r.histograms):
        assert f"<h2>{html.escape(fact.title)}</h2>" in tags.text


def test_what_is_counted_is_right(out: Path) -> None:
    r = done(out, *reversed(TABLES["ner"][:2])).digest.results
    bars = {one.name: one for one in r.bars}
    assert bars["entity_label"].counts == (("LOC", 20), ("PER", 20))
    assert bars["entity"].counts == (("Ada · PER", 20), ("Oslo · LOC", 20))
    numbers = {one.name: one.value for one in r.numbers}
    assert numbers == {"no_entity": 0.5, "windowed": 0.2, "truncated": 0.0}
    (spread,) = (one for one in r.histograms if one.name == "entities")
    assert (sum(spread.counts), spread.largest, spread.p95) == (40, 2.0, 2.0)
    assert dict(zip(spread.edges, spread.counts, strict=False))[2.0] == 20


def test_labels_of_multi_label_are_shares_of_the_documents(out: Path) -> None:
    (bars,) = done(out, *reversed(TABLES["multi-label"][:2])).digest.results.bars
    assert (bars.counts, bars.of, bars.rest) == ((("a", 20), ("b", 20)), 40, 0)


def test_answers_that_all_differ_are_no_ranking(out: Path) -> None:
    own = {
        "answer": pa.array([f"answer {i}" for i in range(40)]), "start": pa.array([0] * 40, pa.int32()),
        "end": pa.array([8] * 40, pa.int32()), "score": pa.array([1.0] * 40), "no_answer_score": pa.array([0.0] * 40),
    }  # fmt: skip
    assert done(out, table(own), "qa").digest.results.bars == ()


def test_names_without_end_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "KEPT", 50)
    names = measures.Names("label", "Labels", "documents", ["label"], lambda table: table["label"])
    for i in range(40):
        names.add(pa.table({"label": ["often"] * 5 + [f"{i}-{j}" for j in range(20)]}))
        assert len(names._counts) <= 120
    told = names.told()
    assert told is not None
    assert told.counts[0] == ("often", 200)
    assert (told.of, told.rest) == (1000, 1000 - sum(n for _, n in told.counts))


def test_numbers_that_are_none_and_lengths_beyond_all_bins() -> None:
    spread = measures.Spread("n", "n", "tokens", ["n"], lambda table: table["n"], measures.LENGTHS)
    assert spread.told() is None
    spread.add(pa.table({"n": pa.array([None, float("nan"), 10.0, 10**9], pa.float64())}))
    told = spread.told()
    assert told is not None
    assert (told.of, told.largest, told.counts[-1]) == (2, 10.0**9, 1)


# --- large ones


def test_of_many_rows_a_sample_is_looked_at_and_the_page_says_so(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "SAMPLE", 300)
    made = done(out, shards=10)
    assert (made.digest.results.looked_at, made.digest.results.of, made.digest.ok) == (300, 1000, 1000)
    assert "stand on a sample: 300 of 1,000 rows" in Tags(made).text
    assert made.digest == page(str(out)).digest, "the same one every time"


def test_only_what_is_looked_at_is_read(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], int | None]] = []
    whole = results.read_columns

    def read_columns(ledger: Any, part: Any, columns: Any, rows: int | None = None) -> Any:
        asked.append((sorted(columns), rows))
        return whole(ledger, part, columns, rows)

    monkeypatch.setattr(results, "read_columns", read_columns)
    entities = TABLES["ner"][1]["entities"]
    found = table({"body": pa.array(["a text"] * 40), "entities": entities})
    done(out, found, "ner", kept=["body"])
    leaves = [f"entities.list.element.{name}" for name in ("label", "text")]
    assert asked == [([*leaves, "n_tokens", "n_windows", "truncated"], None)] * 4 + [(["entities", "id"], 2)] * 4


# --- states


def test_a_run_that_is_not_complete(out: Path) -> None:
    run = night(out).work([0, 2])
    run.note(Invocation("first", NIGHT, NIGHT + 4, NIGHT + 9, "stopped", "no space left (make room)", "host-a"))
    made = page(run.root)
    assert (made.verdict.word, made.verdict.level) == ("Not complete", "look")
    assert made.verdict.sentence.startswith("500 of 1,000 rows (50 %): 500 results + 0 dead letters.")
    assert made.verdict.points == ("no space left (make room)",)
    assert made.digest.results.looked_at == 500
    assert "not done" in Tags(made).text


def test_a_plan_and_nothing_else(out: Path) -> None:
    made = page(night(out).root)
    assert made.verdict.word == "Not complete"
    assert (made.digest.ended, made.timeline, made.samples.rows) == (0, None, ())
    Tags(made)


def test_a_run_over_its_limit(out: Path) -> None:
    made = page(night(out, dead=50).work().finish(success=False).root)
    assert (made.verdict.word, made.verdict.level) == ("Failed", "bad")
    assert made.verdict.sentence == (
        "1,200 rows in = 1,000 results + 200 dead letters (17 %); 120 allowed by limits.max_failed."
    )
    (reason,) = made.reasons
    assert (reason.code, reason.count, reason.id, reason.place) == ("null_text", 200, "dead-0-0", "a.parquet, row 0")
    assert ">null_text<" in Tags(made).text


def test_dead_letters_near_the_limit_and_cut_documents_are_worth_a_look(out: Path) -> None:
    own = labelled(LABELS, [0.5, 0.3, 0.2])
    cut = own.set_column(own.schema.get_field_index("truncated"), "truncated", pa.array([True] * 20 + [False] * 980))
    made = done(out, cut, dead=20)
    assert (made.verdict.word, made.verdict.level) == ("Done, worth a look", "look")
    assert made.verdict.points == (
        "80 dead letters, 108 are allowed", "2.0 % of the documents were cut off: task.on_long says how",
    )  # fmt: skip
    repeated = replace(made.digest, codes={"duplicate_id": 60, "null_text": 20})  # of which the limit counts the others
    assert [*verdict._points(repeated, 108, (), ())] == [*made.verdict.points[1:]]


def damage(run: Night, what: str) -> Path:
    """Break a file of the output; which one."""
    control = Path(run.store.path(run.ledger.control))
    files = {
        "part": next(Path(run.root).glob("part-*.parquet")), "plan": control / "plan.json",
        "commit": control / "commits" / "00001.json", "manifest": control / "manifest.json",
    }  # fmt: skip
    files[what].write_bytes(files[what].read_bytes()[:50])
    return files[what]


@pytest.mark.parametrize("what", ["part", "plan", "commit", "manifest"])
def test_damage_is_named_and_hides_nothing_else(out: Path, what: str) -> None:
    run = night(out).work().finish()
    broken = damage(run, what)
    made = page(run.root)
    assert (made.verdict.word, made.verdict.level) == ("Damaged", "bad")
    assert broken.name in made.verdict.points[0]
    assert made.digest.rows_done == (750 if what == "commit" else 1000)
    assert made.digest.results.looked_at == {"part": 750, "commit": 750, "plan": 0, "manifest": 1000}[what]
    assert_harmless(Tags(made))


def test_a_part_that_looks_whole_and_is_not(out: Path) -> None:
    run = night(out).work().finish()
    part = min(out.glob("part-*.parquet"))
    column = pq.ParquetFile(part).metadata.row_group(0).column(1)
    start, data = column.dictionary_page_offset or column.data_page_offset, bytearray(part.read_bytes())
    data[start : start + 20] = bytes(20)
    part.write_bytes(data)
    made = page(run.root)
    assert made.digest.results.looked_at == 750
    assert any(part.name in one for one in made.unread)
    assert f"Not read: {part}" in Tags(made).text


@pytest.mark.parametrize("data", [b"", b"[{}]", b'{"a"', b'[{"invocation": 1}]'])
def test_notes_and_histories_that_are_damaged_hide_nothing(out: Path, data: bytes) -> None:
    run = night(out).work().finish()
    history.keep(run.store, page(run.root).digest)
    for path in (f"{run.ledger.control}/invocations.json", f"{history.FOLDER}/b2.json"):
        Path(run.store.path(path)).write_bytes(data)
    made = page(run.root)
    assert made.verdict.word == "Done"
    assert made.worked == ()
    assert_harmless(Tags(made))


def test_an_output_of_before_reports(out: Path) -> None:
    run = night(out).work()
    for shard in range(4):
        run.stamp(shard, 0.0, "")
    run.ledger.finish(run.ledger.commits(), {}, success=True)
    made = page(run.root)
    assert (made.digest.ended, made.digest.speed.seconds, made.timeline) == (0, 0, None)
    assert "docs/s" not in Tags(made).text


def test_several_runs_in_an_output(out: Path) -> None:
    night(out).work([0])
    made = page(night(out, print_="c3" * 32, began=NIGHT + 900).work().finish().root)
    assert made.digest.run == "c3c3c3c3"
    (other,) = made.others
    assert (other.run, other.state, other.rows_done) == ("a1a1a1a1", "incomplete", 250)
    assert made.verdict.points == ("run a1a1a1a1 (topics) in the same output is incomplete",)
    assert "Other runs in this output" in Tags(made).text


def test_a_warehouse_that_was_not_loaded(out: Path) -> None:
    run = night(out).work()
    sink = {"kind": "duckdb", "table": "topics", "status": "failed", "message": "the file is locked", "seconds": 0.2}
    made = page(run.finish(sinks=[sink, {**sink, "status": "loaded", "rows": 1000, "message": ""}]).root)
    assert (made.verdict.word, made.verdict.level) == ("Done, but not loaded", "bad")
    assert made.verdict.points == ("duckdb topics was not loaded: the file is locked",)
    assert [load.rows for load in made.loads] == [0, 1000]
    Tags(made)


# --- time


def test_speed_is_over_the_time_at_work_without_pauses(out: Path) -> None:
    run = night(out).work().finish()
    for shard, when in enumerate((NIGHT + 6, NIGHT + 8, NIGHT + 5002, NIGHT + 5004)):
        run.stamp(shard, when, "first" if shard < 2 else "second")
    told = {"seconds": report_outputs.SECONDS, "device_busy": 0.5}
    run.note(
        Invocation("first", NIGHT, NIGHT + 4, None, "", "", "a", {}, {}),
        Invocation("second", NIGHT + 4990, NIGHT + 5000, NIGHT + 5005, "done", "", "b", {}, told),
    )
    made = page(run.root)
    speed, line = made.digest.speed, made.timeline
    assert (speed.seconds, speed.docs_per_second, speed.tokens_per_second) == (8.0, 125.0, 450.0)
    assert (speed.padding, speed.device_busy, speed.phases["forward"]) == (pytest.approx(0.1), 0.5, 6.0)
    assert line is not None
    assert (line.seconds, line.starts, line.mean) == (8.0, ((0.0, NIGHT + 4), (4.0, NIGHT + 5000)), 125.0)
    assert line.rates == pytest.approx((125.0, 125.0))
    assert [(one.shards, one.ended) for one in made.worked] == [(2, None), (2, NIGHT + 5005)]
    assert "pauses between invocations are left out" in Tags(made).text


@pytest.mark.parametrize(
    ("told", "want"),
    [
        (share(0.99999), "> 99.99 %"), (share(1), "100 %"), (share(0), "0 %"), (share(0.00001), "< 0.01 %"),
        (share(0.123), "12 %"), (duration(7503), "2 h 05 min"), (duration(0.42), "0.4 s"), (count(1234.4), "1,234"),
    ],
)  # fmt: skip
def test_numbers_in_words(told: str, want: str) -> None:
    assert told == want


# --- what others wrote


def planted(root: Path, plant: str) -> Night:
    """A run in which everything that others can choose is the plant."""
    text = plant.replace("\ud800", "")  # which Parquet does not take
    own = {"note": pa.array([text] * 40), "entities": pa.array([[entity_of(text)]] * 40, pa.list_(ENTITY)),
           "answers": pa.array([[{"text": text, "n_new_tokens": 1, "finish_reason": text}]] * 40, pa.list_(ANSWER))}  # fmt: skip
    found = table(own).set_column(0, "id", pa.array([f"{text}{i}" for i in range(40)]))
    run = night(root, found, "ner", job=plant, dead=1, kept=["note"], model=plant, labels=[plant], prompt=plant)
    run.work(message=text, note=text)
    sink = {"kind": plant, "table": plant, "status": "failed", "message": plant}
    run.finish(sinks=[sink], notes=[plant], message=plant)
    told = {"sinks": [sink], "notes": [plant]}
    return run.note(Invocation("first", NIGHT, NIGHT + 4, NIGHT + 9, plant, plant, plant, {plant: plant}, told))


def entity_of(text: str) -> dict[str, Any]:
    return {"label": text, "text": text, "start": 0, "end": 1, "score": 0.5}


def test_nothing_that_others_wrote_becomes_markup(tmp_path: Path) -> None:
    run = planted(tmp_path / "a", PLANT)
    tags = Tags(page(run.root, ["note"]))
    assert_harmless(tags)
    assert tags.text.count("&lt;script&gt;") > 40
    assert "\x00" not in tags.text
    assert "{{ 7 * 7 }}" in tags.text, "no template runs what a document says"
    other = planted(tmp_path / "b", PLANT + "!")
    assert_harmless(Tags(comparison(run.root, other.root)))


def test_documents_are_shown_only_where_they_are_asked_for(out: Path) -> None:
    own = labelled(LABELS, [0.5, 0.3, 0.2]).append_column("body", pa.array(["a secret document"] * 1000))
    run = night(out, own, kept=["body"]).work().finish()
    assert "a secret document" not in Tags(page(run.root)).text
    assert Tags(page(run.root, ["body"])).text.count("a secret document") == 8


# --- nights before


def test_what_changed_since_the_night_before(out: Path) -> None:
    before = night(out).work().finish()
    assert page(before.root).before is None
    history.keep(before.store, page(before.root).digest)
    shutil.rmtree(before.store.path(before.ledger.control))  # as an overwrite does
    set_live(before.store, [])
    moved = labelled(LABELS, [0.35, 0.45, 0.2], lengths=[7, 30, 90, 2000, 3000])
    run = night(out, moved, print_="b2" * 32, began=NIGHT + 86_400, dead=6, on_long="truncate").work().finish()
    made = page(run.root)
    assert made.before is not None
    assert made.before.run == "a1a1a1a1"
    assert made.verdict.word == "Done, worth a look"
    assert "labels: science: 45 %, 30 % before" in made.verdict.points
    assert "dead letters: null_text: 2.3 %, 0 % before" in made.verdict.points
    assert "length of the documents, tokens: 95 % are below 3,000, 600 before" in made.verdict.points
    assert any(change.what == "task.on_long" for change in made.settings_changed)
    tags = Tags(made)
    assert "Since the run before" in tags.text
    assert 'class="before"' in tags.text


def test_a_night_like_the_one_before_is_not_worth_a_word(tmp_path: Path) -> None:
    night(tmp_path / "2026-06-01").work().finish()
    night(tmp_path / "2026-06-09", print_="d4" * 32, began=NIGHT + 9 * 86_400).work().finish()
    other = labelled(LABELS, [0.51, 0.29, 0.2])
    run = night(tmp_path / "2026-06-02", other, print_="b2" * 32, began=NIGHT + 86_400).work().finish()
    night(tmp_path / "2026-06-01-b", job="another", print_="c3" * 32, began=NIGHT + 60).work().finish()
    made = page(run.root)
    assert made.before is not None
    assert made.before.output == str(tmp_path / "2026-06-01"), (
        "the last one of the same job, in the directory beside it"
    )
    assert made.verdict.word == "Done"
    assert made.verdict.points == ()


def test_the_speed_of_a_moment_says_nothing(out: Path) -> None:
    digest = page(night(out).work().finish().root).digest
    for seconds, told in ((0.07, False), (60.0, True)):
        fast, slow = (replace(digest, speed=Speed(seconds, rate, rate)) for rate in (100.0, 50.0))
        notable = [change.what for change in changes(fast, slow) if change.notable]
        assert notable == ["documents a second"] * told


def test_digests_are_bounded_and_those_of_runs_that_did_not_end_well_are_not_kept(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "KEPT", 2)
    run = night(out)
    history.keep(run.store, page(run.root).digest)
    assert history.kept(run.store) == []
    for i in range(4):
        later = night(out, print_=f"{i}b" * 32, began=NIGHT + i * 1000).work().finish()
        history.keep(later.store, page(later.root).digest)
    assert sorted(one.run for one in history.kept(run.store)) == ["2b2b2b2b", "3b3b3b3b"]


def test_two_outputs_are_compared_document_by_document(tmp_path: Path) -> None:
    a = night(tmp_path / "a").work().finish()
    b = night(tmp_path / "b", labelled(LABELS, [0.35, 0.45, 0.2]), print_="b2" * 32).work().finish()
    made = comparison(a.root, b.root)
    assert made.agreement is not None
    ((was, now, moved),) = made.agreement.moves
    assert (made.agreement.shared, was, now, made.agreement.same) == (1000, "games", "science", 1000 - moved)
    assert moved == pytest.approx(150, abs=5)
    assert {change.what for change in made.changes if change.notable} == {"labels: science", "labels: games"}
    tags = Tags(made)
    assert f"Of 1,000 documents that both have, {1000 - moved} (85 %) have the same <code>label</code>" in tags.text
    assert "They differ" in tags.text
    alike = comparison(a.root, a.root)
    assert "Nothing that is more than chance" in Tags(alike).text


def test_runs_of_different_tasks_are_compared_as_far_as_they_go(tmp_path: Path) -> None:
    a = night(tmp_path / "a").work().finish()
    b = night(tmp_path / "b", TABLES["embed"][1], "embed", print_="b2" * 32).work([0])
    made = comparison(a.root, b.root)
    assert made.agreement is None
    assert_harmless(Tags(made))


def test_a_digest_that_was_kept_is_the_digest(out: Path) -> None:
    run = night(out, dead=2).work().finish()
    digest = page(run.root).digest
    history.keep(run.store, digest)
    assert history.kept(run.store) == [digest]
