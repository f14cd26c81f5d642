"""From scores [rows, labels] to the columns that classify and zero-shot share.

label, score            the best label and its score
labels                  multi-label only: every label from the threshold on, best first
scores                  on request: all of them, as a struct with one field a label
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnlp.types import Float32, Int32


class LabelColumns:
    """Turns scores into columns."""

    def __init__(self, names: list[str], *, multi: bool, threshold: float, scores: bool) -> None:
        self.names, self.multi, self.threshold, self.scores = names, multi, threshold, scores

    @property
    def fields(self) -> list[pa.Field]:
        """The result columns."""
        fields = [pa.field("label", pa.string()), pa.field("score", pa.float32())]
        if self.multi:
            fields.append(pa.field("labels", pa.list_(pa.string())))
        if self.scores:
            fields.append(pa.field("scores", pa.struct([(name, pa.float32()) for name in self.names])))
        return fields

    def columns(self, scores: Float32) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
        """(one array a field, rows whose scores are all finite)."""
        finite = finite_rows(scores)
        safe = np.where(finite[:, None], scores, -np.inf)
        best = safe.argmax(axis=1)
        columns = [names_of(self.names, best), pa.array(safe[np.arange(len(best)), best], pa.float32())]
        if self.multi:
            columns.append(self._chosen(safe))
        if self.scores:
            arrays = [pa.array(np.ascontiguousarray(scores[:, i])) for i in range(len(self.names))]
            columns.append(pa.StructArray.from_arrays(arrays, self.names))
        return columns, finite

    def _chosen(self, scores: Float32) -> pa.Array:
        order = np.argsort(-scores, axis=1, kind="stable")
        chosen = np.take_along_axis(scores, order, axis=1) >= self.threshold
        starts = np.r_[0, np.cumsum(chosen.sum(axis=1))].astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(starts), names_of(self.names, order[chosen]))


def finite_rows(values: Float32) -> npt.NDArray[np.bool_]:
    """[rows] whether all values of a row are finite."""
    return np.asarray(np.isfinite(values).all(axis=1), np.bool_)


def names_of(names: list[str], index: npt.NDArray[np.intp] | Int32) -> pa.Array:
    """The names at these positions, as strings."""
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(names, pa.string())).cast(
        pa.string()
    )
