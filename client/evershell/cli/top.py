"""The command `top`."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

import click

from evershell.cli import show
from evershell.cli.exit_codes import TABLE
from evershell.cli.options import Call, service_options
from evershell.cli.running import Reading, Readings, Row, Running
from evershell.cli.screen import ORDERS, Screen, cost, now, time_of
from evershell.client import CallError

_HELP = f"""Show what runs in your organization, and cancel it from there.

On a terminal, the table is live. Select a task with the arrow keys, and cancel it with c; the
command asks once. Otherwise the command prints the table once.

{TABLE}"""
# The interval at which the screen is drawn.
_FRAME_SECONDS = 0.2


@click.command(help=_HELP)
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(ORDERS)),
    default="time",
    help="Put the longest running task first, or the most expensive one. Default: time.",
)
@click.option(
    "--reason",
    default="",
    metavar="TEXT",
    help="Recorded with each task that is cancelled; at most 500 characters.",
)
@service_options
def top(call: Call, order: str, reason: str) -> None:
    """Shows the live table until a key ends it, or prints the table once."""
    running = Running(call.client)
    if call.as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _print_once(call, running.read(), order)
    else:
        _Live(call, running, order, reason).run()


def _print_once(call: Call, reading: Reading, order: str) -> None:
    rows = sorted(reading.rows, key=ORDERS[order])
    if call.as_json:
        show.json_value({"tasks": [row.task.to_dict() for row in rows]})
        return
    show.table(
        ["TASK", "RUNNING", "ITERATIONS", "NOW", "COST", "WORKSPACE", "NAME", "DESCRIPTION"],
        [
            (
                row.task.id,
                time_of(row, reading.at),
                str(row.task.iterations),
                now(row.task),
                cost(row.task),
                row.task.workspace_id,
                row.name or "-",
                show.first_line(row.task.description),
            )
            for row in rows
        ],
        "Nothing runs.",
    )


class _Live:
    """The live table. The main thread draws it and reads keys.

    The threads of Readings read the tasks, and another thread cancels them.
    """

    def __init__(self, call: Call, running: Running, order: str, reason: str) -> None:
        self._call = call
        self._reason = reason
        self._canceller = ThreadPoolExecutor(1)
        self._screen = Screen(order, lambda row: self._canceller.submit(self._cancel, row))
        # The changes to the screen that the other threads ask for.
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._readings = Readings(
            call.client,
            running,
            lambda reading: self._news.put(partial(self._screen.take, reading)),
            lambda problem: self._news.put(partial(self._screen.fail, problem)),
        )

    def run(self) -> None:
        # Imported here, because keyboard.py works only on Unix.
        from rich.console import Console
        from rich.live import Live

        from evershell.cli.keyboard import read_keys, single_keys

        console = Console()
        with (
            self._reader(),
            single_keys(),
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while not self._screen.is_over:
                live.update(self._screen.render(*console.size), refresh=True)
                for key in read_keys(_FRAME_SECONDS):
                    self._screen.press(key)
                while not self._news.empty():
                    self._news.get()()

    @contextmanager
    def _reader(self) -> Iterator[None]:
        self._readings.start()
        try:
            yield
        finally:
            self._readings.end()
            self._canceller.shutdown()

    def _cancel(self, row: Row) -> None:
        """Cancels the task by its id, so that no other task can be cancelled instead."""
        try:
            result = self._call.client.cancel(
                row.task.workspace_id, row.task.id, reason=self._reason
            )
            notice = f"{result.outcome}: task {row.task.id}"
        except CallError as error:
            notice = str(error)
        self._news.put(partial(self._screen.tell, notice))
        self._readings.hurry()
