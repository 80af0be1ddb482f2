"""The end of everything that runs in a pod."""

import pytest

from tests.support.stack import Stack, Workspace, running
from tests.support.waiting import eventually

# Told apart from every other sleep on the machine by their numbers.
HIDDEN, GONE = "86400.375", "86400.625"


def test_a_tool_that_hides_its_environment_ends_with_its_pod_too(
    stack: Stack, workspace: Workspace
) -> None:
    task_id = workspace.submit(f"env -i sleep {HIDDEN}")
    eventually(lambda: running(HIDDEN))
    stack.kill(stack.agent_pid(workspace.id))
    end = workspace.await_end(task_id)
    assert (end["status"], end["work_stopped"]) == ("failed", "yes")
    # It had ended before that was said.
    assert running(HIDDEN) == []


@pytest.mark.parametrize(
    ("controller", "told"), [("the one that started it", "yes"), ("a later one", "unknown")]
)
def test_a_tool_that_has_left_everything_and_kills_its_agent(
    stack: Stack, workspace: Workspace, controller: str, told: str
) -> None:
    """What the agent leaves goes to its controller, and ends; where that has gone itself, nobody
    says that all has ended.
    """
    if controller == "a later one":
        (leader,) = stack.pids("fleet")
        stack.kill(leader)
        eventually(lambda: stack.pids("fleet") not in ([], [leader]))
        # It leads: what is new is started.
        Workspace(stack)
    evading = f"(cd /; env -i setsid /bin/sh -c 'kill -9 $1; exec sleep {GONE}' x $PPID > /dev/null 2>&1 &)"
    end = workspace.await_end(workspace.submit(f"{evading}; sleep {HIDDEN}"))
    assert (end["status"], end["work_stopped"]) == ("failed", told)
    left = running(GONE)
    assert left == [] or told == "unknown"
    for pid in left:
        stack.kill(pid)
