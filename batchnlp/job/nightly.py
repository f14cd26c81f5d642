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
from batchnlp.words import nearest

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


class HookSpec(Section):
    """Who is told how a run ended: a command, a webhook, or Prometheus by a file."""

    when: Annotated[list[Event], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = Field(
        default=["failure", "threshold"],
        min_length=1,
        description="success; threshold: done, but over limits.max_failed or below a gate; failure: all else. Not for textfile, "
        "which is written at every end.",
    )
    command: Annotated[list[str], BeforeValidator(lambda v: shlex.split(v) if isinstance(v, str) else v)] | None = (
        Field(None, description="A program with its arguments, without a shell; it reads the results as JSON on stdin.")
    )
    webhook: str | None = Field(None, description="An address that the results are posted to as JSON.")
    webhook_env: str | None = Field(
        None, description="The environment variable with the address, where that is a secret itself."
    )
    token_env: str | None = Field(
        None, description="webhook: the environment variable with a token, sent as Authorization: Bearer."
    )
    textfile: str | None = Field(None, description="The directory of node_exporter's textfile collector.")
    timeout: float = Field(30.0, gt=0, le=600, description="Seconds until a command or a webhook is given up.")

    @field_validator("webhook_env", "token_env")
    @classmethod
    def _check_variable(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(VARIABLE, value):  # it may be the secret: never show it
            raise ValueError("hooks.webhook_env and hooks.token_env name environment variables, as ALERT_URL")
        return value

    @field_validator("webhook")
    @classmethod
    def _check_webhook(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("hooks.webhook is no address; write it as https://host/path")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "hooks.webhook with a secret in it would be written into the plan; use webhook_env, or token_env"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> HookSpec:
        kinds = [k for k in ("command", "webhook", "webhook_env", "textfile") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise ValueError(
                f"a hook has one of command, webhook, webhook_env and textfile, not {' and '.join(kinds) or 'none'}"
            )
        if self.command == []:
            raise ValueError("hooks.command is empty; name a program")
        if self.token_env is not None and not kinds[0].startswith("webhook"):
            raise ValueError(f"hooks.token_env belongs to a webhook, not to {kinds[0]}")
        return self

    @property
    def name(self) -> str:
        """What it is called in messages, which have no secrets in them."""
        if self.command is not None:
            return f"the command {self.command[0]}"
        return "the textfile" if self.textfile is not None else f"the webhook {self.webhook or self.webhook_env}"
