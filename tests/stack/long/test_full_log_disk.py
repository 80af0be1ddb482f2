"""Full log disks do not make calls fail or tasks end. Logging continues once there is space."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.constants import SMALL_LOGS, with_constants
from tests.support.ports import free_ports
from tests.support.small_disk import fill, free, shrink_pipe, small_disk
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

_LEASE_SECONDS = 12
# The folders for the logs of the programs and for the logs of the agents.
_DISKS = ("logs", "fleet")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder in which the logs of programs and the logs of agents are on small disks."""
    state_dir = tmp_path_factory.mktemp("logs") / "state"
    with ExitStack() as mounted:
        for name in _DISKS:
            mounted.enter_context(small_disk(state_dir / name, 8 << 20))
        yield state_dir


@pytest.fixture(scope="module")
def cramped(disks: Path) -> Iterator[Stack]:
    running = Stack(
        disks,
        LEASE_SECONDS=str(_LEASE_SECONDS),
        METRICS_ADDRESS=f"127.0.0.1:{free_ports(5, in_a_row=5)[0]}",
        **with_constants(disks.with_name("constants"), SMALL_LOGS),
    )
    running.output = disks / "logs" / "up.output"
    with running.started():
        yield running


def disks_of(stack: Stack) -> list[Path]:
    return [stack.state_dir / name for name in _DISKS]


def programs(stack: Stack) -> set[int]:
    return {*stack.pids("serve"), *stack.pids("fleet"), stack.pid}


def lost_lines(stack: Stack) -> float:
    """Returns how many log lines the workers have lost so far."""
    found = 0.0
    for index in range(2):
        metrics = httpx.get(
            f"http://127.0.0.1:{stack.metrics_port + index}/metrics", trust_env=False, timeout=20
        ).text
        (line,) = [
            line
            for line in metrics.splitlines()
            if line.startswith("evershell_log_lines_lost_total ")
        ]
        found += float(line.split()[1])
    return found


def assert_healthy(stack: Stack) -> None:
    for address in stack.worker_addresses():
        with grpc.insecure_channel(address) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=20
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def notices(stack: Stack) -> list[dict[str, Any]]:
    """Returns the log lines with which the workers report lost lines."""
    found = []
    for path in (stack.state_dir / "logs").glob("worker-*.log*"):
        # The file may be rotated in the meantime.
        with suppress(FileNotFoundError):
            # The program may be writing the last line.
            lines = path.read_text().split("\n")[:-1]
            found += [json.loads(line) for line in lines if "log_lines_lost" in line]
    return found


def test_full_disks_fail_no_call_and_end_no_task(cramped: Stack) -> None:
    workspaces = cancelled, left = Workspace(cramped), Workspace(cramped)
    gates = [Gate(workspace) for workspace in workspaces]
    tasks = [workspace.submit(Gate.command, "true") for workspace in workspaces]
    for workspace, task_id in zip(workspaces, tasks, strict=True):
        workspace.await_phase(task_id, "tool_call")
    agents = [cramped.agent_pid(workspace.id) for workspace in workspaces]
    running = programs(cramped)
    for worker in cramped.pids("serve"):
        shrink_pipe(worker)

    # Keeps the disks full for the length of a lease: an agent that cannot reach a worker would end
    # within this time.
    full_until = time.monotonic() + _LEASE_SECONDS
    while time.monotonic() < full_until:
        for disk in disks_of(cramped):
            fill(disk)
        assert cancelled.get()["status"] == "busy"
        assert cancelled.rest.call("GET", "/v1/workspaces/ws_unknown").status_code == 404
        assert_healthy(cramped)
    eventually(lambda: cancelled.get() and lost_lines(cramped) > 0)
    assert cancelled.cancel()["outcome"] == "accepted"
    for gate in gates:
        gate.open()
    ends = [
        workspace.await_end(task_id)["status"]
        for workspace, task_id in zip(workspaces, tasks, strict=True)
    ]
    assert ends == ["cancelled", "completed"]
    assert [cramped.agent_pid(workspace.id) for workspace in workspaces] == agents
    assert programs(cramped) == running
    # A program can also start while the disks are full.
    cramped.replace_controllers()

    for disk in disks_of(cramped):
        free(disk)

    def counted() -> int:
        left.cancel()
        return sum(line["count"] for line in notices(cramped))

    eventually(lambda: 0 < counted() <= lost_lines(cramped))
