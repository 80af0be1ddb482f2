"""The backlog of the leading fleet controller, for Prometheus."""

from collections.abc import Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from evershell.core.ports import Clock
from evershell.core.workspace import WorkspaceStatus


class Backlog(Collector):
    """The backlog of the leading fleet controller, as of its last scan. A standby has none."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        # Each of the next four fields is None as long as its value is not known, and while this
        # controller does not lead.
        #
        # The number of open cancellations, and when the oldest of them was recorded.
        self._open: tuple[int, datetime | None] | None = None
        self._workspaces: Mapping[WorkspaceStatus, int] | None = None
        self._holds: int | None = None
        # Also None if no task has ended.
        self._oldest_end: datetime | None = None
        self._redeliveries = Counter(
            "evershell_cancel_redeliveries",
            "Attempts to redeliver a recorded cancellation; "
            "result: acknowledged, unknown (to the agent) or unreachable.",
            ["result"],
            registry=registry,
        )
        registry.register(self)

    def redelivered(self, result: str) -> None:
        self._redeliveries.labels(result).inc()

    def set_open_cancellations(self, count: int, oldest: datetime | None) -> None:
        """Sets the number of open cancellations, and when the oldest of them was recorded."""
        self._open = count, oldest

    def set_workspace_counts(self, counts: Mapping[WorkspaceStatus, int]) -> None:
        self._workspaces = counts

    def set_hold_count(self, count: int) -> None:
        self._holds = count

    def set_oldest_end(self, completed_at: datetime | None) -> None:
        self._oldest_end = completed_at

    def clear(self) -> None:
        """Exports nothing until the next scan, because this controller no longer leads."""
        self._open = self._workspaces = self._holds = self._oldest_end = None

    def collect(self) -> Iterator[Metric]:
        """Computes the ages at each scrape, so that they grow during an outage of the database."""
        workspaces = self._workspaces
        if self._open is not None:
            count, oldest_at = self._open
            oldest = 0.0 if oldest_at is None else self._age_seconds(oldest_at)
            description = "Recorded cancellations whose tasks have not ended, read every second."
            yield GaugeMetricFamily("evershell_cancellations_open", description, value=count)
            yield GaugeMetricFamily(
                "evershell_cancellations_oldest_seconds",
                "Age of the oldest cancellation whose task has not ended; 0 if there is none.",
                value=oldest,
            )
        if self._oldest_end is not None:
            yield GaugeMetricFamily(
                "evershell_oldest_ended_task_seconds",
                "Time since the end of the oldest task that has ended, read every 60 s.",
                value=self._age_seconds(self._oldest_end),
            )
        if self._holds is not None:
            yield GaugeMetricFamily(
                "evershell_orgs_on_hold",
                "Organizations on hold, counted every 60 s.",
                value=self._holds,
            )
        if workspaces is not None:
            family = GaugeMetricFamily(
                "evershell_workspaces", "Workspaces, counted every 60 s.", labels=["status"]
            )
            for status in WorkspaceStatus:
                family.add_metric([str(status)], workspaces.get(status, 0))
            yield family

    def _age_seconds(self, since: datetime) -> float:
        return max(0.0, (self._clock() - since).total_seconds())
