"""Where documents come from: files of five formats, local or remote, as one table cut into shards."""

from batchnlp.data.sources.source import Source

__all__ = ["Source"]
