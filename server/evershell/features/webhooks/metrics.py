"""The metrics of webhooks."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from evershell.core.ports import Clock
from evershell.features.parts import LeaderParts, Run
from evershell.features.webhooks.deliveries import count_deliveries
from evershell.features.webhooks.rules import DeliveryCounts
from evershell.fleet.periodic import repeat
from evershell.store.pool import Pool

_COUNT_SECONDS = 60.0


class DeliveryMetrics:
    """Counts what a worker's delivery process has sent."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "evershell_webhook_events",
            "Attempts to send an event to a webhook; result: delivered or failed.",
            ["result"],
            registry=registry,
        )
        # Starts each series at 0. If a series started at 1, Prometheus would not see an increase.
        for result in ("delivered", "failed"):
            self._events.labels(result)
        self._deliveries_failed = Counter(
            "evershell_webhook_deliveries_failed",
            "Deliveries that failed for 24 hours, or whose receiver refuses all requests.",
            registry=registry,
        )

    def count(self, delivered: int, failed_attempts: int, given_up: int) -> None:
        """Adds what the process has done since its last report."""
        self._events.labels("delivered").inc(delivered)
        self._events.labels("failed").inc(failed_attempts)
        self._deliveries_failed.inc(given_up)


def in_leader(parts: LeaderParts) -> Run:
    """Measures the backlog of deliveries while the controller leads."""
    backlog = DeliveryBacklog(parts.registry, parts.clock)

    async def run() -> None:
        await backlog.run(parts.pool)

    return run


class DeliveryBacklog(Collector):
    """The deliveries at the last count. A controller that does not lead exports nothing."""

    def __init__(self, registry: CollectorRegistry, clock: Clock) -> None:
        self._clock = clock
        # None before the first count, or if this controller does not lead.
        self.counts: DeliveryCounts | None = None
        registry.register(self)

    async def run(self, pool: Pool) -> None:
        """Counts until it is cancelled."""

        async def count() -> None:
            self.counts = await count_deliveries(pool)

        try:
            await repeat("webhooks", count, _COUNT_SECONDS)
        finally:
            self.counts = None

    def collect(self) -> Iterator[Metric]:
        """Computes the age at each scrape, so that it grows during an outage of the database."""
        counts = self.counts
        if counts is None:
            return
        deliveries = GaugeMetricFamily(
            "evershell_webhook_deliveries",
            "Deliveries of webhooks that are pending, or that have failed, counted every 60 s; "
            "10,001 stands for more than 10,000.",
            labels=["status"],
        )
        deliveries.add_metric(["pending"], counts.pending)
        deliveries.add_metric(["failed"], counts.failed)
        yield deliveries
        age_seconds = 0.0
        if counts.oldest is not None:
            age_seconds = max(0.0, (self._clock() - counts.oldest).total_seconds())
        yield GaugeMetricFamily(
            "evershell_webhook_oldest_seconds",
            "How long the event of a pending delivery has been waiting; 0 if none is pending.",
            value=age_seconds,
        )
