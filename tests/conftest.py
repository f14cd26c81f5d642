"""What many tests share: an environment without a hub, tiny models, a small corpus."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

CACHE = tempfile.mkdtemp(prefix="batchnlp-tests-")
for name in [n for n in os.environ if n.startswith("BATCHNLP_")] + ["TOKENIZERS_PARALLELISM"]:
    os.environ.pop(name, None)
os.environ |= {
    "BATCHNLP_CACHE": CACHE,
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "token",
    "NO_COLOR": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}

import hypothesis  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("batchnlp", deadline=None)  # a slow machine is no fault
hypothesis.settings.load_profile("batchnlp")

TOPICS = ("games", "science", "web")


def pytest_sessionfinish() -> None:
    """Remove the cache of weight hashes."""
    import shutil

    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's models are saved."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def classifier(models: Path) -> str:
    """Single-label, three topics."""
    import tiny

    return tiny.save_classifier(models / "classifier", TOPICS)


@pytest.fixture(scope="session")
def multi_label(models: Path) -> str:
    """Multi-label by its `problem_type`."""
    import tiny

    labels = ("a", "b", "c", "d")
    return tiny.save_classifier(models / "multi", labels, problem_type="multi_label_classification")


@pytest.fixture(scope="session")
def nli(models: Path) -> str:
    """An NLI head, the usual order."""
    import tiny

    return tiny.save_classifier(models / "nli", ("contradiction", "neutral", "entailment"))


@pytest.fixture(scope="session")
def encoder(models: Path) -> str:
    """A sentence encoder: mean pooling, unit length."""
    import tiny

    return tiny.save_encoder(models / "encoder", normalize=True)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """An output of three shards, planned and not begun."""
    from outputs import Run

    return Run(tmp_path / "out")


def _writer(name: str, models: Path) -> str:
    import tiny_writers

    path = models / name
    return str(path) if path.is_dir() else str(getattr(tiny_writers, f"save_{name}")(path))


@pytest.fixture(scope="session")
def gpt2(models: Path) -> str:
    """Decoder-only, learned positions, no special tokens."""
    return _writer("gpt2", models)


@pytest.fixture(scope="session")
def llama(models: Path) -> str:
    """Decoder-only with a first token and a chat template."""
    return _writer("llama", models)


@pytest.fixture(scope="session")
def bart(models: Path) -> str:
    """Encoder-decoder."""
    return _writer("bart", models)


@pytest.fixture(scope="session")
def t5(models: Path) -> str:
    """Encoder-decoder with relative positions and task prefixes."""
    return _writer("t5", models)


@pytest.fixture(scope="session")
def coded(models: Path) -> str:
    """Encoder-decoder with language codes."""
    return _writer("coded", models)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts servers with an API, and ends them; who asks them is in a hurry."""
    from api_server import ApiServer

    from batchnlp.backends import openai_client

    for name, value in {"PAUSE": 0.001, "LONGEST_PAUSE": 0.01, "ASK_AGAIN": (0.001, 0.001), "PATIENCE": 20.0}.items():
        monkeypatch.setattr(openai_client, name, value)
    with ExitStack() as servers:
        yield lambda *act: servers.enter_context(ApiServer(*act))


Corpus = Callable[..., Path]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Writes texts into Parquet files of ten rows with the columns doc_id, text, lang; returns their directory."""
    import tiny

    def write(texts: list[str | None] | None = None, name: str = "corpus") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        values = tiny.texts(25) if texts is None else texts
        ids = [f"doc-{i:03}" for i in range(len(values))]
        langs = [("en", "de", None)[i % 3] for i in range(len(values))]
        for start in range(0, len(values), 10):
            rows = slice(start, start + 10)
            table = pa.table({
                "doc_id": ids[rows], "text": pa.array(values[rows], pa.string()), "lang": pa.array(langs[rows], pa.string()),
            })  # fmt: skip
            pq.write_table(table, folder / f"{start // 10:02}.parquet")
        return folder

    return write


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URI of a server of our own."""
    from postgres_server import binaries, server

    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL here: install it, or pip install pgserver")
    with server(programs) as uri:
        yield uri


@pytest.fixture
def new_warehouse(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes empty warehouses of a kind."""
    from warehouses import Warehouse

    made: list[Any] = []

    def make(kind: str) -> Warehouse:
        folder, uri = tmp_path / f"warehouse{len(made)}", ""
        folder.mkdir()
        if kind == "postgres":
            schema = f"s{uuid.uuid4().hex}"
            root = request.getfixturevalue("postgres")
            Warehouse(kind, folder, root).sql(f"create schema {schema}")
            uri = f"{root}&options=-csearch_path%3D{schema}"
        made.append(Warehouse(kind, folder, uri))
        return made[-1]

    return make


@pytest.fixture(params=["duckdb", "delta", "iceberg", "postgres", "parquet"])
def warehouse(request: pytest.FixtureRequest, new_warehouse: Callable[..., Any]) -> Any:
    """An empty warehouse of each kind."""
    return new_warehouse(request.param)
