"""The commands, as a user at a terminal or a script would run them."""

import json
import re
from concurrent.futures import ThreadPoolExecutor

from tests.support import programs
from tests.support.commands import Run
from tests.support.stack import Gate, Stack, Workspace
from tests.support.terminals import terminal
from tests.support.waiting import eventually


def test_cancel_prints_every_outcome(run: Run, call: Run, workspace: Workspace, gate: Gate) -> None:
    command = f"echo going; {gate.command}"
    task_id = workspace.begin(command, "echo never")
    iteration = f"{workspace.path}/tasks/{task_id}/iteration"
    eventually(lambda: workspace.rest.get(iteration)["calls"][0]["output"] == "going\n")
    now, output = call("task", workspace.id, task_id).stdout.splitlines()[-2:]
    assert now.endswith(f's: shell {{"command": "{command}"}}') and output.split() == ["going"]

    first = run("cancel", workspace.id, "--reason", "it has gone wrong")

    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith(
        f"accepted: the cancellation of task {task_id} in workspace {workspace.id} is recorded.\n"
    )
    assert re.search(
        r"requested     \d{4}-\S+Z by key_\w+\n  cancel reason it has gone wrong\n", first.stdout
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
    task_id = workspace.begin(gate.command, "echo never")

    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(run, "cancel", workspace.id, "--wait", "25s")
        workspace.await_event("task_cancel_requested", task_id)
        gate.open()
        waited = waiting.result()

    assert (waited.returncode, waited.stderr) == (0, "")
    assert re.search(
        r"\n  ended         cancelled at \S+Z, \d+\.\d s after the request, 1 iteration completed\."
        r" The workspace can take its next task\.\n$",
        waited.stdout,
    )


def test_ctrl_c_ends_the_wait_and_not_the_cancellation(
    stack: Stack, workspace: Workspace, gate: Gate
) -> None:
    task_id = workspace.begin(gate.command, "echo never")

    with terminal(
        *programs.command("cancel", stack.state_dir, workspace.id, "--wait", "60s")
    ) as typed:
        # Waits until the screen shows what the task is doing.
        typed.await_text(f"{task_id} running: ")
        typed.type("\x03")
        assert typed.await_exit() == 130

    assert f"interrupted: The cancellation of task {task_id} stands." in " ".join(
        typed.text.split()
    )
    gate.open()
    assert workspace.await_end(task_id)["status"] == "cancelled"


def test_a_task_is_submitted_and_shown_and_found_in_the_audit_log(
    call: Run, workspace: Workspace
) -> None:
    submitted = call("submit", workspace.id, "echo one\necho two", "--wait", "20s")
    assert submitted.returncode == 0, submitted.stderr
    task_id = submitted.stdout.strip()
    assert "completed: 2 iterations completed" in submitted.stderr
    assert call("task", workspace.id, task_id).stdout.startswith(f"task {task_id}: completed\n")
    assert task_id in call("tasks", workspace.id).stdout
    assert call("submit", workspace.id, "fail: no luck", "--wait", "20s").returncode == 8
    watched = call("watch", workspace.id, "--task", task_id, "--json")
    events = [json.loads(line)["event"] for line in watched.stdout.splitlines()]
    assert (watched.returncode, events[-1]["type"]) == (0, "task_completed")
    assert events == [
        workspace.await_event(event["type"], task_id, int(event["seq"]) - 1) for event in events
    ]
    log = call("audit", "--workspace", workspace.id, "--rpc", "SubmitTask", "--json")
    assert len(json.loads(log.stdout)["entries"]) == 2
    made = call("workspace", "create", "--name", task_id, "--json", "--idempotency-key", task_id)
    made_id = json.loads(made.stdout)["id"]
    assert made_id in call("workspaces", "--status", "idle", "--status", "provisioning").stdout
    stopped = call("workspace", "stop", made_id)
    assert (stopped.returncode, made_id in stopped.stdout) == (0, True)
    assert made_id in call("workspace", "show", task_id).stdout


def test_a_client_of_the_port_of_rest_is_told_the_port_of_grpc(call: Run, stack: Stack) -> None:
    rest_url, grpc_port = stack.ready["rest_url"], stack.ready["grpc_addr"].partition(":")[2]
    wrong = call("workspaces", "--url", rest_url, EVERSHELL_API_KEY="sk_unknown")
    assert (wrong.returncode, wrong.stdout) == (5, "")
    assert wrong.stderr.startswith(
        f"method_not_allowed: This port serves REST; gRPC has port {grpc_port}.\n"
    )


def test_the_demo_succeeds_on_a_running_stack(run: Run, stack: Stack) -> None:
    demo = run("demo")
    assert (demo.returncode, demo.stderr) == (0, ""), demo.stdout
    assert re.search(r"client\.cancel\(…\) → accepted \(task running, \d iteration", demo.stdout)
    assert re.search(r"task_completed +\S+ cancelled after \d iterations?", demo.stdout)
    assert re.search(r"\d+ ms from the signal to the end: \d+ ms for the rest of ", demo.stdout)
    assert re.search(r"task_completed +\S+ completed after 2 iterations\n", demo.stdout)
    assert demo.stdout.endswith("\nAll promises were kept.\n")
    assert (
        stack.rest().get(f"/v1/workspaces/{stack.ready['demo']['workspace_id']}")["status"]
        == "idle"
    )
