"""Prints results and errors as human-readable lines and tables, or as JSON for scripts."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from io import StringIO
from typing import Any, NoReturn

import click

from evershell.cli.exit_codes import ExitCode
from evershell.cli.terminal import OutputError, printable, say_lines, width, wrapped
from evershell.client import AgentUnreachableError, CallError, Task, TaskStatus

# Words of up to this length, such as ids, are never broken. Longer words may be broken.
_LONGEST_WORD = 31
_UNLIMITED = 10_000
# If no service has answered, these texts are printed before gRPC's own error text.
_UNANSWERED = {
    "unavailable": "The service cannot be reached: ",
    "deadline_exceeded": "The service did not answer within --timeout: ",
}
_GAP = 2
# The column at which the text of a line begins, after its name.
_INDENT = 16
_STATUS_COLORS = {
    "accepted": "green",
    "already_requested": "yellow",
    "already_finished": "yellow",
    "no_active_task": "yellow",
    "running": "cyan",
    "busy": "cyan",
    "idle": "green",
    "completed": "green",
    "held": "green",
    "ok": "green",
    "cancelled": "yellow",
    "stopping": "yellow",
    "deleting": "yellow",
    "stopped": "yellow",
    "suspended": "yellow",
    "broken": "red",
    "failed": "red",
    "delivery_failed": "red",
    "pending": "yellow",
    "disabled": "red",
}


def status(text: str) -> str:
    """The status or outcome, in its colour."""
    return click.style(printable(text), fg=_STATUS_COLORS.get(text), bold=True)


def said(word: str, text: str, *, error: bool = False) -> None:
    """Prints a status, an outcome or a code in its colour, then a text. Both may be untrusted."""
    word, known = printable(word), wrapped(f"{printable(word)}: {printable(text)}", error=error)
    color = _STATUS_COLORS.get(word, "red" if error else None)
    say_lines(click.style(word, fg=color, bold=True) + known[len(word) :], error=error)


def line(name: str, text: str, *, error: bool = False) -> None:
    """Prints a line with a name and a text. The text may be untrusted."""
    _line(name, wrapped(printable(text), _INDENT, error=error), error=error)


def command(name: str, text: str, *, error: bool = False) -> None:
    """Prints a line with a name and a command, without line breaks, so that it can be copied."""
    _line(name, printable(text), error=error)


def _line(name: str, text: str, *, error: bool) -> None:
    say_lines(f"  {click.style(f'{name:<{_INDENT - 3}}', dim=True)} {text}", error=error)


def json_value(value: Any) -> None:
    """Prints JSON in ASCII, so that none of its characters can control the terminal."""
    say_lines(json.dumps(value, indent=2))


def json_line(value: Any) -> None:
    """Prints JSON on one line, for streams."""
    say_lines(json.dumps(value))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> None:
    """Prints a table whose cells are wrapped between words. Texts may be untrusted.

    In a pipe, each row is one line. If the terminal is too narrow for whole words, each row is a
    paragraph with a line for each cell.
    """
    known = [[printable(cell) for cell in row] for row in rows]
    if not known:
        say_lines(empty, error=True)
        return
    limit = width()
    widths = _widths(columns, known, _UNLIMITED if limit is None else limit)
    if widths is None:
        for row in known:
            _paragraph(columns, row, limit or _UNLIMITED)
        return
    # Imported here, because the import takes 50 ms.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    printed = StringIO()
    console = Console(file=printed, force_terminal=limit is not None, highlight=False)
    console.width = _UNLIMITED
    shown = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column, chosen in zip(columns, widths, strict=True):
        shown.add_column(column, overflow="fold", width=chosen)
    for row in known:
        # `Text` keeps rich from interpreting the cell as markup.
        shown.add_row(*(Text(cell, style=_STATUS_COLORS.get(cell, "")) for cell in row))
    console.print(shown)
    for row_ in printed.getvalue().splitlines():
        say_lines(row_.rstrip())


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], limit: int) -> list[int] | None:
    """The widths of the columns. The widest columns are narrowed until the rows fit.

    None if the rows fit only with broken words.
    """
    from rich.cells import cell_len

    cells = list(zip(columns, *rows, strict=True))
    widths = [max(map(cell_len, each)) for each in cells]
    least = [
        min(max(cell_len(word) for cell in each for word in (*cell.split(), "")), _LONGEST_WORD)
        for each in cells
    ]
    room = limit - _GAP * (len(widths) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        slack = [width - smallest for width, smallest in zip(widths, least, strict=True)]
        widths[slack.index(max(slack))] -= 1
    return widths


def _paragraph(columns: Sequence[str], row: Sequence[str], limit: int) -> None:
    """Prints the first two cells of a row, and below them each further cell with a value."""
    first, second, begin = row[0], row[1], 2
    if len(first) + _GAP + len(second) > limit:
        second, begin = "", 1
    said_first = click.style(first, bold=True)
    say_lines(f"{said_first}{' ' * _GAP}{status(second)}" if second else said_first)
    for column, cell in zip(columns[begin:], row[begin:], strict=True):
        if cell not in ("", "-"):
            line(column.lower(), cell)


def time(moment: datetime | None) -> str:
    """The time in UTC, to the second."""
    return "-" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def first_line(text: str, limit: int = 60) -> str:
    """The first line of a text, shortened."""
    first = text.strip().partition("\n")[0]
    return first if first == text.strip() and len(first) <= limit else f"{first[:limit]} …"


def progress(task: Task) -> str:
    """The progress of the task."""
    word = "iteration" if task.iterations == 1 else "iterations"
    done = f"{task.iterations} {word} completed"
    return done if task.phase is None else f"{done}, now in a {task.phase.replace('_', ' ')}"


def took(task: Task, since: datetime | None) -> str:
    """The time from `since` to the end of the task; empty if one of the times is not known."""
    if since is None or task.completed_at is None:
        return ""
    return f"{(task.completed_at - since).total_seconds():.1f} s"


def elapsed(time: timedelta) -> str:
    """A duration: `59 s`, `1:05 min`, `2:05 h`, `3 d 4 h`."""
    seconds = max(int(time.total_seconds()), 0)
    minutes, hours, days = seconds // 60, seconds // 3_600, seconds // 86_400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours}:{minutes % 60:02} h"
    return f"{minutes}:{seconds % 60:02} min" if minutes else f"{seconds} s"


@contextmanager
def reported() -> Iterator[None]:
    """If the block cannot print, reports the problem and continues.

    The exit code of the command then still tells the outcome of the call.
    """
    try:
        yield
    except BrokenPipeError:
        # The reader has closed the pipe.
        pass
    except OutputError as error:
        # Standard error may not be writable either.
        with suppress(OSError):
            error.show()


def fail(error: CallError, url: str, *, as_json: bool, code: int | None = None) -> NoReturn:
    """Prints the error, and exits with `code`, by default the exit code of the error."""
    with reported():
        if as_json:
            # Prints the JSON on one line, like the events of `watch`.
            json_line(error.to_dict())
        else:
            print_error(error, url)
    sys.exit(code_of_error(error) if code is None else code)


def print_error(error: CallError, url: str) -> None:
    """Prints the code, the message and the request id to standard error, and what to do next."""
    what = "" if error.is_from_service else _UNANSWERED.get(error.code, "")
    said(error.code, what + error.message, error=True)
    if error.request_id:
        line("request", error.request_id, error=True)
    for name, problem in error.fields.items():
        line("field", f"{name}: {problem}", error=True)
    if error.required:
        line("needs", " or ".join(error.required), error=True)
    if error.retry_after is not None:
        line("again", f"after {error.retry_after:g} s", error=True)
    # The call may not have reached the service, and the URL may show why.
    if not error.request_id and not error.fields:
        line("called", url, error=True)


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
    """The exit code of a command that has followed a task to its end, and has not cancelled it."""
    return ExitCode.DONE if status is TaskStatus.COMPLETED else ExitCode.NOT_COMPLETED
