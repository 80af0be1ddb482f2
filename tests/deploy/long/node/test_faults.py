"""Pods on a real node end unexpectedly, and the workspace and its task show why."""

import pytest

from tests.deploy.long.node import node
from tests.deploy.long.node.endings import assert_truth, busy
from tests.deploy.long.node.pods import GATE, open_gate, running_pod
from tests.deploy.long.node.stacks import MEMORY_LIMIT, NodeWorkspace
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(400)

OUT_OF_MEMORY = f"its agent ran out of memory (its limit is {MEMORY_LIMIT})"


@pytest.fixture
def workspace(stack: Stack) -> NodeWorkspace:
    return NodeWorkspace(stack)


def test_an_agent_that_is_killed(workspace: NodeWorkspace) -> None:
    node.require_shell()
    task_id = busy(workspace, is_cancelled=False)
    node.kill_agent(running_pod(workspace))
    assert_truth(workspace, task_id, "its agent was killed by SIGKILL", "yes")


def test_a_pod_that_is_out_of_memory(workspace: NodeWorkspace) -> None:
    """The kernel kills the agent, because no process of the tool is larger.

    The file in /dev/shm counts as memory of the pod, but not of any process.
    """
    task_id = workspace.submit(
        f"{GATE}; head -c 60M /dev/zero >/dev/shm/a; for i in $(seq 9); do "
        "(head -c 12M /dev/zero; sleep 600) | tail & done; sleep 600",
    )
    workspace.await_phase(task_id, "tool_call")
    workspace.cancel(reason="enough")
    open_gate(workspace)
    assert_truth(workspace, task_id, OUT_OF_MEMORY, "yes")
