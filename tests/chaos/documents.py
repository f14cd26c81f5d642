"""Documents that end their worker, hang, raise, or need more memory than there is; and their second chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq
import torch

import batchnlp
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.data.ledger import open_ledgers
from batchnlp.engine.retry import retry_job
from batchnlp.engine.suspects import ALONE, RANGES
from batchnlp.types import Batch, Pieces
from chaos.jobs import POISON, Ended, Job, unless
from chaos.table import Outcome, Place, row

HANG = 5  # seconds that a batch may take there
TOKEN = "kangaroo"  # what POISON cannot be for the model: one token
BAD_TOKEN = 21652


def _codes(job: Job, name: str = "out") -> dict[str, int]:
    (ledger,) = open_ledgers(str(job.out(name)))
    return dict((ledger.outcome() or {})["codes"])


def _isolated(job: Job, ended: Ended, code: str) -> Outcome:
    """Found by few workers, and dead letters of that code."""
    bad = len(job.bad)
    each = math.ceil(math.log(job.per_shard, RANGES)) + ALONE + 1
    broken = unless(
        (ended.code == 0, f"exit {ended.code}: {ended.stderr[-200:]}"),
        (_codes(job) == {code: bad}, f"the dead letters are {_codes(job)}"),
        (len(ended.lost) <= bad * (each + 1), f"{len(ended.lost)} workers were lost"),
    )
    return Outcome.of(job.out("out"), job.ids, len(ended.lost), broken=broken)


@row("a document that ends its worker")
def deadly(place: Place) -> Outcome:
    """Two of them, in two shards of ten."""
    job = Job(place, 10_000, 1_000, [place.random.randrange(2_000), 7_123], runner="ray", replicas=2)
    return _isolated(job, job.run("out", f"forward=exit?{POISON}"), "worker_lost")


@row("a document that ends its process, without Ray")
def deadly_inline(place: Place) -> Outcome:
    """The same command again until it is through, a handful of times."""
    job, ends = Job(place, 3_000, 1_000, [place.random.randrange(3_000)]), list[int]()
    while not ends or (ends[-1] and len(ends) < 9):
        ends.append(job.run("out", f"forward=exit?{POISON}").code)
    broken = unless(
        (_codes(job) == {"worker_lost": 1}, f"the dead letters are {_codes(job)}"), (len(ends) <= 6, str(ends))
    )
    return Outcome.of(job.out("out"), job.ids, len(ends) - 1, broken=broken)


@row("a document that hangs")
def hanging(place: Place) -> Outcome:
    """Its worker is ended after `limits.batch_seconds`, by the driver."""
    limits = {"batch_seconds": HANG}
    job = Job(place, 3_000, 1_000, [place.random.randrange(3_000)], runner="ray", replicas=2, limits=limits)
    return _isolated(job, job.run("out", f"forward=hang?{POISON}"), "hung")


@contextmanager
def _device(ceiling: float = math.inf, token: int | None = None) -> Iterator[list[int]]:
    """A device of so many padded tokens, or one that raises for this token; the tokens of every batch it was given."""
    launch, met = TorchEncoder._launch, list[int]()

    def faulty(self: TorchEncoder, pieces: Pieces, batch: Batch, lengths: Any) -> Any:
        met.append(batch.tokens)
        if batch.tokens > ceiling:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if token is not None and any(token in pieces.ids[pieces.starts[i] : pieces.starts[i + 1]] for i in batch.index):
            raise ValueError("bad luck")
        return launch(self, pieces, batch, lengths)

    with patch.object(TorchEncoder, "_launch", faulty):
        yield met


def _with_token(place: Place, count: int) -> Job:
    """10,000 rows, some of which the model fails on."""
    job = Job(place, 10_000, 1_000, sorted(place.random.sample(range(10_000), count)))
    table = pq.read_table(job.corpus)
    texts = [text.replace(POISON, TOKEN) for text in table["text"].to_pylist()]
    pq.write_table(table.set_column(1, "text", [texts]), job.corpus)
    return job


@row("a document that raises")
def raising(place: Place) -> Outcome:
    """One in 10,000: exactly one dead letter, and no more than 2 log2(batch) + 1 batches beside those of a clean run."""
    job = _with_token(place, 1)
    with _device() as clean:
        batchnlp.run(job.spec("clean"))
    with _device(token=BAD_TOKEN) as met:
        batchnlp.run(job.spec("out"))
    extra, most = len(met) - len(clean), 2 * math.log2(max(clean)) + 1
    broken = unless(
        (_codes(job) == {"forward_error": 1}, f"the dead letters are {_codes(job)}"),
        (extra <= most, f"{extra} extra forwards, where {most:.0f} are allowed"),
    )
    return Outcome.of(job.out("out"), job.ids, 1, broken=broken)


@row("device out of memory")
def out_of_memory(place: Place) -> Outcome:
    """It halves, and nothing as large as what failed is tried again."""
    job, ceiling = Job(place, 10_000, 1_000), 900
    batchnlp.run(job.spec("clean"))
    with _device(ceiling) as met:
        batchnlp.run(job.spec("out"))
    refused = [tokens for tokens in met if tokens > ceiling]
    again = sum(tokens >= min(refused[:i]) for i, tokens in enumerate(refused) if i)
    broken = unless(
        (not again, f"{again} batches over the learned ceiling were tried"),
        (len(refused) <= math.log2(max(met) / ceiling) + 1, f"{len(refused)} batches did not fit"),
    )
    return Outcome.of(job.out("out"), job.ids, len(refused), broken=[*broken, *job.differs("out")])


@row("failed rows, afterwards")
def retried(place: Place) -> Outcome:
    """`retry` runs only those, and gives what a clean run would have given; a second one has nothing to do."""
    job = _with_token(place, 20)
    batchnlp.run(job.spec("clean"))
    with _device(token=BAD_TOKEN):
        batchnlp.run(job.spec("out"))
    with _device() as met:
        (first,) = retry_job(str(job.out("out")))
        tokens = sum(met)
        (second,) = retry_job(str(job.out("out")))
    broken = unless(
        ((first.rows, first.dead) == (20, 0), f"{first.rows} rows were tried, {first.dead} failed"),
        (tokens <= 20 * 48, f"{tokens} tokens went into the model"),
        (second.rows == 0 and second.exit_code == 0 and len(met) > 0, f"the second one: {second.message}"),
    )
    return Outcome.of(job.out("out"), job.ids, 20, broken=[*broken, *job.differs("out")])
