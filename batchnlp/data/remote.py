"""Files that are not on this machine, by fsspec."""

from __future__ import annotations

from typing import Any

import fsspec.core

from batchnlp.errors import MissingExtraError, UsageError

ALIASES = {"s3a": "s3", "gcs": "gs"}  # other names of the same store


def is_remote(path: str) -> bool:
    """Whether `path` is a URI; local files are absolute paths."""
    return "://" in path


def below(path: str, top: str) -> bool:
    """Whether a URI is `top` or lies below it."""
    path, top = (_usual(uri.rstrip("/")) for uri in (path, top))
    return path == top or path.startswith(f"{top}/")


def _usual(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{ALIASES.get(scheme, scheme)}://{rest}"


def filesystem(uri: str, kind: type[UsageError], *, cached: bool = True) -> tuple[Any, str]:
    """The fsspec filesystem of a URI, and the path in it; `kind` is the error where there is none. `cached`: listings may
    be those of before."""
    try:
        fs, path = fsspec.core.url_to_fs(uri, **({} if cached else {"use_listings_cache": False}))
    except ImportError as error:
        if uri.startswith(("s3://", "s3a://")):
            raise MissingExtraError.of("s3fs", "s3") from error
        raise kind(f"{uri}: {error}", "install that package, or use local files") from error
    except (ValueError, TypeError, OSError) as error:
        raise kind(f"{uri} cannot be opened: {reason(error)}") from error
    return fs, path


def reason(error: BaseException) -> str:
    """The error in one line."""
    return next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
