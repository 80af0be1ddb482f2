"""A fleet controller (`fleet`): builds its parts and runs it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path

from evershell.api.health import liveness_served
from evershell.app import jobs
from evershell.app.pod_backends import pods_of
from evershell.app.program import (
    certificates_of,
    database,
    exempt_from_collection,
    log_and_metrics,
    serving_metrics,
    signing_keys_of,
)
from evershell.app.settings import Settings
from evershell.app.signals import stop_signal
from evershell.auth.pod_tokens import PodTokens
from evershell.core.bounds import Bounds
from evershell.core.errors import OperatorError
from evershell.features import registry
from evershell.features.parts import LeaderParts
from evershell.fleet.agent_client import AgentClient
from evershell.fleet.controller import Controller
from evershell.fleet.leading import lead
from evershell.fleet.parts import Parts
from evershell.pod import crash_points
from evershell.pod.crash_points import CrashPoints
from evershell.store.leadership import Leadership, Term
from evershell.store.notifications import FleetSubscriptions
from evershell.store.postgres_store import PostgresStore
from evershell.store.schema import await_schema
from evershell.telemetry import turns
from evershell.telemetry.metrics import MeasuredAgents, Metrics


async def fleet(settings: Settings, health_address: str | None = None) -> None:
    """Runs one fleet controller until SIGTERM or SIGINT. Pods continue to run.

    Serves its liveness at `health_address`, which is host:port or unix:/path. Raises OperatorError.
    """
    metrics = log_and_metrics("fleet", settings)
    async with (
        _live_at(health_address),
        controller(settings, metrics) as run,
        # A rolling restart stops the other controller once the event loop of this controller has
        # made a turn.
        turns.counted(),
    ):
        with serving_metrics(metrics, settings):
            exempt_from_collection()
            leading = asyncio.ensure_future(run())
            stopping = asyncio.create_task(stop_signal())
            await asyncio.wait((leading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if leading.done():
                # `leading` ends only with an unexpected error. This line raises it.
                leading.result()
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)


@asynccontextmanager
async def controller(
    settings: Settings, metrics: Metrics
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Yields a function that runs the fleet controller whenever this process is the leader.

    Raises OperatorError.
    """
    signing_keys = signing_keys_of(settings)
    certificates = certificates_of(settings, signing_keys)
    bounds = Bounds(
        start_seconds=settings.pod_start_seconds,
        model_timeout_seconds=settings.model_timeout_seconds,
        tool_timeout_seconds=settings.tool_timeout_seconds,
        lease_seconds=settings.lease_seconds,
    )
    async with AsyncExitStack() as stack:
        pool, clock = await stack.enter_async_context(database(settings, metrics))
        pod_tokens = PodTokens(signing_keys, clock.unix_seconds)
        pods, run_id = await stack.enter_async_context(pods_of(settings, pod_tokens, certificates))
        subscriptions = await stack.enter_async_context(
            FleetSubscriptions(pool, settings.session_url)
        )
        tls = certificates.control_plane() if certificates else None
        agent_client = await stack.enter_async_context(
            aclosing(AgentClient(pod_tokens, clock, tls))
        )
        backlog = metrics.backlog(clock) if settings.metrics_port else None
        measured = LeaderParts(registry=metrics.registry, pool=pool, clock=clock)
        measuring = [in_leader(measured) for in_leader in registry.in_leader()] if backlog else []
        store = PostgresStore(
            pool, clock, subscriptions.publish, metrics.committed, metrics.cancelled_tasks
        )
        agents = MeasuredAgents(agent_client, metrics)
        if crash_points.FOLDER:
            points = CrashPoints(Path(crash_points.FOLDER))
            pods = points.armed(pods, end="pod_end", remove="file_removal")
            store = points.armed(store, remove_workspace="row_removal")
        minutes = settings.idle_suspend_minutes

        def new_controller(term: Term) -> Controller:
            parts = Parts(
                store=store,
                pods=pods,
                agents=agents,
                clock=clock,
                bounds=bounds,
                run_id=run_id,
                suspend_after=timedelta(minutes=minutes) if minutes else None,
                backlog=backlog,
                leads=term.is_current,
            )
            background = jobs.background(parts, settings, metrics)
            return Controller(parts, clock(), [*background, *measuring])

        leadership = Leadership(settings.session_url)

        async def run() -> None:
            await await_schema(pool)
            await clock.known()
            await lead(leadership, subscriptions, clock.leading, new_controller)

        yield run


@asynccontextmanager
async def _live_at(address: str | None) -> AsyncIterator[None]:
    """Serves the liveness check, unless the address is None. Raises OperatorError."""
    async with AsyncExitStack() as stack:
        if address is not None:
            try:
                await stack.enter_async_context(liveness_served(address))
            except RuntimeError as error:
                raise OperatorError(f"--health-address {address} cannot be used.") from error
        yield
