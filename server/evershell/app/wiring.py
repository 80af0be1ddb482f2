"""The composition root: wires the programs of the control plane."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import structlog
from psycopg.conninfo import conninfo_to_dict

from evershell.api import chain
from evershell.api.a2a.card import Endpoints
from evershell.api.a2a.encode import push_payload
from evershell.api.a2a.servicer import A2AServicer
from evershell.api.interceptors.admission import Admission
from evershell.api.interceptors.auditing import Auditing
from evershell.api.interceptors.authentication import Authentication
from evershell.api.interceptors.interceptor import Interceptor
from evershell.api.interceptors.rate_limits import Rate, RateLimits
from evershell.api.interceptors.request_log import RequestLog
from evershell.api.queueing_delay import DelayProbe, QueueingDelay
from evershell.api.runtime_servicer import RuntimeServicer
from evershell.api.server import AgentListener, Server
from evershell.api.webhook_payload import event_payload
from evershell.api.workspace_servicer import WorkspaceServicer
from evershell.app.pod_backends import pods_of, spec_for
from evershell.app.prices import model_without_price, read_prices
from evershell.app.settings import Settings
from evershell.app.signals import END_WAITS
from evershell.auth.agent_certificates import AgentCertificates
from evershell.auth.api_keys import ApiKeys, KeyUse
from evershell.auth.authenticator import Authenticator, HostBinding
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.sealing import SigningKeySealing
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.auth.signing_keys import read_signing_keys
from evershell.core.bounds import Bounds
from evershell.core.children import Children
from evershell.core.errors import OperatorError
from evershell.core.ports import Agents, Store
from evershell.core.runtime import Runtime
from evershell.core.webhook import PayloadForm
from evershell.fleet.agent_client import AgentClient
from evershell.fleet.controller import Controller
from evershell.fleet.leading import lead
from evershell.fleet.local.file_limit import FileLimit
from evershell.fleet.retention import Retention
from evershell.pod.crash_points import CrashPoints, kind_of, replaced
from evershell.store.audit import AuditQueue, store_audit_entries
from evershell.store.background import running
from evershell.store.connections import Pool, open_pool, pooler_watched
from evershell.store.keys import PostgresKeys
from evershell.store.leadership import Leadership, Term
from evershell.store.notifications import FleetSubscriptions, WorkspaceSubscriptions
from evershell.store.postgres_store import PostgresStore
from evershell.store.schema import await_schema
from evershell.store.service_clock import ServiceClock
from evershell.store.webhook_deliveries import WebhookDeliveries, webhooks_exist
from evershell.store.webhooks import PostgresWebhooks
from evershell.telemetry.metrics import MeasuredAgents, Metrics
from evershell.webhooks.deliverer import Deliverer
from evershell.webhooks.process import DeliveryProcess, report
from evershell.webhooks.sender import Sender

if TYPE_CHECKING:
    from evershell.telemetry.tracing import Tracing

# The connections of a process that delivers webhooks. Its statements are few.
_DELIVERY_POOL_SIZE = 3

log = structlog.get_logger()


@asynccontextmanager
async def control_plane(settings: Settings, metrics: Metrics) -> AsyncIterator[Server]:
    """A worker that does not listen yet. Raises OperatorError."""
    signing_keys, prices = _signing_keys(settings), read_prices(settings.prices_file)
    async with AsyncExitStack() as stack:
        pool, clock = await stack.enter_async_context(_database(settings, metrics))
        subscriptions = await stack.enter_async_context(
            WorkspaceSubscriptions(pool, settings.session_url, clock)
        )
        audit_queue = AuditQueue(partial(store_audit_entries, pool), metrics.audit_entries_lost)
        await stack.enter_async_context(running(audit_queue.run(), "audit"))
        delivery = DeliveryProcess(partial(webhooks_exist, pool), metrics.webhooks)

        def publish(workspace_id: str, *, watched: bool, reconcile: bool) -> None:
            subscriptions.publish(workspace_id, watched=watched, reconcile=reconcile)
            delivery.committed()

        postgres_store = PostgresStore(
            pool, clock, publish, metrics.committed, metrics.cancelled_tasks
        )
        # Before the queue stores its last entries: a cancellation in flight stores its own.
        stack.push_async_callback(postgres_store.drained)
        store: Store = postgres_store
        keys, pod_tokens = PostgresKeys(pool), PodTokens(signing_keys, clock.unix_seconds)
        key_use = KeyUse(keys.record_use)
        await stack.enter_async_context(running(key_use.run(), "key-use"))
        certificates = AgentCertificates(signing_keys) if settings.agent_tls else None
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
            agents_on_loopback=settings.pod_backend == "local",
            # Agents on other hosts need a name under which they find the workers.
            agents_elsewhere=bool(settings.runtime_service),
            prices=prices,
        )
        public = WorkspaceServicer(
            store,
            agents,
            subscriptions,
            clock,
            PostgresWebhooks(pool, delivery.created),
            SigningKeySealing(signing_keys),
            settings.webhook_networks,
            model_without_price(prices, settings.model, settings.agent_command),
        )
        if settings.crash_points_dir is not None:
            public, runtime = _with_crash_points(
                public, runtime, CrashPoints(settings.crash_points_dir)
            )
        probe = DelayProbe(QueueingDelay())
        request_log, admission = RequestLog(metrics), Admission(probe.delay, probe.arrived)
        interceptors = chain.interceptors(
            request_log,
            admission,
            _authentication(settings, keys, key_use, pod_tokens, clock),
            _rate_limits(settings),
            traced_calls,
            Auditing(audit_queue, clock.for_audit),
        )
        server = Server(
            public,
            _a2a(public, settings, keys),
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
            AgentListener(f"{settings.listen_host}:{settings.runtime_port}", tls) if tls else None,
            probe,
        )
        following = asyncio.create_task(
            _follow_database(server, subscriptions, pool, clock, settings), name="follow-database"
        )
        stack.callback(following.cancel)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(END_WAITS, subscriptions.end_waits)
        stack.callback(loop.remove_signal_handler, END_WAITS)
        await stack.enter_async_context(running(delivery.run(), "webhook-process"))
        yield server


def _a2a(public: WorkspaceServicer, settings: Settings, keys: PostgresKeys) -> A2AServicer:
    """The service of A2A, over the same store and agents as `public`."""
    endpoints = Endpoints(
        settings.public_rest_url.rstrip("/") or settings.rest_url,
        settings.public_grpc_address or f"{settings.edge_host}:{settings.grpc_port}",
        keys.find_org_slug,
    )
    return A2AServicer(
        public.store,
        public.agents,
        public.subscriptions,
        public.clock,
        endpoints,
        public.webhooks,
        public.sealing,
        public.allowed_networks,
        public.model_without_price,
    )


@asynccontextmanager
async def deliverer(settings: Settings) -> AsyncIterator[Deliverer]:
    """The deliverer of webhooks, with its connections. Raises OperatorError."""
    signing_keys = _signing_keys(settings)
    async with AsyncExitStack() as stack:
        behind_pooler = bool(settings.database_session_url)
        pool = await stack.enter_async_context(
            open_pool(
                settings.database_url,
                min_size=1,
                max_size=_DELIVERY_POOL_SIZE,
                behind_pooler=behind_pooler,
            )
        )
        clock = ServiceClock(pool)
        await stack.enter_async_context(running(clock.run(), "clock"))
        sender = await stack.enter_async_context(Sender(settings.webhook_networks))
        await await_schema(pool)
        await clock.known()
        yield Deliverer(
            WebhookDeliveries(pool, clock, uuid4().hex),
            sender,
            SigningKeySealing(signing_keys),
            {PayloadForm.EVENT: event_payload, PayloadForm.A2A: push_payload},
            clock,
            report,
            clock.utc_seconds,
        )


@asynccontextmanager
async def fleet(
    settings: Settings, metrics: Metrics
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A fleet controller. The yielded function runs it while this process leads.

    Raises OperatorError.
    """
    signing_keys = _signing_keys(settings)
    certificates = AgentCertificates(signing_keys) if settings.agent_tls else None
    bounds = Bounds(
        start_seconds=settings.pod_start_seconds,
        model_timeout_seconds=settings.model_timeout_seconds,
        tool_timeout_seconds=settings.tool_timeout_seconds,
        lease_seconds=settings.lease_seconds,
    )
    async with AsyncExitStack() as stack:
        pool, clock = await stack.enter_async_context(_database(settings, metrics))
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
        store = PostgresStore(
            pool, clock, subscriptions.publish, metrics.committed, metrics.cancelled_tasks
        )
        agents = MeasuredAgents(agent_client, metrics)
        if settings.crash_points_dir is not None:
            points = CrashPoints(settings.crash_points_dir)
            pods = points.armed(pods, end="pod_end", remove="file_removal")
            store = points.armed(store, remove_workspace="row_removal")
        kept = timedelta(days=settings.task_retention_days)
        minutes = settings.idle_suspend_minutes
        files_mb = settings.workspace_files_mb if settings.pod_backend == "local" else 0
        pods_dir = settings.state_dir / "pods"

        def new_controller(term: Term) -> Controller:
            leads, background = term.is_current, []
            if kept:
                removed = metrics.removed_tasks
                background.append(Retention(store, clock, kept, removed, leads=leads).run)
            if files_mb:
                measured = backlog.set_files if backlog else lambda *_: None
                limit = FileLimit(pods_dir, files_mb, store, clock, measured, leads=leads)
                background.append(limit.run)
            return Controller(
                store,
                pods,
                agents,
                bounds,
                run_id,
                clock,
                clock(),
                backlog,
                suspend_after=timedelta(minutes=minutes) if minutes else None,
                background=background,
                leads=leads,
            )

        leadership = Leadership(settings.session_url)

        async def run() -> None:
            await await_schema(pool)
            await clock.known()
            await lead(leadership, subscriptions, clock.leading, new_controller)

        yield run


