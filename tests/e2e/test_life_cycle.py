"""When a pod ends, all its processes end."""

import pytest

from tests.support.stack import Stack, Workspace, running
from tests.support.waiting import eventually

# The durations identify these processes among all others on the machine.
HIDDEN, DETACHED = "86400.375", "86400.625"


def test_a_tool_without_an_environment_ends_with_its_pod(
    stack: Stack, workspace: Workspace
) -> None:
    task_id = workspace.submit(f"env -i sleep {HIDDEN}")
    eventually(lambda: running(HIDDEN))
    stack.kill(stack.agent_pid(workspace.id))
    end = workspace.await_end(task_id)
    assert (end["status"], end["work_stopped"]) == ("failed", "yes")
    # The tool ended before the event reported it.
    assert running(HIDDEN) == []


@pytest.mark.parametrize(
    ("controller", "work_stopped"), [("the one that started it", "yes"), ("a later one", "unknown")]
)
def test_work_stopped_is_yes_only_if_the_controller_can_see_a_detached_tool(
    stack: Stack, workspace: Workspace, controller: str, work_stopped: str
) -> None:
    """A tool leaves its session, its folder and its environment, and kills its agent.

    The controller that started the agent is a subreaper: it inherits and ends the tool. A
    later controller may not find the tool, so it reports `unknown`.
    """
    if controller == "a later one":
        (leader,) = stack.pids("fleet")
        stack.kill(leader)
        eventually(lambda: stack.pids("fleet") not in ([], [leader]))
        # A workspace that becomes idle shows that the new controller leads.
        Workspace(stack)
    script = f"kill -9 $1; exec sleep {DETACHED}"
    detached = f"(cd /; env -i setsid /bin/sh -c '{script}' x $PPID > /dev/null 2>&1 &)"
    end = workspace.await_end(workspace.submit(f"{detached}; sleep {HIDDEN}"))
    assert (end["status"], end["work_stopped"]) == ("failed", work_stopped)
    left = running(DETACHED)
    assert left == [] or work_stopped == "unknown"
    for pid in left:
        stack.kill(pid)
