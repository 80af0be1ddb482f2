"""The metrics of a program, for Prometheus.

The values of a label are a closed set, for example RPCs, slugs or results. Ids are not labels,
because the number of series would grow with use.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from platform import python_version
from time import perf_counter
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from evershell.core.change import Change
from evershell.core.errors import AgentUnreachableError
from evershell.core.event import EventType
from evershell.core.money import NANOS_PER_DOLLAR
from evershell.core.ports import Agents, Clock
from evershell.core.task import Limit, Task
from evershell.core.webhook import DeliveryCounts
from evershell.core.workspace import Workspace, WorkspaceStatus

_Answer = TypeVar("_Answer")
# Always loopback, because metrics are not for callers.
HOST = "127.0.0.1"
# The outcomes of CancelTask that count against its SLO (docs/slo.md).
SLO_FAILURES = ("internal", "unavailable", "deadline_exceeded")
_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# From an idle agent's answer to the limits of a model call and a tool call.
_CANCEL_TO_END_SECONDS = (
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    720.0,
)


class Metrics:
    """The metrics of one program."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("evershell_build", "The version of this program.", registry=self.registry).info(
            {"version": version("evershell"), "python_version": python_version()}
        )
        self._calls = Histogram(
            "evershell_rpc_seconds",
            "Time from the start of a call to its end; "
            "outcome: ok, the slug that it failed with, failed without one, or caller_gone.",
            ["rpc", "outcome"],
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "evershell_rpc_in_flight",
            "Calls that have started and not ended; those of streams are open.",
            ["rpc"],
            registry=self.registry,
        )
        self._signals = Histogram(
            "evershell_agent_signal_seconds",
            "Time to signal an agent, including retries; result: ok or unreachable.",
            ["rpc", "result"],
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._audit_entries_lost = Counter(
            "evershell_audit_entries_lost",
            "Entries of the audit log that could not be stored, or exceeded the limit for "
            "unauthenticated calls.",
            registry=self.registry,
        )
        self._limits_reached = Counter(
            "evershell_task_limits_reached",
            "Tasks that the service has cancelled at a limit; limit: max_duration, "
            "max_total_tokens, max_cost or workspace_files.",
            ["limit"],
            registry=self.registry,
        )
        # Prometheus sees no increase in a series that starts at 1.
        for limit in Limit:
            self._limits_reached.labels(limit)
        self._reported_cost = Counter(
            "evershell_reported_cost_dollars",
            "The known costs of the tasks that have ended, as their agents have reported them.",
            registry=self.registry,
        )
        self._cancelled_tasks = Counter(
            "evershell_batch_cancellations",
            "Tasks that CancelTasks and HoldOrg have cancelled, and descendants that CancelTask "
            "and limits of trees have.",
            registry=self.registry,
        )
        self._webhook_events = Counter(
            "evershell_webhook_events",
            "Attempts to send an event to a webhook; result: delivered or failed.",
            ["result"],
            registry=self.registry,
        )
        for result in ("delivered", "failed"):
            self._webhook_events.labels(result)
        self._webhook_deliveries_failed = Counter(
            "evershell_webhook_deliveries_failed",
            "Deliveries that have failed for 24 hours, or that the receiver does not want.",
            registry=self.registry,
        )
        self._cancel_to_end = Histogram(
            "evershell_cancel_to_end_seconds",
            "Time from the record of a cancellation to the commit of its task's end; "
            "forced: whether the iteration was interrupted.",
            ["forced"],
            buckets=_CANCEL_TO_END_SECONDS,
            registry=self.registry,
        )

        self._removed_tasks = Counter(
            "evershell_tasks_removed",
            "Tasks that have been removed after TASK_RETENTION_DAYS.",
            registry=self.registry,
        )

    def removed_tasks(self, count: int) -> None:
        self._removed_tasks.inc(count)

    def cancelled_tasks(self, count: int) -> None:
        self._cancelled_tasks.inc(count)

    def webhooks(self, delivered: int, failed_attempts: int, given_up: int) -> None:
        """Counts what the process that delivers webhooks has done."""
        self._webhook_events.labels("delivered").inc(delivered)
        self._webhook_events.labels("failed").inc(failed_attempts)
        self._webhook_deliveries_failed.inc(given_up)

    def rpc(self, name: str) -> "MeasuredRpc":
        if name == "CancelTask":
            # Its SLO counts the first failure too, in which Prometheus would see no increase.
            for outcome in SLO_FAILURES:
                self._calls.labels(name, outcome)
        return MeasuredRpc(name, self._calls, self._in_flight)

    def signal(self, rpc: str) -> "MeasuredSignal":
        """The measurements of the signals to agents by this RPC."""
        return MeasuredSignal(rpc, self._signals)

    def audit_entries_lost(self, count: int) -> None:
        self._audit_entries_lost.inc(count)

    def committed(self, change: Change) -> None:
        """Measures a committed change if it ends a task, or cancels one at a limit."""
        if change.limit is not None:
            self._limits_reached.labels(change.limit).inc()
        task = change.task
        ended = any(event.type is EventType.TASK_COMPLETED for event in change.events)
        if not ended or task is None:
            return
        if task.usage.cost_nanos is not None:
            self._reported_cost.inc(task.usage.cost_nanos / NANOS_PER_DOLLAR)
        if task.cancel is None or task.completed_at is None:
            return
        # The times may be from two workers, each of which knows the time to some milliseconds.
        seconds = max(0.0, (task.completed_at - task.cancel.requested_at).total_seconds())
        self._cancel_to_end.labels(str(task.forced).lower()).observe(seconds)

    def watch_pool(self, statistics: Callable[[], Mapping[str, int]]) -> None:
        """Exports the statistics of the database pool, which are read at each scrape."""
        connections = Gauge(
            "evershell_database_connections",
            "Connections of the pool.",
            ["state"],
            registry=self.registry,
        )

        def idle() -> int:
            return statistics().get("pool_available", 0)

        connections.labels("idle").set_function(idle)
        connections.labels("used").set_function(lambda: statistics().get("pool_size", 0) - idle())
        self._watch(
            "evershell_database_waiting",
            "Requests that wait for a connection.",
            lambda: statistics().get("requests_waiting", 0),
        )

    def watch_clock(
        self, machine_offset_seconds: Callable[[], float], correction_seconds: Callable[[], float]
    ) -> None:
        """Exports how far the clocks of this machine and of the database are off."""
        self._watch(
            "evershell_clock_offset_seconds",
            "How far the clock of this machine is ahead of the time of the service.",
            machine_offset_seconds,
        )
        self._watch(
            "evershell_clock_correction_seconds",
            "What is added to the clock of the database, because that clock was set.",
            correction_seconds,
        )

    def watch_log(self, lost_lines: Callable[[], int]) -> None:
        """Exports the number of lines that the log has lost."""
        self.registry.register(_LogCollector(lost_lines))

    def _watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Exports a gauge whose value is read at each scrape."""
        Gauge(name, documentation, registry=self.registry).set_function(value)

    def backlog(self, clock: Clock) -> "Backlog":
        return Backlog(self.registry, clock)


class MeasuredRpc:
    """Counts and times the calls of one RPC."""

    def __init__(self, name: str, calls: Histogram, in_flight: Gauge) -> None:
        self._name = name
        self._calls = calls
        self._in_flight = in_flight.labels(name)
        # The library takes longer to find the series of an outcome than to count a call.
        self._by_outcome: dict[str, Histogram] = {}

    def begin(self) -> None:
        self._in_flight.inc()

    def end(self, outcome: str, seconds: float) -> None:
        """Counts a call that has ended after `seconds`, and its outcome."""
        series = self._by_outcome.get(outcome)
        if series is None:
            series = self._by_outcome[outcome] = self._calls.labels(self._name, outcome)
        series.observe(seconds)
        self._in_flight.dec()


class MeasuredSignal:
    """Measures the signals of one RPC."""

    def __init__(self, rpc: str, signals: Histogram) -> None:
        # Looked up once: the library takes longer to find a series than to count a signal.
        self._ok = signals.labels(rpc, "ok")
        self._unreachable = signals.labels(rpc, "unreachable")

    async def __call__(self, signal: Awaitable[_Answer]) -> _Answer:
        """Awaits and measures the signal. Returns its answer."""
        started, series = perf_counter(), self._ok
        try:
            return await signal
        except AgentUnreachableError:
            series = self._unreachable
            raise
        finally:
            series.observe(perf_counter() - started)


class _LogCollector(Collector):
    def __init__(self, lost_lines: Callable[[], int]) -> None:
        self._lost_lines = lost_lines

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "evershell_log_lines_lost", "Lines that the log has lost.", value=self._lost_lines()
        )


class MeasuredAgents:
    """Implements ports.Agents by calling another implementation, and measures its calls."""

    def __init__(self, agents: Agents, metrics: Metrics) -> None:
        self._agents = agents
        self._starts = metrics.signal("StartTask")
        self._cancels = metrics.signal("CancelTask")

    async def start_task(self, workspace: Workspace, task: Task) -> None:
        await self._starts(self._agents.start_task(workspace, task))

    async def cancel_task(self, workspace: Workspace, task: Task) -> bool:
        return await self._cancels(self._agents.cancel_task(workspace, task))


@contextmanager
def serve_metrics(metrics: Metrics, port: int, host: str = HOST) -> Iterator[None]:
    """Serves `/metrics` for the duration of the context, unless the port is 0.

    Raises OSError if the port is taken.
    """
    if not port:
        yield
        return
    server, thread = start_http_server(port, host, metrics.registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Backlog(Collector):
    """The backlog of the leading fleet controller, as of its last scan. A standby exports none."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        # None if it is not known yet, or if this controller does not lead.
        self._requested: list[datetime] | None = None
        self._workspaces: Mapping[WorkspaceStatus, int] | None = None
        self._holds: int | None = None
        self._deliveries: DeliveryCounts | None = None
        # The bytes of the largest workspace, of all workspaces, and the limit of one.
        self._files: tuple[int, int, int] | None = None
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

    def set_open_cancellations(self, requested: Iterable[datetime]) -> None:
        """Sets the times at which the open cancellations were recorded."""
        self._requested = list(requested)

    def set_workspace_counts(self, counts: Mapping[WorkspaceStatus, int]) -> None:
        self._workspaces = counts

    def set_hold_count(self, count: int) -> None:
        self._holds = count

    def set_delivery_counts(self, counts: DeliveryCounts) -> None:
        self._deliveries = counts

    def set_oldest_end(self, completed_at: datetime | None) -> None:
        self._oldest_end = completed_at

    def set_files(self, largest: int, total: int, limit: int) -> None:
        """Sets the sizes of the files, in bytes."""
        self._files = (largest, total, limit)

    def clear(self) -> None:
        """Exports nothing until the next scan, because this controller no longer leads."""
        self._requested = self._workspaces = self._holds = self._deliveries = None
        self._oldest_end = self._files = None

    def collect(self) -> Iterator[Metric]:
        """Computes the ages at each scrape, so that they grow during an outage of the database."""
        requested, workspaces = self._requested, self._workspaces
        if requested is not None:
            oldest = self._age_seconds(min(requested)) if requested else 0.0
            description = (
                "Recorded cancellations whose tasks have not ended, read by index every second."
            )
            yield GaugeMetricFamily(
                "evershell_cancellations_open", description, value=len(requested)
            )
            yield GaugeMetricFamily(
                "evershell_cancellations_oldest_seconds",
                "Age of the oldest recorded cancellation whose task has not ended; 0 if none is.",
                value=oldest,
            )
        if self._deliveries is not None:
            yield from self._of_deliveries(self._deliveries)
        if self._files is not None:
            for name, description, value in zip(
                ("largest", "total", "limit"),
                (
                    "Size of the files of the largest workspace, up to the limit.",
                    "Size of the files of all workspaces of the machine.",
                    "WORKSPACE_FILES_MB in bytes.",
                ),
                self._files,
                strict=True,
            ):
                yield GaugeMetricFamily(
                    f"evershell_workspace_files_{name}_bytes", description, value=value
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

    def _of_deliveries(self, counts: DeliveryCounts) -> Iterator[Metric]:
        deliveries = GaugeMetricFamily(
            "evershell_webhook_deliveries",
            "Deliveries of webhooks that are pending, or that have failed, counted every 60 s; "
            "10,001 stands for more than 10,000.",
            labels=["status"],
        )
        deliveries.add_metric(["pending"], counts.pending)
        deliveries.add_metric(["failed"], counts.failed)
        yield deliveries
        yield GaugeMetricFamily(
            "evershell_webhook_oldest_seconds",
            "How long the event of a pending delivery has been waiting; 0 if none is pending.",
            value=self._age_seconds(counts.oldest) if counts.oldest is not None else 0.0,
        )
