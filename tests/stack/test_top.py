"""The live table of tasks, in a real terminal."""

from tests.support import programs
from tests.support.stack import Gate, Stack, Workspace
from tests.support.terminals import terminal


def test_a_task_is_found_and_cancelled_from_the_live_table(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(gate.command, "echo never")

    with terminal(*programs.command("top", stack.state_dir, "--reason", "seen in top")) as screen:
        screen.await_text(r"task(s)? running, by time, [\d:]+ UTC")
        # Selects the last line, because the newest task is last and the table may have other tasks.
        screen.type("\x1b[B" * 100 + "c")
        asked = screen.await_text(rf"Cancel task {task_id} ")
        assert "cancel_requested_at" not in workspace.task(task_id)
        screen.type("y")
        screen.await_text(f"accepted: task {task_id}", after=asked)
        screen.await_text("cancelling", after=asked)
        gate.open()
        assert workspace.await_end(task_id)["status"] == "cancelled"
        screen.type("q")
        assert screen.await_exit() == 0

    assert workspace.task(task_id)["cancel_reason"] == "seen in top"


def test_ctrl_c_ends_it_and_leaves_the_terminal_as_it_was(stack: Stack) -> None:
    with terminal(*programs.command("top", stack.state_dir)) as screen:
        screen.await_text("running, by time")
        screen.type("\x03")
        assert screen.await_exit() == 130
        assert screen.echoes()
