"""AGENT_COMMAND starts another program as the agent: the sample of docs/agents.md."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.exhaustive.event_sources.packages import NODE, node_modules
from tests.support import faults
from tests.support.stack import ROOT, Gate, Stack, Workspace

SAMPLE = ROOT / "docs" / "agents" / "agent.mjs"
DESCRIPTORS = ROOT / "gen" / "evershell" / "edge" / "workspace.binpb"


@contextmanager
def stack_of(
    tmp_path: Path, name: str, change: Callable[[str], str] = lambda program: program
) -> Iterator[Stack]:
    """A stack whose agents are the sample, possibly changed."""
    # A program finds packages in the folder of its file.
    program = node_modules().parent / name
    program.write_text(change(SAMPLE.read_text()))
    command = shlex.join(map(str, (NODE, program, DESCRIPTORS)))
    stack = Stack(tmp_path / "state", AGENT_COMMAND=command, POD_ISOLATION="none")
    try:
        stack.start()
        yield stack
        assert stack.stop() == 0
    finally:
        stack.kill_if_running()


def test_the_sample_runs_is_cancelled_and_takes_the_next_task(tmp_path: Path) -> None:
    with stack_of(tmp_path, "agent.mjs") as stack:
        workspace = Workspace(stack)
        gate = Gate(workspace)
        agent = stack.agent_pid(workspace.id)
        done = workspace.await_end(workspace.submit("echo one", "echo two"))
        assert (done["status"], done["iterations"]) == ("completed", 2)
        task_id = workspace.submit(gate.command, "echo never")
        workspace.await_phase(task_id, "tool_call")
        assert workspace.cancel()["outcome"] == "accepted"
        gate.open()
        ended = workspace.await_end(task_id)
        assert (ended["status"], ended["iterations"], ended["forced"]) == ("cancelled", 1, False)
        task_id = workspace.submit("sleep 300")
        workspace.await_phase(task_id, "tool_call")
        workspace.cancel(force_after="0.5s")
        ended = workspace.await_end(task_id)
        assert (ended["status"], ended["iterations"], ended["forced"]) == ("cancelled", 1, True)
        assert workspace.await_end(workspace.submit("true"))["status"] == "completed"
        assert (stack.agent_pid(workspace.id), workspace.get()["status"]) == (agent, "idle")
        assert workspace.get()["epoch"] == "1"


def test_an_agent_that_ignores_force_is_ended(tmp_path: Path) -> None:
    def without_force(program: str) -> str:
        (line,) = [line for line in program.splitlines() if "cancelled.get(current)" in line]
        return program.replace(line, "")

    with stack_of(tmp_path, "stubborn.mjs", without_force) as stack:
        workspace = Workspace(stack)
        task_id = workspace.submit("sleep 300")
        workspace.await_phase(task_id, "tool_call")
        workspace.cancel(force_after="0.5s")
        ended = faults.await_terminal(workspace, task_id)
        assert (ended["status"], ended["forced"]) == ("cancelled", True)
        faults.await_workspace(workspace, "failed")
        assert stack.pod_processes(workspace.id) == []
