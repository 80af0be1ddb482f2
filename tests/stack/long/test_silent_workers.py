"""Forced cancellations while workers are silent.

The controller ends only agents that do not interrupt their tasks.
"""

import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import psutil
import pytest

from evershell.core.bounds import FORCE_MARGIN
from tests.support import faults
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# While workers are silent, the controller gives an overdue agent at most one more lease.
LEASE_SECONDS = 12
# How long a forced task may take to end if its agent does not interrupt it: 2 s, a lease, and the
# time to end the pod on a busy machine.
SULKING_SECONDS = 2 + LEASE_SECONDS + 45
AGENT = """
import asyncio
from evershell.agents import Task, run

async def wait(sulks):
    open("began", "w").close()
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            if not sulks:
                raise

async def agent(task: Task) -> str:
    async for step in task.iterations():
        await step.tool_call("wait", {}, wait(task.description == "sulk"))
    return ""

run(agent)
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("silent")
    # The pod's user must be able to read the agent.
    folder.chmod(0o755)
    (folder / "my_agent.py").write_text(AGENT)
    command = [sys.executable, "-P", "-m", "evershell.agents", f"{folder}/my_agent.py:agent"]
    with Stack(
        folder / "state",
        AGENT_COMMAND=shlex.join(command),
        LEASE_SECONDS=str(LEASE_SECONDS),
        WORKERS="3",
    ).started() as running:
        yield running


def begun(stack: Stack, description: str) -> tuple[Workspace, str]:
    """Starts a task in a new workspace.

    Returns the workspace and the task id once the task runs.
    """
    workspace = Workspace(stack)
    task_id = workspace.submit(description)
    eventually((stack.files(workspace.id) / "began").exists)
    return workspace, task_id


def freeze_other_workers(stack: Stack, frozen: ExitStack) -> str:
    """Freezes the supervisor and all workers but one. Returns the address of the one that runs."""
    answering, *others = stack.pids("serve")
    for pid in (stack.pid, *others):
        frozen.enter_context(stack.frozen_process(pid))
    ports = {
        each.laddr.port
        for each in psutil.Process(answering).net_connections("inet")
        if each.status == psutil.CONN_LISTEN
    }
    (address,) = [
        each for each in stack.worker_addresses() if int(each.rpartition(":")[2]) in ports
    ]
    return address


def force(stack: Stack, address: str, workspace: Workspace) -> None:
    answer = stack.grpc(address=address).call(
        "CancelTask", workspace_id=workspace.id, force_after=timedelta(0)
    )
    assert answer["outcome"] == "accepted"


def test_frozen_workers_cost_no_agent(stack: Stack) -> None:
    """Two of three workers are frozen, so the agents that use them cannot commit an end at once."""
    begins = [begun(stack, "wait") for _ in range(6)]
    agents = [stack.agent_pid(each.id) for each, _ in begins]
    with ExitStack() as frozen:
        address = freeze_other_workers(stack, frozen)
        for workspace, _ in begins:
            force(stack, address, workspace)
        for workspace, task_id in begins:
            faults.await_terminal(workspace, task_id, 30)
            faults.assert_story(workspace, task_id, status="cancelled", intent=True)
            faults.await_workspace(workspace, "idle")
    assert [stack.agent_pid(each.id) for each, _ in begins] == agents


@contextmanager
def stalled_commits(stack: Stack) -> Iterator[None]:
    """Makes commits wait for a synchronous standby that does not exist. Reads still work."""
    with stack.database() as connection:
        connection.execute("SET synchronous_commit = local")
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'away'")
        connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")


def test_a_database_that_cannot_commit_costs_no_agent(stack: Stack) -> None:
    begins = [begun(stack, "wait") for _ in range(3)]
    agents = [stack.agent_pid(each.id) for each, _ in begins]
    for workspace, _ in begins:
        answer = faults.cancel(workspace, "rest", force_after="8s")
        assert answer in ("accepted", "agent_unreachable")
    query = "SELECT max(cancel_force_at) < clock_timestamp() - %s FROM tasks WHERE id = ANY (%s)"
    ids = [task_id for _, task_id in begins]
    soon, late = (timedelta(seconds=-1), ids), (FORCE_MARGIN + timedelta(seconds=1), ids)
    with stack.database() as connection:
        eventually(lambda: connection.execute(query, soon).fetchone() == (True,))
        # Commits must be stalled for less than a lease, because leases are not renewed meanwhile.
        with stalled_commits(stack):
            eventually(lambda: connection.execute(query, late).fetchone() == (True,))
    for workspace, task_id in begins:
        faults.await_terminal(workspace, task_id, 30)
        faults.assert_story(workspace, task_id, status="cancelled", intent=True)
        faults.await_workspace(workspace, "idle")
    assert [stack.agent_pid(each.id) for each, _ in begins] == agents


def test_an_agent_that_does_not_interrupt_is_ended_even_while_a_worker_is_frozen(
    stack: Stack,
) -> None:
    """The agent sends its heartbeats as usual, so its lease does not end."""
    workspace, task_id = begun(stack, "sulk")
    with ExitStack() as frozen:
        force(stack, freeze_other_workers(stack, frozen), workspace)
        end = faults.await_terminal(workspace, task_id, SULKING_SECONDS)
    assert (end["status"], end["reason"]) == (
        "cancelled",
        "its agent did not interrupt the task in time",
    )
