"""An agent built on the library, given by file and function name, in a sandbox."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import sandbox
from tests.support.stack import READY_SECONDS, Stack, Workspace
from tests.support.waiting import eventually

AGENT = """
import asyncio, subprocess, time
from evershell.agents import Task, in_process, in_thread, run, submit_task

def work(line):
    if line == "hang":
        open("began", "w").close()
        time.sleep(600)
    return subprocess.run(line, shell=True, stdout=subprocess.PIPE, text=True).stdout

async def say(line):
    return {"model": "own", "content": line, "usage": {"input_tokens": 3, "output_tokens": 2}}

async def parallel(step):
    others = [
        asyncio.create_task(step.tool_call("echo", {}, in_process(work, f"echo {number}")))
        for number in (1, 2)
    ]
    async def hang():
        await asyncio.wait(others)
        await in_process(work, "hang")
    await asyncio.gather(*others, step.tool_call("hang", {}, hang()))

async def in_child(_, line):
    workspace_id, _, command = line.partition(" ")
    return (await (await submit_task(workspace_id, command)).wait()).result

async def agent(task: Task) -> str:
    lines = task.description.splitlines()
    async for step in task.iterations():
        reply = await step.model_call(say(lines[step.number - 1]))
        if reply["content"] == "parallel":
            await parallel(step)
            continue
        place, _, line = reply["content"].partition(" ")
        where = {"thread": in_thread, "process": in_process, "child": in_child}[place]
        output = await step.tool_call("work", {"line": line}, where(work, line))
        if step.number == len(lines):
            return output
    return "so far"

run(agent)
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    sandbox.skip_without_sandbox()
    folder = tmp_path_factory.mktemp("own")
    # The pod's user must be able to read the agent.
    folder.chmod(0o755)
    (folder / "my_agent.py").write_text(AGENT)
    command = [sys.executable, "-P", "-m", "evershell.agents", f"{folder}/my_agent.py:agent"]
    with Stack(
        folder / "state", AGENT_COMMAND=shlex.join(command), POD_ISOLATION="sandbox"
    ).started() as running:
        yield running


def _begin(workspace: Workspace, place: str, *others: str) -> str:
    """Submits a task and waits until its first line runs. Returns the task id."""
    began = workspace.stack.files(workspace.id) / "began"
    began.unlink(missing_ok=True)
    waits = f"{place} touch began; while [ ! -e go ]; do sleep 0.05; done; rm go"
    task_id = workspace.submit(waits, *others)
    eventually(began.exists)
    return task_id


def _summary(workspace: Workspace, task_id: str) -> tuple[str, bool, int, str]:
    end = workspace.await_end(task_id)
    return end["status"], end["forced"], end["iterations"], end["result"]


def test_a_cancellation_ends_the_loop_and_the_next_task_runs(workspace: Workspace) -> None:
    task_id = _begin(workspace, "process", "process echo never")
    workspace.await_phase(task_id, "tool_call")
    assert workspace.cancel()["outcome"] == "accepted"
    (workspace.stack.files(workspace.id) / "go").touch()
    assert _summary(workspace, task_id) == ("cancelled", False, 1, "so far")
    task_id = workspace.submit("process echo one", "thread echo two")
    end = workspace.await_end(task_id)
    assert (end["status"], end["result"], workspace.get()["epoch"]) == ("completed", "two\n", "1")
    assert (end["usage"]["input_tokens"], end["usage"]["output_tokens"]) == ("6", "4")


@pytest.mark.parametrize("place", ["process", "thread"])
def test_force_ends_what_the_agent_runs(workspace: Workspace, place: str) -> None:
    """A thread cannot be interrupted, but it continues when the process it waits for is ended."""
    task_id = _begin(workspace, place)
    assert workspace.cancel(force_after="0s")["outcome"] == "accepted"
    status, forced, iterations, _ = _summary(workspace, task_id)
    assert (status, forced, iterations) == ("cancelled", True, 1)
    task_id = workspace.submit("process echo next")
    assert _summary(workspace, task_id) == ("completed", False, 1, "next\n")
    assert workspace.get()["epoch"] == "1"


def test_force_during_parallel_tool_calls_keeps_the_results_of_those_that_have_ended(
    workspace: Workspace,
) -> None:
    task_id = workspace.submit("parallel")
    eventually((workspace.stack.files(workspace.id) / "began").exists)
    assert workspace.cancel(force_after="0s")["outcome"] == "accepted"
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"], end["usage"]["tool_calls"]) == ("cancelled", True, "3")
    (iteration,) = [each for each in workspace.log() if each["type"] == "iteration_completed"]
    results = [each["result"] for each in iteration["tool_calls"]]
    assert [(each["status"], each["output"]) for each in results] == [
        ("exited", "1\n"),
        ("exited", "2\n"),
        ("interrupted", ""),
    ]
    assert iteration["tool_call"] == iteration["tool_calls"][0]
    task_id = workspace.submit("process echo next")
    assert _summary(workspace, task_id) == ("completed", False, 1, "next\n")
    assert workspace.get()["epoch"] == "1"


