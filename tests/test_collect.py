"""One table from many parts: in input order, whole or not at all, and safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from batchnlp.data import collect as module
from batchnlp.data.collect import collect, schema_of
from batchnlp.data.ledger import Ledger, set_live
from batchnlp.data.parts import DEAD_SCHEMA, PartWriter
from batchnlp.data.store import LocalStore
from batchnlp.errors import CorruptError, OutputError
from batchnlp.types import InputFile, Plan, Resolved, Segment, Shard

PRINT = "fedcba9876543210" * 4
FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://evil","x")']
TEXTS = [*FORMULAS, "plain", "ünïcödé 日本 😀", 'with "quotes", and\nlines', "", None, "a=b", "'quoted", "\u2028"]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("lang", pa.string()),
        ("note", pa.string()),
        ("score", pa.float32()),
        ("scores", pa.struct([("ä", pa.float32()), ("b", pa.float32())])),
        ("labels", pa.list_(pa.string())),
        ("ok", pa.bool_()),
        ("n", pa.int64()),
    ]
)


def rows_of(shard: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"f#{shard * 100 + i}", "lang": ("en", "de")[i % 2], "note": text, "score": 0.1 + i, "n": 2**53 + 1 + i,
            "scores": {"ä": 0.5, "b": None}, "labels": ["x", "ü"][: i % 3], "ok": i % 2 == 0,
        }
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip


def write_run(
    root: Path, print_: str, shards: Sequence[int], order: Sequence[int], partition_by: Sequence[str]
) -> Ledger:
    """A run over `shards` (what each begins at), committed in `order`."""
    store = LocalStore(root)
    ledger, writer = Ledger(store, print_), PartWriter(store, print_, partition_by)
    cuts = tuple(Shard(i, (Segment(0, 0, len(TEXTS) + 1, len(TEXTS) + 1),)) for i in range(len(shards)))
    files = (InputFile("/in/f", "f", 1, "1", "parquet"),)
    plan = Plan(print_, files, cuts, SCHEMA.with_metadata({"batchnlp.run": print_[:8]}))
    ledger.create_plan(plan, {"source": {}}, Resolved("cpu", "float32", "torch", 1, ""), {})
    for index in order:
        dead = pa.Table.from_pylist([{"id": f"dead#{index}", "code": "null_text"}], DEAD_SCHEMA)
        table = pa.Table.from_pylist(rows_of(shards[index]), SCHEMA)
        measured: dict[str, Any] = {"tokens": 1, "executed": 1, "seconds": {}}
        assert ledger.commit(writer.write(index, "a", table, dead, measured), cuts[index], "i")
    return ledger


@pytest.fixture(params=[(), ("lang",), ("lang", "ok")], ids=["flat", "by lang", "by two"])
def out(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Three shards, committed last to first."""
    root = tmp_path / "out"
    write_run(root, PRINT, [0, 1, 2], [2, 0, 1], request.param)
    set_live(LocalStore(root), [PRINT])
    return str(root)


EXPECTED = [row for shard in range(3) for row in rows_of(shard)]


def f32(value: float) -> float:
    return float(pa.scalar(value, pa.float32()).as_py())


def test_parquet_has_all_rows_in_input_order_and_the_plan_s_schema(out: str, tmp_path: Path) -> None:
    target = tmp_path / "all.parquet"
    assert collect(out, str(target), "parquet") == len(EXPECTED)
    table = pq.ParquetFile(target, page_checksum_verification=True).read()
    assert table.to_pylist() == pa.Table.from_pylist(EXPECTED, SCHEMA).to_pylist()
    assert table.schema.remove_metadata() == SCHEMA
    assert table.schema.metadata[b"batchnlp.run"] == PRINT[:8].encode()
    assert pq.ParquetFile(target).num_row_groups == 1, "few large row groups, whatever the shards were"


def test_dead_letters_are_a_table_too(out: str, tmp_path: Path) -> None:
    target = tmp_path / "dead.parquet"
    assert collect(out, str(target), "parquet", dead=True) == 3
    table = pq.read_table(target)
    assert table.schema.remove_metadata() == DEAD_SCHEMA
    assert table["id"].to_pylist() == ["dead#0", "dead#1", "dead#2"]


