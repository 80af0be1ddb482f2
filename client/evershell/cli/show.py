"""Prints results and errors: human-readable lines and tables, JSON for scripts."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from io import StringIO
from typing import Any, NoReturn

import click

from evershell.cli.exit_codes import ExitCode
from evershell.cli.terminal import OutputError, printable, say_lines
from evershell.client import AgentUnreachableError, CallError, Task, TaskStatus

# A terminal that has no room for columns of this width gets whole rows.
_MIN_WIDTH = 6
_UNLIMITED = 10_000
_STATUS_COLORS = {
    "accepted": "green",
    "already_requested": "yellow",
    "already_finished": "yellow",
    "no_active_task": "yellow",
    "running": "cyan",
    "busy": "cyan",
    "idle": "green",
    "completed": "green",
    "ok": "green",
    "cancelled": "yellow",
    "stopping": "yellow",
    "stopped": "yellow",
    "failed": "red",
    "delivery_failed": "red",
    "pending": "yellow",
    "disabled": "red",
}


def status(text: str) -> str:
    """The status or outcome, in its colour."""
    return click.style(printable(text), fg=_STATUS_COLORS.get(text), bold=True)


def line(name: str, text: str, *, error: bool = False) -> None:
    """Prints a line with a name and a text. The text may be untrusted."""
    say_lines(f"  {click.style(f'{name:<10}', dim=True)} {printable(text)}", error=error)


def json_value(value: Any) -> None:
    """Prints JSON in ASCII, so that no character can control the terminal."""
    say_lines(json.dumps(value, indent=2))


def json_line(value: Any) -> None:
    """Prints JSON on one line, for streams."""
    say_lines(json.dumps(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Prints a table as wide as the terminal. Texts may be untrusted.

    Its width has no limit in a pipe, or if the terminal is too narrow. The first column is never
    shortened.
    """
    # Imported here, because it takes 50 ms.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    known = [[printable(cell) for cell in row] for row in rows]
    if not known:
        say_lines(empty, error=True)
        return
    printed = StringIO()
    console = Console(file=printed, force_terminal=sys.stdout.isatty(), highlight=False)
    widths = _widths(columns, known, console.width if sys.stdout.isatty() else _UNLIMITED)
    console.width = _UNLIMITED
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        shown.add_column(column, no_wrap=True, overflow="ellipsis", width=width)
    for row in known:
        # Text is printed as it is, and not read as markup.
        shown.add_row(*(Text(cell, style=_STATUS_COLORS.get(cell, "")) for cell in row))
    console.print(shown)
    for row_ in printed.getvalue().splitlines():
        say_lines(row_.rstrip())


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], limit: int) -> list[int]:
    """The widths of the columns: the widest are shortened until the rows fit, never the first."""
    from rich.cells import cell_len

    whole = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    widths = list(whole)
    room = limit - 2 * (len(widths) - 1)
    while sum(widths) > room:
        widest = max(range(1, len(widths)), key=widths.__getitem__)
        if widths[widest] <= _MIN_WIDTH:
            return whole
        widths[widest] -= 1
    return widths


def time(moment: datetime | None) -> str:
    """The time in UTC, to the second."""
    return "-" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def first_line(text: str, limit: int = 60) -> str:
    """The first line of a text, shortened."""
    first = text.strip().partition("\n")[0]
    return first if first == text.strip() and len(first) <= limit else f"{first[:limit]} …"


def progress(task: Task) -> str:
    """How far the task is."""
    word = "iteration" if task.iterations == 1 else "iterations"
    done = f"{task.iterations} {word} completed"
    return done if task.phase is None else f"{done}, now in a {task.phase.replace('_', ' ')}"


def took(task: Task, since: datetime | None) -> str:
    """The time from a moment to the end of the task; empty if one of them is not known."""
    if since is None or task.completed_at is None:
        return ""
    return f"{(task.completed_at - since).total_seconds():.1f} s"


@contextmanager
def reported() -> Iterator[None]:
    """Reports that the block could not print, and goes on: the exit code tells the outcome."""
    try:
        yield
    except BrokenPipeError:
        # The reader has gone.
        pass
    except OutputError as error:
        # Standard error may be full as well.
        with suppress(OSError):
            error.show()


def fail(error: CallError, url: str, *, as_json: bool) -> NoReturn:
    """Prints the error, and exits with its code."""
    with reported():
        if as_json:
            json_value(error.to_dict())
        else:
            print_error(error, url)
    sys.exit(code_of_error(error))


def print_error(error: CallError, url: str) -> None:
    """Prints the slug, the message and the request id to standard error, and what to do next."""
    slug = click.style(printable(error.slug), fg="red", bold=True)
    say_lines(f"{slug}: {printable(error.message)}", error=True)
    if error.request_id:
        line("request", error.request_id, error=True)
    for name, problem in error.fields.items():
        line("field", f"{name}: {problem}", error=True)
    if error.required:
        line("needs", " or ".join(error.required), error=True)
    if error.retry_after is not None:
        line("again", f"after {error.retry_after:g} s", error=True)
    # With neither, the error is not from the service, and no argument is wrong.
    if not error.request_id and not error.fields:
        line("called", url, error=True)
        if error.slug not in ("unavailable", "deadline_exceeded"):
            line("check", "that this is the port of gRPC, not that of REST", error=True)


def code_of_error(error: CallError) -> ExitCode:
    """The exit code of a call that failed."""
    if isinstance(error, AgentUnreachableError):
        return ExitCode.AGENT_UNREACHABLE
    if error.http_status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return ExitCode.DEFECT
    is_unavailable = (
        error.http_status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
        or error.http_status > HTTPStatus.INTERNAL_SERVER_ERROR
    )
    return ExitCode.UNAVAILABLE if is_unavailable else ExitCode.REFUSED


def code_of_end(status: TaskStatus) -> ExitCode:
    """The exit code of a task that has ended without being cancelled by this command."""
    return ExitCode.DONE if status is TaskStatus.COMPLETED else ExitCode.NOT_COMPLETED
