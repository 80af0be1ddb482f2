"""Waits for the end of a task, and shows on a terminal what it is doing meanwhile."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from evershell.cli.show import progress
from evershell.cli.terminal import printable
from evershell.client import (
    CancelResult,
    Client,
    DeadlineExceededError,
    EvershellError,
    PermissionDeniedError,
    RateLimitedError,
    Task,
    TaskNotEndedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from rich.text import Text

# How often a command reads the task that it waits for, and that of a workspace that it follows.
_LOOK_SECONDS = 0.25
_FOLLOW_SECONDS = 1.0
# After these, the outcome is not known, and another call may help.
OUTAGES = (UnavailableError, RateLimitedError, DeadlineExceededError)


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
            closed.wait(_FOLLOW_SECONDS)

    thread = threading.Thread(target=look, daemon=True)
    if sys.stderr.isatty():
        thread.start()
    try:
        yield
    finally:
        closed.set()
        if thread.is_alive():
            thread.join(_FOLLOW_SECONDS)


def await_task(
    client: Client,
    workspace_id: str,
    task_id: str,
    wait_seconds: float,
    view: Progress,
    sleep: Callable[[float], None] = time.sleep,
) -> Task | None:
    """The task when it has ended, or as it is after the wait; None if it could not be read.

    While the service is unavailable, it goes on waiting.
    """
    deadline = time.monotonic() + wait_seconds
    task: Task | None = None
    while True:
        try:
            task = client.get_task(workspace_id, task_id)
            view.update(task)
        except OUTAGES as error:
            view.say(f"{error.slug}: the service does not answer; trying again")
        remaining = deadline - time.monotonic()
        if (task is not None and task.has_ended) or remaining <= 0:
            return task
        sleep(min(_LOOK_SECONDS, remaining))


def await_cancellation(
    client: Client, result: CancelResult, wait_seconds: float, view: Progress
) -> CancelResult:
    """The result with the task when it has ended, or as it is after the wait."""
    assert result.task_id is not None
    began = time.monotonic()
    try:
        task = await_task(client, result.workspace_id, result.task_id, wait_seconds, view)
        return replace(result, task=task or result.task)
    except PermissionDeniedError:
        # The credential may cancel, but not read.
        view.say("waiting for the end of the task")
    remaining = max(wait_seconds - (time.monotonic() - began), 0.0)
    try:
        ended = client.cancel_and_wait(result.workspace_id, result.task_id, timeout=remaining)
        return replace(result, task=ended.task)
    except TaskNotEndedError as error:
        return replace(result, task=error.task or result.task)