def test_jsonl_is_a_row_a_line_with_nested_values_and_unicode(out: str, tmp_path: Path) -> None:
    target = tmp_path / "all.jsonl"
    assert collect(out, str(target), "jsonl") == len(EXPECTED)
    text = target.read_text(encoding="utf-8")
    assert "ünïcödé 日本 😀" in text, "not escaped"
    got = [json.loads(line) for line in text.split("\n")[:-1]]
    assert got == [{**row, "score": f32(row["score"])} for row in EXPECTED]


def test_csv_escapes_formulas_and_nothing_else(out: str, tmp_path: Path) -> None:
    target = tmp_path / "all.csv"
    assert collect(out, str(target), "csv") == len(EXPECTED)
    with target.open(encoding="utf-8", newline="") as handle:
        got = list(csv.DictReader(handle))
    assert list(got[0]) == SCHEMA.names
    for row, want in zip(got, EXPECTED, strict=True):
        note = want["note"]
        assert row["note"] == ("'" + note if note in FORMULAS else note or "")
        assert row["id"] == want["id"]
        assert json.loads(row["labels"]) == want["labels"]
        assert json.loads(row["scores"]) == {"ä": 0.5, "b": None}
        assert int(row["n"]) == want["n"], "no float on the way"
        assert f32(float(row["score"])) == f32(want["score"])
    assert {row["score"] for row in got} >= {"0.1", "1.1"}, "as short as it reads back"


def test_no_cell_of_the_csv_starts_a_formula(out: str, tmp_path: Path) -> None:
    target = tmp_path / "all.csv"
    collect(out, str(target), "csv")
    for row in csv.reader(io.StringIO(target.read_text(encoding="utf-8"), newline="")):
        assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


def test_negative_numbers_are_numbers(tmp_path: Path) -> None:
    """A leading minus is a formula in text only."""
    store = LocalStore(tmp_path / "out")
    schema = pa.schema([("id", pa.int64()), ("score", pa.float32())])
    table = pa.table({"id": [-1, 2], "score": pa.array([-0.5, 0.25], pa.float32())})
    ledger = Ledger(store, PRINT)
    shard = Shard(0, (Segment(0, 0, 2, 2),))
    plan = Plan(PRINT, (), (shard,), schema)
    ledger.create_plan(plan, {"source": {}}, Resolved("cpu", "float32", "torch", 1, ""), {})
    measured: dict[str, Any] = {"tokens": 1, "executed": 1, "seconds": {}}
    ledger.commit(PartWriter(store, PRINT, ()).write(0, "a", table, DEAD_SCHEMA.empty_table(), measured), shard, "i")
    set_live(store, [PRINT])
    collect(store.root, str(tmp_path / "o.csv"), "csv")
    assert (tmp_path / "o.csv").read_text() == "id,score\n-1,-0.5\n2,0.25\n"


def test_arrow_reads_the_csv_back(out: str, tmp_path: Path) -> None:
    target = tmp_path / "all.csv"
    collect(out, str(target), "csv")
    options = pa.csv.ParseOptions(newlines_in_values=True)
    assert pa.csv.read_csv(target, parse_options=options)["id"].to_pylist() == [row["id"] for row in EXPECTED]


