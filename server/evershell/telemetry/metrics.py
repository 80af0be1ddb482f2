"""The metrics of a program, for Prometheus.

The values of a label are a closed set, for example RPCs, slugs or results. Ids are not labels,
because the number of series would grow with use.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
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
    make_wsgi_app,
)
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from evershell.core.change import Change
from evershell.core.errors import AgentUnreachableError
from evershell.core.event import EventType
from evershell.core.money import NANOS_PER_DOLLAR
from evershell.core.ports import Agents, Clock
from evershell.core.task import CurrentIteration, Limit, Task
from evershell.core.workspace import Workspace
from evershell.telemetry.backlog import Backlog
from evershell.telemetry.metrics_server import serving
from evershell.version import VERSION

_Answer = TypeVar("_Answer")
# Loopback by default, because metrics are not for callers.
HOST = "127.0.0.1"
# The outcomes of CancelTask that count against its SLO (docs/slo.md).
SLO_FAILURES = ("internal", "unavailable", "deadline_exceeded")
_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# The buckets range from the reaction time of an idle agent to the sum of the time limits of a model
# call and a tool call.
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
            {"version": VERSION, "python_version": python_version()}
        )
        self._calls = Histogram(
            "evershell_rpc_seconds",
            "Time from the start of a call to its end; "
            "outcome: ok, the slug of its error, failed if the error has no slug, or caller_gone.",
            ["rpc", "outcome"],
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._in_flight = Gauge(
            "evershell_rpc_in_flight",
            "Calls that have started and not ended, including open streams.",
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
            "max_total_tokens or max_cost.",
            ["limit"],
            registry=self.registry,
        )
        # Starts each series at 0, because Prometheus sees no increase in a series that starts at 1.
        for limit in Limit:
            self._limits_reached.labels(limit)
        self._reported_cost = Counter(
            "evershell_reported_cost_dollars",
            "The costs of ended tasks, as far as they are known from the reports of agents.",
            registry=self.registry,
        )
        self._cancelled_tasks = Counter(
            "evershell_batch_cancellations",
            "Tasks that CancelTasks and HoldOrg have cancelled, and descendants that CancelTask "
            "and limits of trees have cancelled.",
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

    def rpc(self, name: str) -> "MeasuredRpc":
        if name == "CancelTask":
            # Starts these series at 0: the SLO must count the first failure, and Prometheus sees no
            # increase in a series that starts at 1.
            for outcome in SLO_FAILURES:
                self._calls.labels(name, outcome)
        return MeasuredRpc(name, self._calls, self._in_flight)

    def signal(self, rpc: str) -> "MeasuredSignal":
        """Measures the signals to agents that this RPC sends."""
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
        # The two times may be from two workers, whose clocks may differ by some milliseconds.
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
        """Exports the offset of this machine's clock and the correction of the database's clock."""
        self._watch(
            "evershell_clock_offset_seconds",
            "How far the clock of this machine is ahead of the clock of the service.",
            machine_offset_seconds,
        )
        self._watch(
            "evershell_clock_correction_seconds",
            "Seconds added to the clock of the database, to make up for a step of that clock.",
            correction_seconds,
        )

    def watch_log(self, lost_lines: Callable[[], int]) -> None:
        """Exports the number of lines that the log has lost."""
        self.registry.register(_LogCollector(lost_lines))

    def _watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Exports a gauge whose value is read at each scrape."""
        Gauge(name, documentation, registry=self.registry).set_function(value)

    def backlog(self, clock: Clock) -> Backlog:
        return Backlog(self.registry, clock)


class MeasuredRpc:
    """Counts and times the calls of one RPC."""

    def __init__(self, name: str, calls: Histogram, in_flight: Gauge) -> None:
        self._name = name
        self._calls = calls
        self._in_flight = in_flight.labels(name)
        # A cache, because the library takes longer to find the series of an outcome than to count a
        # call.
        self._by_outcome: dict[str, Histogram] = {}

    def begin(self) -> None:
        self._in_flight.inc()

    def end(self, outcome: str, seconds: float) -> None:
        """Counts a call that has ended with `outcome` after `seconds`."""
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

    async def current_iteration(self, workspace: Workspace, task: Task) -> CurrentIteration | None:
        return await self._agents.current_iteration(workspace, task)


@contextmanager
def serve_metrics(metrics: Metrics, port: int, host: str = HOST) -> Iterator[None]:
    """Serves `/metrics` for the duration of the context, unless the port is 0.

    Raises OSError if the port is taken.
    """
    if not port:
        yield
        return
    with serving(make_wsgi_app(metrics.registry), port, host):
        yield
