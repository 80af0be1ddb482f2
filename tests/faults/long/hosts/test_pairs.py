"""Cuts each pair of hosts from each other while a task is cancelled.

The tests check the answers and the end of the task.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from evershell.agents.shutdown import ExitCode
from evershell.store.pool import ACQUIRE_TIMEOUT_SECONDS, ANSWER_TIMEOUT_SECONDS
from tests.faults.long.hosts.many_hosts import (
    CONTROLLERS,
    DATABASE,
    EDGE,
    LEASE_SECONDS,
    WORKERS,
    ManyHosts,
)
from tests.faults.network import both_ways, one_way
from tests.support.alive import is_alive
from tests.support.lengths import smoke
from tests.support.promises import read_history, violations
from tests.support.stack import Gate, Workspace
from tests.support.waiting import eventually

# Added to the limits for calls, in case the machine is busy.
_BUSY_SECONDS = 10.0
# How long a call may take to answer `agent_unreachable`.
_UNREACHABLE_SECONDS = 2.0 + _BUSY_SECONDS
# How long a call may take to fail if it needs the database and the database does not answer.
_UNAVAILABLE_SECONDS = ACQUIRE_TIMEOUT_SECONDS + ANSWER_TIMEOUT_SECONDS + _BUSY_SECONDS
# A standby controller leads after 5 s. It then needs time to find the overdue task and to end it.
_TAKEOVER_SECONDS = 5.0 + 15.0
# How long an agent may take to start.
_START_SECONDS = 30.0


@pytest.fixture
def workspace(hosts: ManyHosts) -> Iterator[Workspace]:
    """A workspace. After the test, its history must show that every promise was kept."""
    await_all_workers(hosts)
    workspace = Workspace(hosts)
    yield workspace
    with hosts.database() as connection:
        assert violations(read_history(connection, workspace.id)) == []


def await_all_workers(hosts: ManyHosts) -> None:
    """Waits until the edge calls only workers that are ready, over working connections."""
    calls = 4 * len(WORKERS)
    eventually(lambda: all(_answers(hosts) for _ in range(calls)), _START_SECONDS)


def _answers(hosts: ManyHosts) -> bool:
    return hosts.rest().call("GET", "/v1/workspaces").is_success


class Running:
    """A task whose first iteration goes on until the test opens its gate."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.gate = Gate(workspace)
        self.id = workspace.begin(self.gate.command, "echo second iteration")

    def ends_cancelled(self) -> dict[str, Any]:
        """Opens the gate, and checks that the task ends cancelled after the current iteration.

        Returns the payload of `task_completed`.
        """
        self.gate.open()
        end = self.workspace.await_end(self.id)
        assert (end["status"], end["iterations"], end["work_stopped"]) == ("cancelled", 1, "yes")
        return end