def test_stdout_is_the_file(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collect(out, str(tmp_path / "all.jsonl"), "jsonl")
    collect(out, "-", "jsonl")
    assert capsys.readouterr().out == (tmp_path / "all.jsonl").read_text(encoding="utf-8")
    with pytest.raises(OutputError, match="Parquet cannot go to stdout"):
        collect(out, "-", "parquet")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_the_file_appears_whole_or_not_at_all(
    out: str, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second part breaks: what was there before still is, and nothing is left beside it."""
    target = tmp_path / f"all.{kind}"
    target.write_text("of yesterday")
    read, seen = module.read_part, []

    def breaking(ledger: Ledger, part: Any) -> Any:
        seen.append(part)
        if len(seen) == 2:
            raise OSError("the disk is gone")
        assert target.read_text() == "of yesterday", "visible before it is whole"
        return read(ledger, part)

    monkeypatch.setattr(module, "read_part", breaking)
    monkeypatch.setattr(module, "ROW_GROUP", 1)  # so that the first part is written before the second is read
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="the disk is gone"):
        collect(out, str(target), kind)
    assert target.read_text() == "of yesterday"
    assert sorted(tmp_path.iterdir()) == before


def test_a_target_that_cannot_be(out: str, tmp_path: Path) -> None:
    for target in (tmp_path / "no" / "such.csv", tmp_path):
        with pytest.raises(OutputError, match="cannot write"):
            collect(out, str(target), "csv")


def test_a_damaged_part_is_an_error_and_no_wrong_rows(out: str, tmp_path: Path) -> None:
    path = next(Path(out).rglob("part-00001-*.parquet"))
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=r"part-00001.* cannot be read: .* \(remove .*commits/00001\.json and run"):
        collect(out, str(tmp_path / "all.jsonl"), "jsonl")
    assert not (tmp_path / "all.jsonl").exists()


def test_two_runs_in_the_order_they_came(tmp_path: Path) -> None:
    root = tmp_path / "out"
    other = "00" * 32
    write_run(root, PRINT, [0], [0], ())
    write_run(root, other, [7], [0], ())
    set_live(LocalStore(root), [PRINT, other])
    collect(str(root), str(tmp_path / "all.jsonl"), "jsonl")
    ids = [json.loads(line)["id"] for line in (tmp_path / "all.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert ids == [row["id"] for shard in (0, 7) for row in rows_of(shard)]
    assert schema_of(str(root)).metadata is None, "of two runs none speaks for the table"


def test_runs_with_other_columns_are_refused(tmp_path: Path) -> None:
    root, other = tmp_path / "out", "00" * 32
    write_run(root, PRINT, [0], [0], ())
    Ledger(LocalStore(root), other).create_plan(
        Plan(other, (), (), pa.schema([("id", pa.string())])), {}, Resolved("cpu", "float32", "torch", 1, ""), {}
    )
    set_live(LocalStore(root), [PRINT, other])
    with pytest.raises(OutputError, match="different columns"):
        collect(str(root), str(tmp_path / "x.csv"), "csv")


def test_a_run_under_way_gives_what_is_committed(tmp_path: Path) -> None:
    root = tmp_path / "out"
    write_run(root, PRINT, [0, 1, 2], [1], ())
    set_live(LocalStore(root), [PRINT])
    assert collect(str(root), str(tmp_path / "x.csv"), "csv") == len(TEXTS)


def test_what_json_cannot_say_is_null_or_base64(tmp_path: Path) -> None:
    store, shard = LocalStore(tmp_path / "out"), Shard(0, (Segment(0, 0, 3, 3),))
    deep = {"v": [float("-inf"), 1.0], "b": b"\x00"}
    table = pa.table({"id": ["a", "b", "c"], "x": [float("nan"), float("inf"), 0.5], "raw": [b"\xff", b"", None],
                      "deep": [deep] * 3})  # fmt: skip
    ledger, plan = Ledger(store, PRINT), Plan(PRINT, (), (shard,), table.schema)
    ledger.create_plan(plan, {"source": {}}, Resolved("cpu", "float32", "torch", 1, ""), {})
    measured: dict[str, Any] = {"tokens": 1, "executed": 1, "seconds": {}}
    ledger.commit(PartWriter(store, PRINT, ()).write(0, "a", table, DEAD_SCHEMA.empty_table(), measured), shard, "i")
    set_live(store, [PRINT])
    collect(store.root, str(tmp_path / "o.jsonl"), "jsonl")
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["x"] for row in rows] == [None, None, 0.5]
    assert [row["raw"] for row in rows] == ["/w==", "", None]
    assert rows[0]["deep"] == {"v": [None, 1.0], "b": "AA=="}
    collect(store.root, str(tmp_path / "o.csv"), "csv")
    with (tmp_path / "o.csv").open(newline="") as handle:
        first = next(csv.DictReader(handle))
    assert (first["raw"], json.loads(first["deep"])) == ("/w==", rows[0]["deep"])
