"""The pod of an idle workspace ends, and the next task finds the files on the pod's volume."""

from pathlib import Path

import pytest

from tests.deploy.long.node.pods import await_no_pods, pod, running_pod
from tests.deploy.long.node.stacks import NodeWorkspace, running_stack

pytestmark = pytest.mark.timeout(400)


def test_a_task_wakes_a_workspace_whose_pod_was_given_back(tmp_path: Path) -> None:
    with running_stack(
        tmp_path,
        LEASE_SECONDS="60",
        IDLE_SUSPEND_MINUTES="0.2",
    ) as stack:
        workspace = NodeWorkspace(stack)
        running_pod(workspace)
        workspace.await_end(workspace.submit("echo kept > file"))
        workspace.await_status("suspended")
        await_no_pods(workspace)
        # This call wakes the workspace, and waits for the agent.
        task_id = workspace.submit("cat file")
        assert workspace.await_end(task_id)["status"] == "completed"
        assert pod(workspace)["metadata"]["name"].endswith("-2")
        (output,) = [
            event["tool_call"]["result"]["output"]
            for event in workspace.log()
            if event["type"] == "iteration_completed" and event["task_id"] == task_id
        ]
        assert output == "kept\n"
