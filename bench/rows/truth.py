"""Cancels some real tasks of a real agent while the bench loads the service."""

from threading import Thread

from bench import windows
from bench.figures import Figures, Row, at_least, figure
from bench.plan import Block, Setting, Window
from bench.side import Side
from tests.support.stack import Workspace

_TASKS = 10
_CALLERS = 16
_ONE_OF_EACH = """
    SELECT count(*) FILTER (WHERE type = 'task_cancel_requested') = 1
        AND count(*) FILTER (WHERE type = 'task_completed') = 1
        AND count(*) FILTER (WHERE type = 'task_completed' AND payload->>'status' = 'cancelled') = 1
    FROM events WHERE workspace_id = %s AND task_id = %s
"""


def blocks(quick: bool) -> list[Block]:
    """One block."""
    return [
        Block(
            name="real tasks",
            windows=[Window("real tasks", _cancel_real_tasks)],
            rows=[
                Row(
                    name="real tasks that ended cancelled, once, under load",
                    unit=f"of {_TASKS}",
                    value=figure("cancelled", "real tasks"),
                    target=at_least(_TASKS),
                )
            ],
            rounds=2,
            quick_rounds=1,
        )
    ]


def _cancel_real_tasks(setting: Setting, side: Side) -> Figures:
    """Cancels tasks. Returns how many of them have the right events.

    These are one `task_cancel_requested`, and one `task_completed` with the status `cancelled`.
    """
    workspace = _DemoWorkspace(side)
    ended: list[str] = []

    def cancel_all() -> None:
        for _ in range(_TASKS):
            task_id = workspace.submit(*["sleep 0.1"] * 50)
            workspace.await_phase(task_id, "tool_call")
            answer = workspace.cancel(task_id=task_id)
            assert answer["outcome"] == "accepted", answer
            workspace.await_end(task_id)
            ended.append(task_id)

    thread = Thread(target=cancel_all)
    thread.start()
    load = windows.cancel(_CALLERS, 0.5)
    while thread.is_alive():
        load(setting, side)
    thread.join()
    right = 0
    for task_id in ended:
        row = side.database.execute(_ONE_OF_EACH, (workspace.id, task_id)).fetchone()
        right += row is not None and bool(row[0])
    return {"cancelled": right}


class _DemoWorkspace(Workspace):
    """The demo workspace. Its agent was started with the stack."""

    def __init__(self, side: Side) -> None:
        self.service = self.stack = side.stack
        self.id = side.stack.ready["demo"]["workspace_id"]
        self.path = f"/v1/workspaces/{self.id}"
