"""The metrics of the leading controller's backlog."""

from datetime import timedelta

import pytest

from evershell.core.workspace import WorkspaceStatus
from evershell.fleet import redelivery
from evershell.fleet.redelivery import FIRST_AFTER
from evershell.telemetry.metrics import Metrics
from tests.support.fleet import Fleet
from tests.support.waiting import settle


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def fleet(metrics: Metrics) -> Fleet:
    fleet = Fleet()
    fleet.backlog = metrics.backlog(fleet.world.clock)
    return fleet


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"evershell_{name}", labels)


async def test_open_cancellations_are_counted_and_the_oldest_has_its_age(
    fleet: Fleet, metrics: Metrics
) -> None:
    await fleet.add_busy()
    async with fleet.running():
        assert value(metrics, "cancellations_open") == 0
        assert value(metrics, "cancellations_oldest_seconds") == 0
    for _ in range(2):
        await fleet.add_busy(cancelled=True)
    fleet.world.clock.now += timedelta(seconds=60)
    async with fleet.running():
        before = value(metrics, "cancellations_oldest_seconds")
        # The age grows without a scan, and so also while the database does not answer.
        fleet.world.clock.now += timedelta(seconds=3)
        assert value(metrics, "cancellations_open") == 2
        assert before is not None
        assert value(metrics, "cancellations_oldest_seconds") == before + 3


async def test_workspaces_are_counted_by_status(fleet: Fleet, metrics: Metrics) -> None:
    await fleet.add(WorkspaceStatus.IDLE)
    await fleet.add(WorkspaceStatus.FAILED, pod=False)
    await fleet.add(WorkspaceStatus.FAILED, pod=False)
    async with fleet.running():
        assert value(metrics, "workspaces", status="failed") == 2
        assert value(metrics, "workspaces", status="idle") == 1
        assert value(metrics, "workspaces", status="busy") == 0


async def test_a_standby_serves_no_backlog(fleet: Fleet, metrics: Metrics) -> None:
    await fleet.add_busy(cancelled=True)
    names = ("cancellations_open", "cancellations_oldest_seconds")
    assert [value(metrics, name) for name in names] == [None, None]
    async with fleet.running():
        assert None not in [value(metrics, name) for name in names]
    assert [value(metrics, name) for name in names] == [None, None]
    assert value(metrics, "workspaces", status="busy") is None


async def test_redeliveries_are_counted_by_result(
    fleet: Fleet, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redelivery, "_FIRST_BACKOFF_SECONDS", 0)
    await fleet.add_busy(cancelled=True)
    fleet.world.clock.now += FIRST_AFTER + timedelta(seconds=1)
    fleet.world.agents.reachable = False
    async with fleet.running():
        unreachable = value(metrics, "cancel_redeliveries_total", result="unreachable")
        assert unreachable is not None
        assert unreachable > 0
        assert value(metrics, "cancel_redeliveries_total", result="acknowledged") is None
        fleet.world.agents.reachable, fleet.world.agents.known = True, False
        await settle()
        assert (value(metrics, "cancel_redeliveries_total", result="unknown") or 0) > 0
        fleet.world.agents.known = True
        await settle()
        assert value(metrics, "cancel_redeliveries_total", result="acknowledged") == 1
