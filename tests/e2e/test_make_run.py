"""The stack: start, stop and restart."""

import json
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import ROOT, Gate, Stack, Workspace, processes_of


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that the test itself starts and stops."""
    own = Stack(tmp_path / "state")
    yield own
    # A failed test may not have stopped it.
    own.kill_if_running()


def test_ctrl_c_leaves_no_process_and_a_restart_resumes_the_workspaces(own_stack: Stack) -> None:
    own_stack.start()
    demo = own_stack.ready["demo"]
    workspace = Workspace(own_stack)
    finished = workspace.submit("echo before the restart")
    workspace.await_end(finished)
    gate = Gate(workspace)
    cancelled = workspace.submit(gate.command, "echo never")
    workspace.await_phase(cancelled, "tool_call")
    workspace.cancel(reason="before the restart")
    running = Workspace(own_stack)
    lost = running.submit(Gate(running).command)
    running.await_phase(lost, "tool_call")
    agents = [own_stack.agent_pid(workspace.id), own_stack.agent_pid(running.id)]
    assert processes_of(own_stack.state_dir)

    assert own_stack.stop(signal.SIGINT) == 0

    assert not (own_stack.state_dir / "ready.json").exists()
    assert processes_of(own_stack.state_dir) == []
    assert not any(own_stack.is_alive(pid) for pid in agents)

    own_stack.start()
    try:
        assert own_stack.ready["demo"]["workspace_id"] == demo["workspace_id"]
        assert own_stack.tokens["full_access"] == demo["tokens"]["full_access"]
        workspace.rest = running.rest = own_stack.rest()
        for each in (workspace, running):
            each.await_event("workspace_resumed")
            assert each.await_status("idle")["epoch"] == "2"
        assert workspace.task(finished)["status"] == "completed"
        # The tasks that ran have ended: cancelled if that was requested, otherwise failed.
        assert workspace.await_end(cancelled)["status"] == "cancelled"
        end = running.await_end(lost)
        assert (end["status"], end["reason"]) == ("failed", "the stack was restarted")
        assert workspace.await_end(workspace.submit("ls"))["status"] == "completed"
        assert [entry["seq"] for entry in workspace.log()] == list(
            range(1, len(workspace.log()) + 1)
        )
    finally:
        assert own_stack.stop() == 0
    assert processes_of(own_stack.state_dir) == []


def test_ready_json_and_credentials_are_private(stack: Stack) -> None:
    for name in ("ready.json", "demo.env", "demo.json", "control-plane.jwk"):
        assert stat.S_IMODE((stack.state_dir / name).stat().st_mode) == 0o600, name
    assert set(stack.tokens) == {
        "full_access",
        "submit_observe",
        "read_only",
        "owner",
        "member",
        "expired",
        "other_org",
    }
    assert not any(token in stack.output.read_text() for token in stack.tokens.values())


def test_the_printed_calls_work(stack: Stack) -> None:
    calls = stack.output.read_text().partition("In another terminal:")[2]
    environment = {name: value for name, value in os.environ.items() if name != "TOKEN"}
    # The last call is a stream, which runs until the test kills the shell.
    shell = subprocess.Popen(
        ["/usr/bin/env", "bash", "-ec", calls],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    timer = threading.Timer(30, os.killpg, (shell.pid, signal.SIGKILL))
    timer.start()
    printed = ""
    try:
        assert shell.stdout is not None
        # Each of the first two calls prints one line.
        task_id = json.loads(shell.stdout.readline())["task_id"]
        assert json.loads(shell.stdout.readline())["outcome"] == "accepted"
        for line in shell.stdout:
            printed += line
            if '"task_completed"' in line and task_id in line:
                break
    finally:
        timer.cancel()
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
    assert '"outcome": "already_requested"' in printed
    assert '"forced":true' in printed.splitlines()[-1]


def test_a_second_stack_on_the_same_state_or_port_explains_what_to_change(
    stack: Stack, tmp_path: Path
) -> None:
    assert "Another run uses" in Stack(stack.state_dir).refuses_to_start()
    on_the_same_port = Stack(
        tmp_path / "state", REST_PORT=stack.ready["rest_url"].rpartition(":")[2]
    )
    assert "Set REST_PORT to another one" in on_the_same_port.refuses_to_start()
    assert (
        stack.rest().get(f"/v1/workspaces/{stack.ready['demo']['workspace_id']}")["status"]
        == "idle"
    )
