"""The metrics of a worker."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.api.status import RULES
from evershell.core import task_lifecycle, workspace_lifecycle
from evershell.core.change import Change, unchanged
from evershell.core.errors import AgentUnreachableError
from evershell.core.task import AgentEvent, TaskEnded, TaskLimits, TaskStatus, Usage
from evershell.telemetry.metrics import SLO_FAILURES, MeasuredAgents, Metrics
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import eventually_async
from tests.support.world import (
    NOW,
    FakeAgents,
    World,
    intent,
    iteration,
    locked_busy,
    task,
    workspace,
)
from tests.wire.api.running import (
    INTERNAL,
    PUBLIC,
    Failed,
    Running,
    agent_bearer,
    bearer,
    running,
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def server(world: World, metrics: Metrics) -> AsyncIterator[Running]:
    async with running(world, metrics=metrics) as started:
        yield started


def calls(metrics: Metrics, rpc: str, outcome: str) -> float | None:
    return metrics.registry.get_sample_value(
        "evershell_rpc_seconds_count", {"rpc": rpc, "outcome": outcome}
    )


def in_flight(metrics: Metrics, rpc: str) -> float | None:
    return metrics.registry.get_sample_value("evershell_rpc_in_flight", {"rpc": rpc})


async def test_calls_are_counted_by_outcome(
    server: Running, world: World, metrics: Metrics
) -> None:
    busy, _ = await world.add_busy()
    for _ in range(3):
        await server.stub.CancelTask(
            messages.CancelTaskRequest(workspace_id=busy.id), metadata=bearer()
        )
    for workspace_id in ("ws_1", "ws_2"):
        await server.fails(
            server.stub.CancelTask(
                messages.CancelTaskRequest(workspace_id=workspace_id), metadata=bearer()
            )
        )
    await server.fails(server.stub.CancelTask(messages.CancelTaskRequest(workspace_id=busy.id)))
    await server.raw(INTERNAL + "Heartbeat", agent_bearer(busy.id))
    # A call is counted when it is over, and its caller may see the reply before that.
    await eventually_async(
        lambda: calls(metrics, "Heartbeat", "ok") == 1 and in_flight(metrics, "CancelTask") == 0
    )
    assert calls(metrics, "CancelTask", "ok") == 3
    assert calls(metrics, "CancelTask", "workspace_not_found") == 2
    assert calls(metrics, "CancelTask", "unauthenticated") == 1
    assert calls(metrics, "Heartbeat", "ok") == 1
    total = metrics.registry.get_sample_value(
        "evershell_rpc_seconds_sum", {"rpc": "CancelTask", "outcome": "ok"}
    )
    # The unit of the metric is seconds.
    assert total is not None and 0 < total < 60
    assert in_flight(metrics, "CancelTask") == 0


async def test_failures_of_cancel_task_are_counted_from_zero(
    server: Running, metrics: Metrics
) -> None:
    """Prometheus sees no increase in a series that starts at 1."""
    assert [calls(metrics, "CancelTask", outcome) for outcome in SLO_FAILURES] == [0, 0, 0]


async def test_the_number_of_labels_is_bounded(
    server: Running, world: World, store: FaultyStore, metrics: Metrics
) -> None:
    """Ids of callers, unknown methods and kinds of exceptions are not labels."""
    for number in range(100):
        request = messages.CancelTaskRequest(workspace_id=f"ws_{number}").SerializeToString()
        await server.raw(PUBLIC + "CancelTask", bearer(x_request_id=f"req_{number}"), request)
        assert isinstance(await server.raw(f"{PUBLIC}Nope{number}", bearer()), Failed)
    store.error = lambda: ZeroDivisionError("hunter2")
    await server.raw(
        PUBLIC + "GetWorkspace",
        bearer(),
        messages.GetWorkspaceRequest(workspace_id="ws_1").SerializeToString(),
    )
    await eventually_async(lambda: calls(metrics, "GetWorkspace", "internal") == 1)
    outcomes = {"ok", "caller_gone", *RULES}
    seen = {
        (sample.labels["rpc"], sample.labels["outcome"])
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "evershell_rpc_seconds_count" and sample.value
    }
    assert seen == {("CancelTask", "workspace_not_found"), ("GetWorkspace", "internal")}
    assert {outcome for _, outcome in seen} <= outcomes


async def test_signals_are_counted_by_result(metrics: Metrics) -> None:
    agents = FakeAgents()
    measured = MeasuredAgents(agents, metrics)
    at = workspace(agent_address="127.0.0.1:9")
    await measured.start_task(at, task(at.id))
    assert await measured.cancel_task(at, task(at.id))
    agents.reachable = False
    with pytest.raises(AgentUnreachableError):
        await measured.cancel_task(at, task(at.id))
    read = metrics.registry.get_sample_value
    for rpc, result, count in (
        ("StartTask", "ok", 1),
        ("CancelTask", "ok", 1),
        ("CancelTask", "unreachable", 1),
    ):
        assert read("evershell_agent_signal_seconds_count", {"rpc": rpc, "result": result}) == count


def test_the_end_of_a_cancelled_task_measures_the_time_since_the_request(
    metrics: Metrics,
) -> None:
    locked = locked_busy(cancel=intent(requested_at=NOW, force_at=NOW))
    assert locked.task is not None
    later = NOW + timedelta(seconds=4)
    ended = task_lifecycle.commit(
        locked, 1, locked.task.id, [TaskEnded(status=TaskStatus.CANCELLED, forced=True)], later
    )
    metrics.committed(ended)
    # A repeat, a change without an end and an end without a cancellation are not measured.
    metrics.committed(Change(ended.workspace, ended.task))
    metrics.committed(unchanged(locked))
    completed = replace(locked, task=replace(locked.task, cancel=None))
    metrics.committed(
        task_lifecycle.commit(
            completed, 1, locked.task.id, [TaskEnded(status=TaskStatus.COMPLETED)], later
        )
    )
    read = metrics.registry.get_sample_value
    assert read("evershell_cancel_to_end_seconds_count", {"forced": "true"}) == 1
    assert read("evershell_cancel_to_end_seconds_sum", {"forced": "true"}) == 4
    assert read("evershell_cancel_to_end_seconds_count", {"forced": "false"}) is None


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (TaskLimits(max_duration_seconds=1), "max_duration"),
        (TaskLimits(max_total_tokens=5), "max_total_tokens"),
        # The model has no price, so the cost is unknown, which counts as reaching the limit.
        (TaskLimits(max_cost_nanos=10**9), "max_cost"),
    ],
)
def test_a_limit_is_counted_once_by_its_name(
    metrics: Metrics, limits: TaskLimits, limit: str
) -> None:
    locked = locked_busy()
    assert locked.task is not None
    task = replace(locked.task, limits=limits, started_at=NOW - timedelta(seconds=1))
    locked = replace(locked, task=task)
    events: list[AgentEvent] = [iteration(1), TaskEnded(status=TaskStatus.COMPLETED)]
    metrics.committed(task_lifecycle.commit(locked, 1, task.id, events, NOW))
    # A caller has already cancelled the task, so the limit does not cancel it again.
    cancelled = replace(locked, task=replace(task, cancel=intent()))
    metrics.committed(task_lifecycle.commit(cancelled, 1, task.id, events, NOW))
    lost = replace(locked, task=replace(task, usage=Usage(input_tokens=5, cost_nanos=None)))
    metrics.committed(workspace_lifecycle.lose_agent(lost, 1, "it died", NOW, work_stopped=True))
    found = {
        name: metrics.registry.get_sample_value(
            "evershell_task_limits_reached_total", {"limit": name}
        )
        for name in ("max_duration", "max_total_tokens", "max_cost")
    }
    assert found == {"max_duration": 0, "max_total_tokens": 0, "max_cost": 0, limit: 2}


def test_the_known_costs_of_tasks_that_have_ended_are_added_up(metrics: Metrics) -> None:
    locked = locked_busy()
    assert locked.task is not None
    for cost_nanos in (1_500_000_000, None, 250_000_000):
        usage = Usage(cost_nanos=cost_nanos)
        task = replace(locked.task, usage=usage)
        ended = TaskEnded(status=TaskStatus.COMPLETED)
        change = task_lifecycle.commit(replace(locked, task=task), 1, task.id, [ended], NOW)
        metrics.committed(change)
    found = metrics.registry.get_sample_value("evershell_reported_cost_dollars_total")
    assert found == 1.75


def test_the_pool_metrics_are_read_when_they_are_collected(metrics: Metrics) -> None:
    found = {"pool_size": 10, "pool_available": 3, "requests_waiting": 2}
    metrics.watch_pool(lambda: found)
    read = metrics.registry.get_sample_value
    assert read("evershell_database_connections", {"state": "used"}) == 7
    found["pool_available"] = 10
    assert read("evershell_database_connections", {"state": "used"}) == 0
    assert read("evershell_database_connections", {"state": "idle"}) == 10
    assert read("evershell_database_waiting") == 2
