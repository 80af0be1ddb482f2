"""When a pod ends, all its processes end."""

import psutil
import pytest

from tests.support.sandbox import skip_without_sandbox
from tests.support.stack import Stack, Workspace, running, unique_seconds
from tests.support.waiting import eventually

# Arguments of `sleep` that identify the test's processes among all processes on the machine.
HIDDEN, DETACHED = unique_seconds(), unique_seconds()


@pytest.mark.parametrize("controller", ["the one that started it", "a later one"])
def test_every_process_of_a_pod_ends_with_its_agent(
    stack: Stack, workspace: Workspace, controller: str
) -> None:
    """A tool leaves its session, its folder and its environment, and ignores SIGTERM.

    Still, the kernel ends the tool together with its agent, and any controller can see that the
    agent has ended.
    """
    skip_without_sandbox()
    task_id = workspace.submit(
        '(cd /; env -i setsid /bin/sh -c \'trap "" TERM; '
        f"sleep {DETACHED}' > /dev/null 2>&1 &); sleep {HIDDEN}"
    )
    eventually(lambda: running(DETACHED) and running(HIDDEN))
    agent = stack.agent_pid(workspace.id)
    if controller == "a later one":
        for controller_pid in stack.pids("fleet"):
            stack.kill(controller_pid)
        stack.kill(agent)
    else:
        stack.kill(agent)
    end = workspace.await_end(task_id)
    assert (end["status"], end["work_stopped"]) == ("failed", "yes")
    assert running(DETACHED) == running(HIDDEN) == []


def test_an_agent_is_forked_and_a_child_of_the_controller(
    stack: Stack, workspace: Workspace
) -> None:
    """An agent that is not forked is a child of bwrap, and takes three times as long to start."""
    skip_without_sandbox()
    agent = psutil.Process(stack.agent_pid(workspace.id))
    eventually(lambda: agent.ppid() in stack.pids("fleet"))