def test_a_thread_that_cannot_be_interrupted_ends_with_its_pod(workspace: Workspace) -> None:
    task_id = workspace.submit("thread hang")
    eventually((workspace.stack.files(workspace.id) / "began").exists)
    assert workspace.cancel(force_after="0s")["outcome"] == "accepted"
    status, forced, _, _ = _summary(workspace, task_id)
    assert (status, forced) == ("cancelled", True)
    # The next task wakes the workspace.
    assert _summary(workspace, workspace.submit("thread echo on"))[0] == "completed"


def test_a_tool_submits_a_child_and_gets_its_result(stack: Stack, workspace: Workspace) -> None:
    """The tool uses its agent's token: the stack gives tools no API key."""
    below = Workspace(stack)
    task_id = workspace.submit(f"child {below.id} process echo from below")
    assert _summary(workspace, task_id) == ("completed", False, 1, "from below\n")
    submitted = below.await_event("task_submitted")["task_submitted"]
    assert (submitted["parent_task_id"], submitted["submitted_by"]) == (
        task_id,
        f"agent:{workspace.id}",
    )
    entries = below.rest.get(f"{below.path}/audit")["entries"]
    assert ("SubmitChild", "agent") in [
        (entry["rpc"], entry["credential_kind"]) for entry in entries
    ]


def test_a_child_that_is_refused_is_the_error_of_its_tool(
    stack: Stack, workspace: Workspace
) -> None:
    """The agent's own workspace is busy, and `foreign` has another creator."""
    foreign = Workspace(stack, token="owner")
    for target, slug in ((workspace.id, "is busy"), (foreign.id, "have different creators")):
        task_id = workspace.submit(f"child {target} process echo never")
        end = workspace.await_end(task_id)
        assert end["status"] == "failed" and slug in end["reason"], end
    assert foreign.get()["status"] == "idle"


def test_a_cancelled_tree_includes_the_child_for_which_a_tool_waits(
    stack: Stack, workspace: Workspace
) -> None:
    below = Workspace(stack)
    task_id = workspace.submit(f"child {below.id} process sleep 600", "process echo never")
    child_id = below.await_event("task_started")["task_id"]
    below.await_phase(child_id, "tool_call")
    answer = workspace.cancel(task_id=task_id, include_descendants=True, force_after="30s")
    assert (answer["outcome"], answer["descendants_cancelled"]) == ("accepted", 1)
    assert below.cancel(task_id=child_id, force_after="0s")["outcome"] == "already_requested"
    assert _summary(below, child_id)[:2] == ("cancelled", True)
    assert _summary(workspace, task_id)[:3] == ("cancelled", False, 1)


def test_the_tokens_of_a_tree_are_counted_together(stack: Stack, workspace: Workspace) -> None:
    """Each iteration uses 5 tokens, so the root's second iteration reaches the limit."""
    below = Workspace(stack)
    task_id = workspace.submit(
        f"child {below.id} process echo 1",
        "process sleep 600",
        limits={"max_total_tokens": "15", "include_descendants": True, "force_after": "0s"},
    )
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"], end["iterations"]) == ("cancelled", True, 2)
    assert end["cancel"]["requested_by"] == "system:limit"
    assert end["cancel"]["reason"] == "max_total_tokens reached: 15 of 15 tokens"
    assert below.await_end(below.await_event("task_submitted")["task_id"])["status"] == "completed"


def test_a_stack_whose_agent_does_not_start_waits_for_another_version(tmp_path: Path) -> None:
    path = tmp_path / "my_agent.py"
    path.write_text("def agent(task):\n    return 'never'")
    own = Stack(tmp_path / "state", POD_ISOLATION="none")
    own.arguments = ("--agent", f"{path}:agent")

    def says(*texts: str) -> bool:
        return own.output.exists() and all(text in own.output.read_text() for text in texts)

    with own.ended(), ThreadPoolExecutor(1) as pool:
        started = pool.submit(own.start)
        eventually(lambda: says("Write `async def agent(task: Task)`", "The stack waits. Save "))
        log = f"The log of its agent: {os.path.relpath(own.state_dir / 'fleet')}/ws_"
        assert log in own.output.read_text()
        path.write_text(f"{AGENT}\ntypo(")
        eventually(lambda: says("SyntaxError: '(' was never closed (my_agent.py, line "))
        eventually(lambda: own.output.read_text().count("The stack waits.") == 2)
        # A caller resumes the workspace. The file seems to be the same.
        seen = path.stat()
        path.write_text(AGENT)
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        command = own.output.read_text().rpartition("resume its workspace:\n")[2].splitlines()[0]
        # The path of the state folder is relative to the folder in which the stack runs.
        subprocess.run(
            ["/usr/bin/env", "bash", "-c", command], cwd=own.checkout, check=True, timeout=60
        )
        started.result(READY_SECONDS)
        workspace = Workspace(own)
        assert _summary(workspace, workspace.submit("thread echo on"))[0] == "completed"
        assert own.stop() == 0
