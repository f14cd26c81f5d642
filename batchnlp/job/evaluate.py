"""How results are judged, and what they must reach before a warehouse gets them."""

from __future__ import annotations

from pydantic import Field, model_validator

from batchnlp.job.section import Names, Section


class EvaluateSpec(Section):
    """What the results are held against. Nothing here changes them."""

    labels: str | None = Field(
        None, description="The truth: a column of the results, or FILE:COLUMN, joined by the rows' ids."
    )
    groups: Names = Field(
        default_factory=list, description="Columns of the results, or of the labels' file, whose groups are compared."
    )
    counterfactual: str | None = Field(
        None, description="classify, zero-shot: a YAML file with pairs of terms to swap in the documents."
    )
    against: str | None = Field(None, description="The output of another model for the same documents.")


class Gate(Section):
    """Bounds of one metric; outside of them the run has failed."""

    min: float | None = Field(None, description="The least it may be.")
    max: float | None = Field(None, description="The most it may be.")
    drop: float | None = Field(
        None, ge=0, description="How much worse it may be than in the last run here that passed."
    )

    @model_validator(mode="after")
    def _check(self) -> Gate:
        if self.min is None and self.max is None and self.drop is None:
            raise ValueError("a gate needs min, max or drop, as gates: {macro_f1: {min: 0.8}}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"a gate with min {self.min} over max {self.max} lets nothing through")
        return self
