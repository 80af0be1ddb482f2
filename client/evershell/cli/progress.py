"""Shows on a terminal what a task is doing while a command waits."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from evershell.cli.show import progress
from evershell.cli.terminal import printable
from evershell.client import Client, EvershellError, Task

if TYPE_CHECKING:
    from rich.text import Text


_LOOK_SECONDS = 1.0


class Progress:
    """The line that is redrawn while the command waits."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._text = "waiting for the agent"

    def update(self, task: Task) -> None:
        """Shows the state of the task."""
        self._text = f"{printable(task.id)} {task.status}: {progress(task)}"

    def say(self, text: str) -> None:
        """Shows a text until the next update."""
        self._text = printable(text)

    def __rich__(self) -> "Text":
        from rich.text import Text

        seconds = time.monotonic() - self._began
        return Text.assemble((f"{seconds:6.1f} s  ", "cyan"), self._text)


@contextmanager
def shown_progress(*, wanted: bool) -> Iterator[Progress]:
    """Shows the progress on standard error, if that is a terminal. It vanishes at the end."""
    view = Progress()
    if not wanted or not sys.stderr.isatty():
        yield view
        return
    # Imported here, because it takes 50 ms.
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    # Lines that are printed to the same terminal meanwhile appear above the progress.
    live = Live(
        view,
        console=console,
        refresh_per_second=8,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    with live:
        yield view


@contextmanager
def following(client: Client, workspace_id: str, view: Progress) -> Iterator[None]:
    """Looks each second what the agent of the workspace is doing, while the context is open."""
    closed = threading.Event()

    def look() -> None:
        while not closed.is_set():
            try:
                workspace = client.get_workspace(workspace_id)
                if workspace.current_task_id:
                    view.update(client.get_task(workspace_id, workspace.current_task_id))
                else:
                    view.say(f"workspace {workspace.status}")
            except EvershellError as error:
                view.say(str(error))
            closed.wait(_LOOK_SECONDS)

    thread = threading.Thread(target=look, daemon=True)
    if sys.stderr.isatty():
        thread.start()
    try:
        yield
    finally:
        closed.set()
        if thread.is_alive():
            thread.join(_LOOK_SECONDS)
