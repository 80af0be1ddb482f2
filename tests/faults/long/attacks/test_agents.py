"""Agents that were taken over attack the control plane, each with the token of its own pod."""

import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.faults.long.attacks.agent_attacks import ATTACKS
from tests.support.hostile_agent import hostile_agent, iterated
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# 120 messages of 3.9 MB, all read at once, took 800 MiB.
COMMITS, COMMIT_BYTES, GROWTH_MB = 120, 3_900_000, 300
SAMPLE_SECONDS = 0.02


def running_task(workspace: Workspace) -> str:
    task_id = workspace.submit("sleep 300", max_iterations=2)
    workspace.await_event("task_started", task_id)
    return task_id


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_agent_that_breaks_a_rule_ends_with_its_pod(
    stack: Stack, workspace: Workspace, attack: str
) -> None:
    task_id = running_task(workspace)
    with hostile_agent(stack, workspace) as agent:
        assert ATTACKS[attack](agent, task_id) == "validation_error"
    task = workspace.await_end(task_id)
    assert (task["status"], task["reason"]) == ("failed", workspace.get()["status_reason"])
    assert task["reason"].startswith("its agent "), task["reason"]
    assert workspace.get()["status"] == "failed"
    assert stack.pod_processes(workspace.id) == []
    assert task["iterations"] <= 2 and task["usage"]["input_tokens"] == "0"
    logs = (stack.state_dir / "logs").glob("worker-*.log")
    assert not [log for log in logs if '"unexpected_error"' in log.read_text()]


def test_a_cancelled_task_ends_cancelled_with_the_pod(stack: Stack, workspace: Workspace) -> None:
    task_id = running_task(workspace)
    assert workspace.cancel()["outcome"] == "accepted"
    with hostile_agent(stack, workspace) as agent:
        assert agent.commit(task_id, iterated(1, input_tokens=-1)) == "validation_error"
    task = workspace.await_end(task_id)
    assert (task["status"], workspace.get()["status"]) == ("cancelled", "failed")
    assert "input_tokens" in task["reason"]
    assert stack.pod_processes(workspace.id) == []


def test_many_large_commits_hold_little_memory_of_the_worker(
    stack: Stack, workspace: Workspace
) -> None:
    task_id = running_task(workspace)
    workers = [psutil.Process(pid) for pid in stack.pids("serve")]
    before = [worker.memory_info().rss for worker in workers]
    peaks, is_done = list(before), threading.Event()

    def sample() -> None:
        while not is_done.wait(SAMPLE_SECONDS):
            for index, worker in enumerate(workers):
                peaks[index] = max(peaks[index], worker.memory_info().rss)

    sampling = threading.Thread(target=sample)
    sampling.start()
    try:
        event = iterated(1, "x" * COMMIT_BYTES)
        with hostile_agent(stack, workspace) as agent, ThreadPoolExecutor(COMMITS) as at_once:
            slugs = list(at_once.map(lambda _: agent.commit(task_id, event), range(COMMITS)))
    finally:
        is_done.set()
        sampling.join()
    growth_mb = max(peak - first for peak, first in zip(peaks, before, strict=True)) / 2**20
    print(f"{COMMITS} commits: {slugs.count('')} served, worker grew by {growth_mb:.0f} MiB")
    assert growth_mb < GROWTH_MB
    assert set(slugs) == {"", "rate_limited"}
    # The agent has broken no rule, so its task goes on.
    eventually(lambda: workspace.task(task_id)["iterations"] == 1)
    workspace.cancel(force_after="0s")
    assert workspace.await_end(task_id)["status"] == "cancelled"
