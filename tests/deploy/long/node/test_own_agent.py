"""A LangGraph agent, in an image built as docs/your-agent.md describes, is cancelled on a node."""

from pathlib import Path

import pytest

from tests.deploy.long.node import node
from tests.deploy.long.node.pods import open_gate, running_pod
from tests.deploy.long.node.stacks import NodeWorkspace, running_stack

# .ci/node_image.sh builds it.
IMAGE = "own-agent:1"
COMMAND = "/opt/evershell/bin/python -P -m evershell.agents /opt/agent/my_agent.py:agent"

pytestmark = pytest.mark.timeout(400)


def test_an_agent_in_an_image_of_its_own_is_cancelled(tmp_path: Path) -> None:
    node.require_image(IMAGE)
    with running_stack(
        tmp_path,
        POD_IMAGE=IMAGE,
        AGENT_COMMAND=COMMAND,
        memory_limit="512Mi",
        LEASE_SECONDS="60",
    ) as stack:
        workspace = NodeWorkspace(stack)
        running_pod(workspace)
        task_id = workspace.begin("wait")
        workspace.cancel()
        open_gate(workspace)
        end = workspace.await_end(task_id)
        assert (end["status"], end["forced"], end["iterations"]) == ("cancelled", False, 1)
        assert end["result"] == "opened"
        task_id = workspace.begin("wait")
        workspace.cancel(force_after="0s")
        end = workspace.await_end(task_id)
        assert (end["status"], end["forced"], end["iterations"]) == ("cancelled", True, 1)
        assert workspace.get()["epoch"] == "1"
