"""Agents that attackers have taken over attack the control plane, each with its own pod's token."""

from collections.abc import Callable

import pytest
from evershell.agent.v1 import runtime_service_pb2 as messages

from tests.faults.long.attacks.hostile_agent import HostileAgent, hostile_agent, iterated
from tests.support.lengths import smoke
from tests.support.stack import Stack, Workspace

# An attack that the hostile agent makes. The second argument is the id of the agent's running task,
# whose limit is two iterations. Returns the slug of the failure.
Attack = Callable[[HostileAgent, str], str]


def _registers(address: str) -> Attack:
    return lambda agent, _: agent.call("Register", messages.RegisterRequest(address=address))


# What an agent may not send. tests/unit/core has a test of each of these rules.
ATTACKS: dict[str, Attack] = {
    "more iterations than the task may have": lambda agent, task_id: agent.commit(
        task_id, *map(iterated, (1, 2, 3))
    ),
    "tokens that overflow": lambda agent, task_id: agent.commit(
        task_id, iterated(1, output_tokens=2**63 - 1)
    ),
    "an iteration that runs and has tokens that overflow": lambda agent, task_id: agent.report(
        task_id, 1, output_tokens=2**63 - 1
    ),
    "an iteration that runs and is too large": lambda agent, task_id: agent.report(
        task_id, 1, calls=200
    ),
    "a phase that does not exist": lambda agent, task_id: agent.call(
        "Heartbeat",
        messages.HeartbeatRequest(task_id=task_id, phase=99),  # type: ignore[arg-type]
    ),
    "an event of no kind": lambda agent, task_id: agent.commit(task_id, messages.TaskEvent()),
    "a socket of the machine": _registers("unix:/run/docker.sock"),
    "the address of another machine": _registers("169.254.169.254:80"),
}


def running_task(workspace: Workspace) -> str:
    task_id = workspace.submit("sleep 300", max_iterations=2)
    workspace.await_event("task_started", task_id)
    return task_id


@pytest.mark.parametrize(
    "attack",
    smoke(
        ATTACKS,
        [
            "tokens that overflow",
            "an iteration that runs and is too large",
            "a socket of the machine",
        ],
    ),
)
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
    assert task["iterations"] <= 2 and task["usage"]["output_tokens"] == "0"


def test_a_thousand_reports_count_once_and_keep_one_record(
    stack: Stack, workspace: Workspace
) -> None:
    task_id = running_task(workspace)
    workspace.await_phase(task_id, "tool_call")
    with hostile_agent(stack, workspace) as agent:
        for number in range(1_000):
            assert agent.report(task_id, 1, calls=1 + number % 128, output_tokens=number) == ""
    with stack.database() as connection:
        row = connection.execute(
            "SELECT pg_column_size(open_iteration), open_iteration -> 'number' FROM tasks "
            "WHERE id = %s",
            (task_id,),
        ).fetchone()
    assert row is not None and row[0] < 64 * 1024 and row[1] == 1, row
    usage = workspace.task(task_id)["usage"]
    assert (usage["output_tokens"], usage["model_calls"], usage["tool_calls"]) == (
        "999",
        "1",
        "128",
    )
    types = [each["type"] for each in workspace.log() if each["task_id"] == task_id]
    assert types == ["task_submitted", "task_started"]


def test_a_cancelled_task_ends_cancelled_with_the_pod(stack: Stack, workspace: Workspace) -> None:
    task_id = running_task(workspace)
    assert workspace.cancel()["outcome"] == "accepted"
    with hostile_agent(stack, workspace) as agent:
        assert agent.commit(task_id, iterated(1, input_tokens=-1)) == "validation_error"
    task = workspace.await_end(task_id)
    assert (task["status"], workspace.get()["status"]) == ("cancelled", "failed")
    assert "input_tokens" in task["reason"]
    assert stack.pod_processes(workspace.id) == []
