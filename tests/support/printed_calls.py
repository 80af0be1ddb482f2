"""The calls that a stack prints when it is ready."""

import json
import os
import signal
import subprocess
import threading

from tests.support.stack import ROOT, Stack


def run_printed_calls(stack: Stack) -> None:
    """Runs the calls that the stack has printed, and checks what they answer."""
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
