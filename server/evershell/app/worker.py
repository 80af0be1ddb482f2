"""A worker (`serve`): builds its parts and runs it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from evershell.api import chain
from evershell.api.interceptors.admission import Admission
from evershell.api.interceptors.auditing import Auditing
from evershell.api.interceptors.authentication import Authentication
from evershell.api.interceptors.interceptor import Interceptor
from evershell.api.interceptors.rate_limits import Rate, RateLimits
from evershell.api.interceptors.request_log import RequestLog
from evershell.api.queueing_delay import DelayProbe, QueueingDelay
from evershell.api.runtime_servicer import RuntimeServicer
from evershell.api.server import AgentListener, Server
from evershell.api.workspace_servicer import WorkspaceServicer
from evershell.app.pod_backends import spec_for
from evershell.app.prices import model_without_price, read_prices
from evershell.app.program import (
    certificates_of,
    database,
    exempt_from_collection,
    log_and_metrics,
    serving_metrics,
    signing_keys_of,
)
from evershell.app.settings import AGENT_PORT_DISTANCE, Settings
from evershell.app.signals import END_WAITS, stop_signal
from evershell.auth.api_keys import ApiKeys
from evershell.auth.authenticator import Authenticator, HostBinding
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.sealing import SigningKeySealing
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core.children import Children
from evershell.core.errors import OperatorError
from evershell.core.event_feeds import EventFeeds
from evershell.core.ports import Agents, Store
from evershell.core.runtime import Runtime
from evershell.features import registry
from evershell.features.parts import WorkerParts, WorkerRoom
from evershell.fleet.agent_client import AgentClient
from evershell.pod import crash_points
from evershell.pod.crash_points import CrashPoints, kind_of, replaced
from evershell.store.audit import AuditQueue, store_audit_entries
from evershell.store.background import running
from evershell.store.connections import CALLS_NAME, pooler_watched
from evershell.store.keys import PostgresKeys
from evershell.store.notifications import WorkspaceSubscriptions
from evershell.store.pool import Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.schema import await_schema
from evershell.store.service_clock import ServiceClock
from evershell.telemetry import turns
from evershell.telemetry.metrics import MeasuredAgents, Metrics

if TYPE_CHECKING:
    from evershell.telemetry.tracing import Tracing


# The time limit of a drain. It is shorter than the 5 s after which the stack kills a stopping
# worker.
DRAIN_SECONDS = 4.0


async def serve(settings: Settings, port: int) -> None:
    """Runs one worker until SIGTERM or SIGINT, then drains it. Raises OperatorError."""
    metrics = log_and_metrics("serve", settings)
    async with turns.counted(), worker(settings, metrics, port) as server:
        with serving_metrics(metrics, settings):
            exempt_from_collection()
            await server.start(f"{settings.listen_host}:{port}", serving=False)
            await stop_signal()
            await server.drain(DRAIN_SECONDS)


@asynccontextmanager
async def worker(settings: Settings, metrics: Metrics, port: int) -> AsyncIterator[Server]:
    """A worker that will listen on this port. Raises OperatorError."""
    signing_keys, prices = signing_keys_of(settings), read_prices(settings.prices_file)
    async with AsyncExitStack() as stack:
        pool, clock = await stack.enter_async_context(database(settings, metrics, CALLS_NAME))
        subscriptions = await stack.enter_async_context(
            WorkspaceSubscriptions(pool, settings.session_url, clock)
        )
        audit_queue = AuditQueue(
            partial(store_audit_entries, pool.others), metrics.audit_entries_lost
        )
        stack.push_async_callback(audit_queue.drained)
        rooms: list[WorkerRoom] = []

        def publish(workspace_id: str, *, watched: bool, reconcile: bool) -> None:
            subscriptions.publish(workspace_id, watched=watched, reconcile=reconcile)
            for room in rooms:
                if room.committed is not None:
                    room.committed()

        postgres_store = PostgresStore(
            pool, clock, publish, metrics.committed, metrics.cancelled_tasks
        )
        # Runs before the audit queue stores its last entries, because a cancellation in progress
        # still adds an entry.
        stack.push_async_callback(postgres_store.drained)
        store: Store = postgres_store
        keys, pod_tokens = PostgresKeys(pool), PodTokens(signing_keys, clock.unix_seconds)
        stack.push_async_callback(keys.drained)
        certificates = certificates_of(settings, signing_keys)
        tls = certificates.control_plane() if certificates else None
        agent_client = await stack.enter_async_context(
            aclosing(AgentClient(pod_tokens, clock, tls))
        )
        agents: Agents = MeasuredAgents(agent_client, metrics)
        traced_calls: Interceptor | None = None
        if settings.otel_exporter_otlp_endpoint:
            tracing, traced_calls = _tracing()
            stack.push_async_callback(asyncio.to_thread, tracing.close)
            store, agents = tracing.traced(store, "store"), tracing.traced(agents, "agent")
        runtime = Runtime(
            store,
            clock,
            settings.lease_seconds,
            agents_on_loopback=not settings.on_kubernetes,
            # Agents on other hosts find the workers under this name.
            agents_elsewhere=bool(settings.runtime_service),
            prices=prices,
        )
        public = WorkspaceServicer(  # type: ignore[abstract] # rooms implement the other methods
            store,
            agents,
            subscriptions,
            EventFeeds(store, subscriptions, clock),
            clock,
            model_without_price(prices, settings.model, settings.agent_command),
        )
        if crash_points.FOLDER:
            points = CrashPoints(Path(crash_points.FOLDER))
            public, runtime = _with_crash_points(public, runtime, points)
        rooms += _rooms(
            WorkerParts(
                settings=settings,
                registry=metrics.registry,
                pool=pool,
                clock=clock,
                store=public.store,
                agents=public.agents,
                subscriptions=subscriptions,
                feeds=public.feeds,
                sealing=SigningKeySealing(signing_keys),
                find_org_slug=keys.find_org_slug,
                rest_url=settings.public_rest_url.rstrip("/") or settings.rest_url,
                grpc_address=settings.public_grpc_address
                or f"{settings.edge_host}:{settings.grpc_port}",
                model_without_price=public.model_without_price,
            )
        )
        probe = DelayProbe(QueueingDelay())
        request_log, admission = RequestLog(metrics), Admission(probe.delay, probe.arrived)
        interceptors = chain.interceptors(
            request_log,
            admission,
            _authentication(settings, keys, pod_tokens, clock),
            _rate_limits(settings),
            traced_calls,
            Auditing(audit_queue, clock.for_audit),
        )
        server = Server(
            public,
            RuntimeServicer(
                runtime,
                spec_for(settings, pod_tokens, certificates),
                Children(store, agents, subscriptions, clock),
                public.model_without_price,
            ),
            request_log,
            admission,
            interceptors,
            subscriptions.drain,
            AgentListener(f"{settings.listen_host}:{port + AGENT_PORT_DISTANCE}", tls)
            if tls
            else None,
            probe,
            [room.service for room in rooms],
        )
        following = asyncio.create_task(
            _follow_database(server, subscriptions, pool, clock, settings), name="follow-database"
        )
        stack.callback(following.cancel)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(END_WAITS, subscriptions.end_waits)
        stack.callback(loop.remove_signal_handler, END_WAITS)
        for room in rooms:
            if room.run is not None:
                await stack.enter_async_context(running(room.run(), room.name))
        yield server


def _rooms(parts: WorkerParts) -> Iterator[WorkerRoom]:
    """The rooms (features/), in the order of features/registry.py."""
    for in_worker in registry.in_worker():
        room = in_worker(parts)
        if room.task_webhooks is not None:
            parts = replace(parts, task_webhooks=room.task_webhooks)
        yield room


def _authentication(
    settings: Settings,
    keys: PostgresKeys,
    pod_tokens: PodTokens,
    clock: ServiceClock,
) -> Authentication:
    session_tokens = SessionTokens(
        JwkSet(settings.jwks_source),
        settings.jwt_issuer,
        settings.jwt_audience,
        clock.utc_seconds,
    )
    host_binding = (
        HostBinding(settings.public_domain, keys.find_org_slug) if settings.public_domain else None
    )
    authenticator = Authenticator(
        ApiKeys(keys.find_key, keys.record_use, clock.unix_seconds), session_tokens
    )
    return Authentication(authenticator, pod_tokens, host_binding, agent_tls=settings.agent_tls)


def _tracing() -> tuple["Tracing", Interceptor]:
    """Sets up tracing. Raises OperatorError if OpenTelemetry is not installed."""
    try:
        # Imported only if traces are exported, because OpenTelemetry uses much memory.
        from evershell.api.interceptors.traced_calls import TracedCalls
        from evershell.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise OperatorError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed. Install the "
            "extra `otel` of evershell."
        ) from error
    tracing = Tracing("control-plane")
    return tracing, TracedCalls(tracing)


def _rate_limits(settings: Settings) -> RateLimits | None:
    calls = settings.rate_limit
    if not calls:
        return None
    cancellations = calls // 2
    return RateLimits(Rate(calls, 2 * calls), Rate(cancellations, 2 * cancellations))


def _with_crash_points(
    public: WorkspaceServicer, runtime: Runtime, points: CrashPoints
) -> tuple[WorkspaceServicer, Runtime]:
    armed = replace(
        public,
        store=points.armed(public.store, record_cancellation="intent", record_answer="answer"),
        agents=points.armed(public.agents, cancel_task="signal", start_task="delivery"),
    )
    return (
        replaced(armed, CancelTask=points.around_reply("reply", armed.CancelTask)),
        points.armed(
            runtime, commit_events=lambda _agent, _id, events, _: f"{kind_of(events)}_transaction"
        ),
    )


async def _follow_database(
    server: Server,
    subscriptions: WorkspaceSubscriptions,
    pool: Pool,
    clock: ServiceClock,
    settings: Settings,
) -> None:
    """Reports the worker as healthy while it reaches its database and the schema is current.

    Load balancers send no calls to a worker that is not healthy.
    """
    while True:
        await subscriptions.listening()
        async with _pooler(settings) as pooler_lost:
            await await_schema(pool)
            await clock.known()
            await server.set_serving(serving=True)
            waits = [asyncio.ensure_future(subscriptions.disconnected()), pooler_lost]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waits[0].cancel()
            await server.set_serving(serving=False)


def _pooler(settings: Settings) -> AbstractAsyncContextManager["asyncio.Future[None]"]:
    """Yields a future that is done when the pooler closes its connection to this worker.

    If there is no pooler, the future is never done.
    """
    if settings.database_session_url:
        return pooler_watched(settings.database_url)
    return nullcontext(asyncio.get_running_loop().create_future())
