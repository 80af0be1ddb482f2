"""AGENT_COMMAND starts another program as the agent: the sample program of docs/agents.md."""

import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import sandbox
from tests.support.npm import NODE, copy_packages
from tests.support.stack import ROOT, Gate, Stack, Workspace
from tests.support.waiting import eventually

pytestmark = pytest.mark.soak
SAMPLE = ROOT / "docs" / "agents" / "agent.mjs"
DESCRIPTORS = ROOT / "gen" / "evershell" / "edge" / "workspace.binpb"
PACKAGES = ("@grpc/grpc-js", "@grpc/proto-loader")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack whose agents are the sample program."""
    sandbox.skip_without_sandbox()
    # A sandbox shows agents the folder of the Python environment, so the program must be in it.
    with tempfile.TemporaryDirectory(prefix="sample-agent-", dir=sys.prefix) as temporary:
        folder = Path(temporary)
        # The pod's user must be able to read the program.
        folder.chmod(0o755)
        copy_packages(folder, *PACKAGES)
        program, descriptors = folder / "agent.mjs", folder / DESCRIPTORS.name
        program.write_text(SAMPLE.read_text())
        descriptors.write_bytes(DESCRIPTORS.read_bytes())
        command = shlex.join(map(str, (NODE, program, descriptors)))
        with Stack(
            tmp_path / "state", AGENT_COMMAND=command, POD_ISOLATION="sandbox", AGENT_TLS="on"
        ).started() as running:
            yield running


def submit_and_await(workspace: Workspace, command: str, *others: str) -> str:
    """Submits a task and waits until its first command runs. Returns the task id.

    Does not wait for a phase: the sample reports a phase only with its next heartbeat, seconds
    later.
    """
    started = workspace.stack.files(workspace.id) / "started"
    started.unlink(missing_ok=True)
    task_id = workspace.submit(f"touch {started.name}; {command}", *others)
    eventually(started.exists)
    return task_id


def test_the_sample_runs_is_cancelled_and_takes_the_next_task(stack: Stack) -> None:
    workspace = Workspace(stack)
    gate = Gate(workspace)
    agent = stack.agent_pid(workspace.id)
    done = workspace.await_end(workspace.submit("echo one", "echo two"))
    assert (done["status"], done["iterations"]) == ("completed", 2)
    task_id = submit_and_await(workspace, gate.command, "echo never")
    # The sample does not report its calls.
    current = workspace.rest.get(f"{workspace.path}/tasks/{task_id}/iteration")
    assert (current["number"], current["calls"]) == (1, [])
    assert workspace.cancel()["outcome"] == "accepted"
    gate.open()
    ended = workspace.await_end(task_id)
    assert (ended["status"], ended["iterations"], ended["forced"]) == ("cancelled", 1, False)
    task_id = submit_and_await(workspace, "sleep 300")
    workspace.cancel(force_after="0.5s")
    ended = workspace.await_end(task_id)
    assert (ended["status"], ended["iterations"], ended["forced"]) == ("cancelled", 1, True)
    assert workspace.await_end(workspace.submit("true"))["status"] == "completed"
    assert (stack.agent_pid(workspace.id), workspace.get()["status"]) == (agent, "idle")
    assert workspace.get()["epoch"] == "1"
