"""The readers, by format."""

from __future__ import annotations

from collections.abc import Callable

from batchnlp.data.sources.arrow import ArrowReader
from batchnlp.data.sources.base import Reader
from batchnlp.data.sources.delimited import CsvReader
from batchnlp.data.sources.jsonl import JsonlReader
from batchnlp.data.sources.parquet import ParquetReader
from batchnlp.data.sources.storage import Store
from batchnlp.data.sources.text import TextReader
from batchnlp.types import SourceConfig

READERS: dict[str, Callable[[Store, SourceConfig], Reader]] = {
    "parquet": ParquetReader,
    "jsonl": JsonlReader,
    "csv": CsvReader,
    "arrow": ArrowReader,
    "text": TextReader,
}