@asynccontextmanager
async def _database(
    settings: Settings, metrics: Metrics
) -> AsyncIterator[tuple[Pool, ServiceClock]]:
    """The connections of a program, and the time of the service."""
    async with open_pool(
        settings.database_url,
        max_size=settings.pool_size,
        behind_pooler=bool(settings.database_session_url),
    ) as pool:
        metrics.watch_pool(pool.get_stats)
        clock = ServiceClock(pool)
        metrics.watch_clock(lambda: clock.machine_offset_seconds, lambda: clock.correction_seconds)
        async with running(clock.run(), "clock"):
            yield pool, clock


@asynccontextmanager
async def open_keys(database_url: str) -> AsyncIterator[PostgresKeys]:
    """The API keys, over a single connection, for a command.

    Raises psycopg.Error if the URL is not valid.
    """
    async with open_pool(database_url, min_size=1, max_size=1) as pool:
        yield PostgresKeys(pool)


def _signing_keys(settings: Settings) -> str:
    """The content of the file of the signing keys.

    Raises OperatorError if there is no valid one, or no valid URL of the database.
    """
    if not settings.database_url:
        raise OperatorError(
            "DATABASE_URL is not set. `evershell up` starts everything, a database included."
        )
    for name in ("database_url", "database_session_url"):
        try:
            conninfo_to_dict(getattr(settings, name))
        except psycopg.ProgrammingError:
            # The error can contain the password.
            message = f"{name.upper()} is not a valid URL of PostgreSQL."
            raise OperatorError(message) from None
    return read_signing_keys(settings.signing_key_path)


def _authentication(
    settings: Settings,
    keys: PostgresKeys,
    key_use: KeyUse,
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
        ApiKeys(keys.find_key, key_use.record, clock.unix_seconds), session_tokens
    )
    return Authentication(authenticator, pod_tokens, host_binding, agent_tls=settings.agent_tls)


def _tracing() -> tuple["Tracing", Interceptor]:
    """Raises OperatorError if OpenTelemetry is not installed."""
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
    if not settings.rate_limit:
        return None
    calls = settings.rate_limit_per_second
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
    """Reports the worker as healthy while it reaches its database, and the schema is current.

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
    """Watches the pooler. Without one, the future is never done."""
    if settings.database_session_url:
        return pooler_watched(settings.database_url)
    return nullcontext(asyncio.get_running_loop().create_future())
