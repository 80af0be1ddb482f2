"""Waits for the end of a task, and shows on a terminal what it is doing meanwhile."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from evershell.cli.show import progress
from evershell.cli.terminal import printable
from evershell.client import (
    CancelResult,
    Client,
    DeadlineExceededError,
    PermissionDeniedError,
    RateLimitedError,
    Task,
    TaskNotEndedError,
    UnavailableError,
)

# The pause between two reads of the task that a command waits for.
_LOOK_SECONDS = 0.25
# After these errors, the same call may succeed later.
OUTAGES = (UnavailableError, RateLimitedError, DeadlineExceededError)

Say = Callable[[str], None]


@contextmanager
def shown_progress(*, wanted: bool) -> Iterator[Say]:
    """Yields a function that shows a text on standard error, if that is a terminal.

    Each text replaces the previous text. The last text is removed at the end of the block.
    """
    if not wanted or not sys.stderr.isatty():
        yield lambda text: None
        return
    # Imported here, because the import takes 50 ms.
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("waiting for the agent") as status:
        yield lambda text: status.update(Text(printable(text)))


def await_task(
    client: Client,
    workspace_id: str,
    task_id: str,
    wait_seconds: float,
    say: Say,
    sleep: Callable[[float], None] = time.sleep,
) -> Task | None:
    """Waits for the end of the task, even while the service is unavailable.

    Returns the task as it was last read; None if no read has succeeded.
    """
    deadline = time.monotonic() + wait_seconds
    task: Task | None = None
    while True:
        try:
            task = client.get_task(workspace_id, task_id)
            say(f"{task.id} {task.status}: {progress(task)}")
        except OUTAGES as error:
            say(f"{error.code}: the service does not answer; trying again")
        remaining = deadline - time.monotonic()
        if (task is not None and task.has_ended) or remaining <= 0:
            return task
        sleep(min(_LOOK_SECONDS, remaining))


def await_cancellation(
    client: Client, result: CancelResult, wait_seconds: float, say: Say
) -> CancelResult:
    """Waits for the end of the task. Returns the result with the task as it was last read."""
    assert result.task_id is not None
    began = time.monotonic()
    try:
        task = await_task(client, result.workspace_id, result.task_id, wait_seconds, say)
        return replace(result, task=task or result.task)
    except PermissionDeniedError:
        # The credential permits cancelling tasks, but not reading them.
        say("waiting for the end of the task")
    remaining = max(wait_seconds - (time.monotonic() - began), 0.0)
    try:
        ended = client.cancel_and_wait(result.workspace_id, result.task_id, timeout=remaining)
        return replace(result, task=ended.task)
    except TaskNotEndedError as error:
        return replace(result, task=error.task or result.task)
