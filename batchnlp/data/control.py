"""Control files: JSON that we wrote, and that may be damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from batchnlp.data.store import Store
from batchnlp.errors import CorruptError


def read_tree(store: Store, name: str, hint: str) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file."""
    data = store.read(name)
    if data is None:
        return None
    with damaged(store.path(name), hint):
        return dict(json.loads(data))


@contextmanager
def damaged(path: str, hint: str) -> Iterator[None]:
    """A control file that does not hold what we wrote into it."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        raise CorruptError(f"{path} is damaged: {type(error).__name__}: {error}", hint) from None
