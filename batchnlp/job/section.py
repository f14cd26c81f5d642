"""What the sections of a job share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def as_list(value: Any) -> Any:
    """One value where a list may stand: `keep: lang` and `--labels a,b` mean what they seem to."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Names = Annotated[list[str], BeforeValidator(as_list)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are frozen once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)
