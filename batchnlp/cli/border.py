"""The border of the command line: errors become one line and an exit code, and with `--json` one object."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import click

from batchnlp.cli.streams import discard, log_line, logs_json
from batchnlp.errors import BatchnlpError, Interrupted, SpecError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Commands(click.Group):
    """Commands are listed in the order they are used in."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of definition."""
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """A misspelt command is answered with the nearest one."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            from batchnlp.words import nearest

            near = nearest(args[0], list(self.commands))
            hint = f"; did you mean {near}?" if near else f"; see {ctx.command_path} --help"
            raise click.UsageError(f"there is no command {args[0]}{hint}")
        return super().resolve_command(ctx, args)


class Group(Commands):
    """Errors become one line and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remember whether a program reads along, before anything can fail."""
        ctx.obj = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except click.ClickException as error:
            _tell(ctx, error, error.exit_code, error.format_message())
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """The CLI's border: nothing but a bug of ours leaves it as a traceback."""
        from batchnlp.engine.signals import watch_signals

        try:
            with watch_signals(lambda error: _last_words(ctx, error), _first_words):
                _check_log()
                return super().invoke(ctx)
        except BatchnlpError as error:
            if not isinstance(error, Interrupted):  # which has said so when it came
                _say(f"batchnlp: {error}", level="error")
            _tell(ctx, error, error.exit_code, error.message, error.hint)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:  # when all is said and done: nobody watches any more
            ctx.exit(Interrupted.exit_code)
        except BrokenPipeError:
            discard(sys.stdout)
            ctx.exit(0)
        except click.ClickException as error:
            _tell(ctx, error, error.exit_code, error.format_message())
            raise
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - the CLI's border: what nobody foresaw is told whole, with its own exit code
            _say(f"{traceback.format_exc()}batchnlp: this is a bug; what is committed is safe", level="error")
            what = f"{type(error).__name__}: {error}"
            _tell(ctx, error, BatchnlpError.exit_code, what, "this is a bug; what is committed is safe")
            ctx.exit(BatchnlpError.exit_code)


def _check_log() -> None:
    if (found := os.environ.get("BATCHNLP_LOG", "text")) not in ("text", "json"):
        raise SpecError(f"the environment variable BATCHNLP_LOG is {found}", "it is json or text")


def _first_words(text: str) -> None:
    """That a signal came, at a moment when sys.stderr may be in the middle of a write."""
    os.write(2, (log_line(text) if logs_json() else f"\n{text}\n").encode())


def _say(text: str, *, err: bool = True, level: str = "info") -> None:
    """A line, whether or not somebody reads it."""
    try:
        click.echo(log_line(text, level) if err and logs_json() else text, err=err, nl=not (err and logs_json()))
    except OSError:
        discard(sys.stderr if err else sys.stdout)


def _tell(ctx: click.Context, error: BaseException, exit_code: int, message: str, hint: str = "") -> None:
    """With --json, the error as the last line on stdout."""
    if ctx.obj:
        _say(_json_of(error, exit_code, message, hint), err=False)


def _last_words(ctx: click.Context, error: Interrupted) -> None:
    """The same from a signal handler, which must not meddle with sys.stdout."""
    if ctx.obj:
        os.write(1, f"{_json_of(error, error.exit_code, error.message, error.hint)}\n".encode())


def _json_of(error: BaseException, exit_code: int, message: str, hint: str) -> str:
    status = "stopped" if isinstance(error, Interrupted) else "error"
    tree = {"status": status, "exit_code": exit_code, "error": type(error).__name__, "message": message, "hint": hint}
    return json.dumps(tree)