@contextmanager
def within(limit_seconds: float) -> Iterator[None]:
    """Fails if the block takes longer than `limit_seconds`."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < limit_seconds


def recovered(call: Callable[[], httpx.Response]) -> dict[str, Any]:
    """Repeats the call until it succeeds. Returns the answer."""

    def answered() -> dict[str, Any]:
        response = call()
        return response.json() if response.is_success else {}

    return eventually(answered)


def cancel(workspace: Workspace, **fields: Any) -> httpx.Response:
    return workspace.rest.call("POST", f"{workspace.path}/task/cancel", json=fields)


def test_workers_and_database(hosts: ManyHosts, workspace: Workspace) -> None:
    """A cancellation that cannot be recorded is not accepted.

    Calls succeed again soon after the cut.
    """
    running = Running(workspace)
    with hosts.network.parted(*both_ways(WORKERS, [DATABASE])):
        for _ in range(2):
            with within(_UNAVAILABLE_SECONDS):
                assert cancel(workspace).json()["error"]["code"] == "unavailable"
    # The cancellation of an earlier call may have been recorded, although that call failed.
    answer = recovered(lambda: cancel(workspace))
    assert answer["outcome"] in ("accepted", "already_requested")
    await_all_workers(hosts)
    running.ends_cancelled()


@pytest.mark.parametrize("way", smoke(["both", "there", "back"], ["back"]))
def test_workers_and_agents(hosts: ManyHosts, workspace: Workspace, way: str) -> None:
    """The call answers `agent_unreachable`, and the agent gets the cancellation after the cut."""
    running, agents = Running(workspace), [hosts.host_of(workspace.id)]
    agent_pid = hosts.agent_pid(workspace.id)
    ways = {
        "both": both_ways(WORKERS, agents),
        "there": one_way(WORKERS, agents),
        "back": one_way(agents, WORKERS),
    }[way]
    with hosts.network.parted(*ways):
        with within(_UNREACHABLE_SECONDS):
            answer = cancel(workspace)
        assert answer.status_code == 503, answer.text
        error = answer.json()["error"]
        assert error["code"] == "agent_unreachable", error
        assert error["details"]["intent_recorded"] in (True, "true"), error
    running.ends_cancelled()
    assert hosts.agent_pid(workspace.id) == agent_pid
    next_id = workspace.submit("true")
    assert workspace.await_end(next_id)["status"] == "completed"


def test_edge_and_all_workers(hosts: ManyHosts, workspace: Workspace) -> None:
    """During the cut, the edge itself answers. Soon after the cut, calls succeed again."""
    running = Running(workspace)
    with hosts.network.parted(*both_ways([EDGE], WORKERS)):
        for _ in range(2):
            with within(_UNAVAILABLE_SECONDS):
                assert cancel(workspace).json()["error"]["code"] == "unavailable"
    recovered(lambda: cancel(workspace))
    await_all_workers(hosts)
    running.ends_cancelled()


@pytest.mark.soak
def test_the_leader_and_the_database(hosts: ManyHosts, workspace: Workspace) -> None:
    """The standby controller ends the overdue task.

    This controller can find the agent's processes, so it knows that they have ended.
    """
    leader = eventually(hosts.leader)
    assert leader is not None
    task_id = workspace.submit("kill -STOP $PPID; sleep 60")
    agent = psutil.Process(hosts.agent_pid(workspace.id))
    eventually(lambda: agent.status() == psutil.STATUS_STOPPED)
    with hosts.network.parted(*both_ways([leader], [DATABASE])):
        assert cancel(workspace, force_after="1s").json()["error"]["code"] == "agent_unreachable"
        with within(_TAKEOVER_SECONDS):
            end = workspace.await_end(task_id)
        assert (end["status"], end["forced"], end["work_stopped"]) == ("cancelled", True, "yes")
        assert hosts.leader() == next(host for host in CONTROLLERS if host != leader)


def test_what_nobody_can_know_is_unknown(hosts: ManyHosts, workspace: Workspace) -> None:
    """An agent that is cut off ends itself and its tool, but no leading controller can see that.

    The controller that started the agent could tell whether any process is left. This controller is
    cut off from the database, so the other one leads.
    """
    leader, agents = eventually(hosts.leader), [hosts.host_of(workspace.id)]
    assert leader is not None
    task_id = workspace.begin("sleep 60")
    agent = psutil.Process(hosts.agent_pid(workspace.id))
    with hosts.network.parted(*both_ways(WORKERS, agents), *both_ways([leader], [DATABASE])):
        assert cancel(workspace).json()["error"]["code"] == "agent_unreachable"
        with within(LEASE_SECONDS):
            eventually(lambda: not is_alive(agent))
        end = workspace.await_end(task_id)
        assert (end["status"], end["work_stopped"]) == ("cancelled", "unknown")
        assert hosts.pod_processes(workspace.id) == []
    log = (hosts.state_dir / "fleet" / workspace.id / "log").read_text()
    assert f'"exit_code": {int(ExitCode.LEASE_OVER)}' in log
    # After a resume, the next task completes.
    workspace.await_status("failed")
    workspace.rest.post(f"{workspace.path}/resume")
    eventually(lambda: workspace.get()["status"] in ("idle", "failed"), _START_SECONDS)
    assert workspace.get()["status"] == "idle", workspace.get()
    assert workspace.await_end(workspace.submit("true"))["status"] == "completed"
