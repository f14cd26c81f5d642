"""What a job that runs by itself says of its nights: when, and who is told how it went."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BeforeValidator, Field, field_validator, model_validator

from batchnlp.job.cron import Cron
from batchnlp.job.section import Section
from batchnlp.types import nearest

VARIABLE = r"[A-Z_][A-Z0-9_]*"
Event = Literal["success", "failure", "threshold"]


class ScheduleSpec(Section):
    """When the job runs by itself."""

    cron: str = Field(description="Five fields, as in a crontab: minute, hour, day, month, day of the week.")
    timezone: str = Field("UTC", description="Whose clock that is, and whose date the run has: Europe/Berlin.")

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, value: str) -> str:
        try:
            Cron.parse(value)
        except ValueError as error:
            raise ValueError(f"schedule.cron: {error}") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        known = available_timezones()
        if value not in known:
            near = nearest(value, sorted(known))
            more = f"did you mean {near}?" if near else "write it as Europe/Berlin or UTC"
            raise ValueError(f"schedule.timezone: there is no {value!r}; {more}")
        return value

    @property
    def times(self) -> Cron:
        """The expression, parsed."""
        return Cron.parse(self.cron)

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)


