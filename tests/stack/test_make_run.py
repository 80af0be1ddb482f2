"""The stack starts, stops and restarts."""

import json
import os
import signal
import stat
import subprocess
import threading
from pathlib import Path

from tests.support.stack import ROOT, Stack


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
    # gRPC's C library wrote nothing, even when the stack started programs.
    assert "fork_posix" not in stack.output.read_text()


def test_the_printed_calls_work(stack: Stack) -> None:
    calls = stack.output.read_text().partition("In another terminal:")[2]
    environment = {name: value for name, value in os.environ.items() if name != "TOKEN"}
    # The last call is a stream, which goes on until the test kills the shell.
    shell = subprocess.Popen(
        ["/usr/bin/env", "bash", "-ec", calls],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    timer = threading.Timer(100, os.killpg, (shell.pid, signal.SIGKILL))
    timer.start()
    printed = ""
    try:
        assert shell.stdout is not None
        # The first two calls print one line each.
        task_id = json.loads(shell.stdout.readline())["task_id"]
        assert json.loads(shell.stdout.readline())["outcome"] == "accepted"
        for line in shell.stdout:
            printed += line
            if '"task_completed"' in line and task_id in line:
                break
    finally:
        timer.cancel()
        os.killpg(shell.pid, signal.SIGKILL)
        shell.communicate()
    # On a busy machine, the agent may get the first cancellation before it begins the first
    # command. Then the task ends before the second cancellation, and without force.
    is_forced = '"outcome": "already_requested"' in printed
    assert is_forced or '"outcome": "no_active_task"' in printed
    assert f'"forced":{json.dumps(is_forced)}' in printed.splitlines()[-1]


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
