"""The commands, as a user at a terminal or a script runs them."""

import json
import os
import pty
import re
import subprocess
import sys
from codecs import getincrementaldecoder
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.support.commands import NO_PROFILES, OVERRIDES, Run
from tests.support.stack import ROOT, Gate, Stack, Workspace
from tests.support.waiting import eventually


def test_cancel_prints_every_outcome(run: Run, call: Run, workspace: Workspace, gate: Gate) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")

    first = run("cancel", workspace.id, "--reason", "it has gone wrong")

    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith(
        f"accepted: the cancellation of task {task_id} in workspace {workspace.id} is recorded.\n"
    )
    assert re.search(
        r"requested  \d{4}-\S+Z by key_\w+\n  reason     it has gone wrong\n", first.stdout
    )
    again = call("cancel", workspace.id, "--task", task_id, "--reason", "another", "--json")
    reply = json.loads(again.stdout)
    assert (again.returncode, reply["outcome"], reply["reason"]) == (
        0,
        "already_requested",
        "it has gone wrong",
    )
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"
    assert workspace.task(task_id)["cancel_reason"] == "it has gone wrong"
    late = call("cancel", workspace.id, "--task", task_id)
    assert (late.returncode, late.stderr) == (3, "")
    assert late.stdout.startswith(f"already_finished: task {task_id} had ended cancelled at ")
    idle = call("cancel", workspace.id)
    assert (idle.returncode, idle.stderr) == (3, "")
    assert idle.stdout.startswith(f"no_active_task: nothing runs in workspace {workspace.id}")


def test_a_wait_prints_the_end_of_the_task(run: Run, workspace: Workspace, gate: Gate) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")

    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(run, "cancel", workspace.id, "--wait", "25s")
        workspace.await_event("task_cancel_requested", task_id)
        gate.open()
        waited = waiting.result()

    assert (waited.returncode, waited.stderr) == (0, "")
    assert waited.stdout.startswith(
        f"accepted: the cancellation of task {task_id} in workspace {workspace.id} is recorded.\n"
    )
    assert re.search(
        r"\n  ended      cancelled at \S+Z, \d+\.\d s after the request, 1 iteration completed\. "
        r"The workspace takes its next task\.\n$",
        waited.stdout,
    )
    assert workspace.task(task_id)["status"] == "cancelled"


def test_without_the_edge_a_worker_can_be_called(
    call: Run, stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    """Both listeners of the edge are in one process, so REST and gRPC are lost together."""
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    (edge,) = (
        child.pid for child in psutil.Process(stack.pid).children() if "envoy" in child.name()
    )
    worker = f"http://{stack.ready['server_addr']}"
    key = {"EVERSHELL_API_KEY": stack.tokens["full_access"]}
    with stack.frozen_process(edge):
        lost = call("cancel", workspace.id, "--task", task_id, "--timeout", "500ms")
        with pytest.raises(httpx.TimeoutException):
            httpx.get(f"{stack.ready['rest_url']}/healthz", timeout=0.5, trust_env=False)
        cancelled = call("cancel", workspace.id, "--url", worker, "--task", task_id, **key)
    assert (lost.returncode, "safe to repeat" in lost.stderr) == (6, True)
    assert cancelled.returncode == 0, cancelled.stderr
    assert f"evershell watch --url {worker} {workspace.id}" in cancelled.stdout
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"


def test_a_terminal_shows_what_the_task_is_doing(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.submit(gate.command, "echo never")
    workspace.await_phase(task_id, "tool_call")
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in OVERRIDES}
    process = subprocess.Popen(
        [sys.executable, "-m", "evershell.commands", "cancel", workspace.id, "--wait", "25s"],
        cwd=ROOT,
        env={
            **kept,
            **NO_PROFILES,
            "STATE_DIR": str(stack.state_dir),
            "COLUMNS": "200",
            "TERM": "xterm",
        },
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = ""
    # A read may end within a character.
    decoder = getincrementaldecoder("utf-8")()
    try:
        while "now in a tool call" not in shown.partition("next")[2]:
            shown += decoder.decode(os.read(ours, 65536))
        gate.open()
        while "takes its next task" not in shown:
            shown += decoder.decode(os.read(ours, 65536))
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "\x1b[32m" in shown and f"{task_id} running: 0 iterations completed" in shown


def test_a_task_is_submitted_and_shown_and_found_in_the_audit_log(
    call: Run, workspace: Workspace
) -> None:
    submitted = call("submit", workspace.id, "echo one\necho two", "--wait", "20s")
    assert submitted.returncode == 0, submitted.stderr
    task_id = submitted.stdout.strip()
    assert "completed, 2 iterations completed" in submitted.stderr
    assert call("task", workspace.id, task_id).stdout.startswith(f"task {task_id}: completed\n")
    assert task_id in call("tasks", workspace.id).stdout
    assert call("submit", workspace.id, "fail: no luck", "--wait", "20s").returncode == 8
    watched = call("watch", workspace.id, "--task", task_id, "--json")
    events = [json.loads(line) for line in watched.stdout.splitlines()]
    assert (watched.returncode, events[-1]["type"]) == (0, "task_completed")
    assert events == [
        workspace.await_event(event["type"], task_id, int(event["seq"]) - 1) for event in events
    ]
    log = call("audit", "--workspace", workspace.id, "--rpc", "SubmitTask", "--json")
    assert len(json.loads(log.stdout)["entries"]) == 2
    made = call("workspace", "create", "--name", "mine", "--json", "--idempotency-key", task_id)
    made_id = json.loads(made.stdout)["id"]
    assert made_id in call("workspaces").stdout
    stopped = call("workspace", "stop", made_id)
    assert (stopped.returncode, made_id in stopped.stdout) == (0, True)


def test_the_demo_succeeds_on_a_running_stack(run: Run, stack: Stack) -> None:
    demo = run("demo")
    assert (demo.returncode, demo.stderr) == (0, ""), demo.stdout
    assert re.search(r"client\.cancel\(…\) → accepted \(task running, \d iteration", demo.stdout)
    assert re.search(r"task_completed +cancelled, not forced, \d iterations\n", demo.stdout)
    assert re.search(r"\d+ ms from the signal to the end: \d+ ms for the rest of ", demo.stdout)
    assert re.search(r"task_completed +completed, not forced, 2 iterations\n", demo.stdout)
    assert demo.stdout.endswith("\nAll promises were kept.\n")
    assert (
        stack.rest().get(f"/v1/workspaces/{stack.ready['demo']['workspace_id']}")["status"]
        == "idle"
    )


def test_the_demo_does_not_touch_the_task_of_another_caller(run: Run, stack: Stack) -> None:
    rest, workspace_id = stack.rest(), stack.ready["demo"]["workspace_id"]
    path, done = f"/v1/workspaces/{workspace_id}", stack.files(workspace_id) / "done"
    task_id = rest.post(f"{path}/tasks", {"description": "until [ -e done ]; do sleep 0.05; done"})[
        "task_id"
    ]
    try:
        refused = run("demo")
    finally:
        done.touch()
    assert (refused.returncode, "is busy; the demo needs it idle" in refused.stderr) == (1, True), (
        refused.stderr
    )
    eventually(lambda: rest.get(f"{path}/tasks/{task_id}")["status"] == "completed")
