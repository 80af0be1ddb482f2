"""The screen of `top`: which rows it shows, which one is selected, and what a key does."""

import textwrap
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evershell.cli.running import Reading, Row
from evershell.cli.show import elapsed, first_line
from evershell.cli.terminal import printable
from evershell.client import Task

_KEYS = "↑ ↓ select   c cancel   s sort   q quit"
# The lines of the screen besides the rows and the notice: the title, the header and the keys.
_OTHER_LINES = 3
_UP, _DOWN, _CANCEL = ("up", "k"), ("down", "j"), ("c", "enter", "delete")


def by_time(row: Row) -> tuple[float, str]:
    """The sort key that puts the longest running task first."""
    return (row.began.timestamp() if row.began else float("inf"), row.task.id)


def by_cost(row: Row) -> tuple[Decimal, float, str]:
    """The sort key that puts the most expensive task first."""
    return (-(row.task.usage.cost or Decimal(0)), *by_time(row))


ORDERS: dict[str, Callable[[Row], tuple[object, ...]]] = {"time": by_time, "cost": by_cost}


class Screen:
    """The state of the screen. Calls `cancel` with the row of a task that the user cancels."""

    def __init__(self, order: str, cancel: Callable[[Row], object]) -> None:
        self._order = order
        self._cancel = cancel
        self._reading: Reading | None = None
        self._rows: list[Row] = []
        # The id of the selected task. The screen keeps the id instead of the position, so that the
        # same task stays selected if the order of the rows changes.
        self._selected = ""
        self._first = 0
        self._asked: Row | None = None
        self._notice = ""
        self._problem = ""
        self.is_over = False

    def take(self, reading: Reading) -> None:
        """Shows a new reading."""
        self._reading, self._problem = reading, ""
        self._sort()

    def fail(self, problem: str) -> None:
        """Shows that the service could not be read, and keeps the rows."""
        self._problem = problem

    def tell(self, notice: str) -> None:
        """Shows the result of a cancellation."""
        self._notice = notice

    def press(self, key: str) -> None:
        """Does what the key means."""
        if self._asked is not None:
            asked, self._asked = self._asked, None
            if key == "y":
                self._notice = f"Cancelling task {asked.task.id} …"
                self._cancel(asked)
            else:
                self._notice = "Nothing was cancelled."
        elif key in ("q", "escape"):
            self.is_over = True
        elif key == "s":
            names = list(ORDERS)
            self._order = names[(names.index(self._order) + 1) % len(names)]
            self._sort()
        elif self._rows and key in _UP + _DOWN:
            step = 1 if key in _DOWN else -1
            self._select(self._position() + step)
        elif self._rows and key in _CANCEL:
            self._asked = self._rows[self._position()]

    def _sort(self) -> None:
        position = self._position()
        self._rows = sorted(self._reading.rows if self._reading else (), key=ORDERS[self._order])
        if self._rows and self._selected not in {row.task.id for row in self._rows}:
            self._select(position)

    def _position(self) -> int:
        """The position of the selected row; 0 if no row is selected."""
        ids = [row.task.id for row in self._rows]
        return ids.index(self._selected) if self._selected in ids else 0

    def _select(self, position: int) -> None:
        self._selected = self._rows[min(max(position, 0), len(self._rows) - 1)].task.id

    def render(self, columns: int, lines: int) -> Group:
        """What the screen shows, in a terminal of this size."""
        bottom = textwrap.wrap(printable(self._bottom()), columns) or [""]
        room = max(lines - _OTHER_LINES - len(bottom), 1)
        position = self._position()
        self._first = min(max(self._first, position - room + 1), position)
        rows = self._rows[self._first : self._first + room]
        return Group(
            _line(self._title()),
            self._table(rows, columns),
            *[Text()] * (room - len(rows)),
            *(Text(line, style="bold" if self._asked else "") for line in bottom),
            _line(_KEYS, "dim"),
        )

    def _title(self) -> str:
        if self._reading is None:
            return self._problem or "Reading what runs …"
        count = len(self._reading.rows)
        what = f"{count} task{'' if count == 1 else 's'} running, by {self._order}"
        if self._problem:
            return f"{what}, at {self._reading.at:%H:%M:%S} UTC. {self._problem}"
        return f"{what}, {self._reading.at:%H:%M:%S} UTC"

    def _bottom(self) -> str:
        if self._asked is None:
            return self._notice
        row = self._asked
        name = row.name or "its workspace"
        return (
            f"Cancel task {row.task.id} in {name} ({row.task.workspace_id})? "
            "Its agent finishes the current iteration. y cancels it, any other key does not."
        )

    def _table(self, rows: Sequence[Row], columns: int) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name, right in (("RUNNING", True), ("ITER", True), ("NOW", False), ("COST", True)):
            table.add_column(name, no_wrap=True, justify="right" if right else "left")
        table.add_column("WORKSPACE", no_wrap=True, max_width=max(columns // 4, 9))
        table.add_column("TASK", no_wrap=True, ratio=1)
        table.expand = True
        assert self._reading is not None or not rows
        for row in rows:
            task = row.task
            cells = (
                time_of(row, self._reading.at) if self._reading else "",
                str(task.iterations),
                now(task),
                cost(task),
                row.name or task.workspace_id,
                first_line(task.description, 200),
            )
            is_selected = task.id == self._selected
            table.add_row(
                *(Text(printable(cell)) for cell in cells), style="reverse" if is_selected else ""
            )
        return table


def _line(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def now(task: Task) -> str:
    """What the task is doing."""
    if task.cancel_requested_at is not None:
        return "cancelling"
    return task.status.value if task.phase is None else task.phase.value.replace("_", " ")


def cost(task: Task) -> str:
    """What the task has cost, in USD."""
    return "-" if task.usage.cost is None else f"{task.usage.cost:.2f}"


def time_of(row: Row, at: datetime) -> str:
    """How long the task has run at this time."""
    return "-" if row.began is None else elapsed(at - row.began)
