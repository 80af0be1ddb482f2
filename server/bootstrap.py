"""The composition root: all wiring, in one visible place. Nothing is built at import."""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from server import logs
from server.api.interceptors import Authentication, Interceptor
from server.api.rate_limits import Rate, RateLimits
from server.api.runtime_servicer import RuntimeServicer
from server.api.server import Server
from server.api.workspace_servicer import WorkspaceServicer
from server.auth.api_keys import ApiKeys
from server.auth.authenticator import Authenticator, HostBinding
from server.auth.pod_tokens import PodTokens, public_key
from server.auth.sessions import JwkSet, Sessions
from server.config import Settings
from server.core.bounds import Bounds
from server.core.runtime import AgentIdentity, Runtime
from server.crash_points import CrashPoints, kind_of, replaced
from server.fleet import processes
from server.fleet.agent_client import AgentClient
from server.fleet.controller import Controller
from server.fleet.local_pods import LocalPods, PodSpec
from server.metrics import MeasuredAgents, Metrics, served
from server.pod_process import adopt
from server.store.keys import PostgresKeys
from server.store.leadership import Leadership
from server.store.pool import open_pool
from server.store.postgres_store import PostgresStore
from server.store.wakeups import PostgresWakeups

# What a drain may take: the calls in hand are short, and streams are told. Less than the stack
# gives a worker to stop (5 s).
DRAIN_SECONDS = 4.0
# Has a worker end its waits and streams, whose callers then come again through another edge. A
# process that does not know it yet ignores it.
END_WAITS = signal.SIGURG


class NotSetUpError(Exception):
    """A program cannot run as it was started; the message says what it lacks."""


def now() -> datetime:
    """The clock of every program."""
    return datetime.now(UTC)


@asynccontextmanager
async def control_plane(settings: Settings, metrics: Metrics) -> AsyncIterator[Server]:
    """One worker, all of it but its address. Raises NotSetUpError."""
    signing_key = _signing_key(settings)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            open_pool(settings.database_url, max_size=settings.pool_size)
        )
        metrics.watch_pool(pool.get_stats)
        wakeups = await stack.enter_async_context(PostgresWakeups(pool, settings.database_url))
        store = PostgresStore(pool, wakeups.announce, metrics.committed)
        keys = PostgresKeys(pool)
        pod_tokens = PodTokens(signing_key)
        agents = MeasuredAgents(
            await stack.enter_async_context(aclosing(AgentClient(pod_tokens))), metrics
        )
        sessions = Sessions(
            JwkSet(settings.jwks_source), settings.jwt_issuer, settings.jwt_audience
        )
        authentication = Authentication(
            Authenticator(ApiKeys(keys.find_key), sessions),
            pod_tokens,
            HostBinding(settings.public_domain, keys.find_org_slug)
            if settings.public_domain
            else None,
        )
        traced_calls: Interceptor | None = None
        if settings.otel_exporter_otlp_endpoint:
            # What is not configured costs nothing, not even memory.
            from server.api.traced_calls import TracedCalls
            from server.tracing import Tracing

            tracing = Tracing("control-plane")
            stack.push_async_callback(asyncio.to_thread, tracing.close)
            traced_calls = TracedCalls(tracing)
            store, agents = tracing.traced(store, "store"), tracing.traced(agents, "agent")
        runtime = Runtime(store, now, settings.lease_seconds)
        limits = _rate_limits(settings)
        public = WorkspaceServicer(store, agents, wakeups, now)
        if settings.crash_points_dir is not None:
            points = CrashPoints(settings.crash_points_dir)
            runtime = points.armed(
                runtime,
                commit_events=lambda _agent, _task_id, events: f"{kind_of(events)}_transaction",
            )
            public = _with_crash_points(public, points)
        server = Server(
            public,
            RuntimeServicer(runtime),
            authentication,
            wakeups.drain,
            limits,
            metrics,
            traced_calls,
        )
        following = asyncio.create_task(_follow_database(server, wakeups), name="follow-database")
        stack.callback(following.cancel)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(END_WAITS, wakeups.end_waits)
        stack.callback(loop.remove_signal_handler, END_WAITS)
        yield server


def _with_crash_points(public: WorkspaceServicer, points: CrashPoints) -> WorkspaceServicer:
    store = points.armed(public.store, record_cancellation="intent")
    agents = points.armed(public.agents, cancel_task="signal")
    armed = replace(public, store=store, agents=agents)
    return replaced(armed, CancelTask=points.around_reply("reply", armed.CancelTask))


def _rate_limits(settings: Settings) -> RateLimits | None:
    if not settings.rate_limit:
        return None
    return RateLimits(
        Rate(settings.rate_limit_per_second, settings.rate_limit_burst),
        Rate(settings.cancel_limit_per_second, settings.cancel_limit_burst),
    )


async def _follow_database(server: Server, wakeups: PostgresWakeups) -> None:
    """The worker's health is its database's: whoever balances load over several is not to send
    calls that can only fail.
    """
    while True:
        await wakeups.listening()
        await server.set_serving(serving=True)
        await wakeups.disconnected()
        await server.set_serving(serving=False)


@asynccontextmanager
async def open_keys(database_url: str) -> AsyncIterator[PostgresKeys]:
    """The API keys, for a command, through one connection. Raises psycopg.Error when the URL is not
    valid.
    """
    async with open_pool(database_url, min_size=1, max_size=1) as pool:
        yield PostgresKeys(pool)


async def serve(settings: Settings, port: int) -> None:
    """Runs one control-plane worker until SIGTERM or SIGINT, then drains it. Raises NotSetUpError."""
    metrics = _log_and_metrics("serve", settings)
    async with control_plane(settings, metrics) as server:
        with _shown(metrics, settings.metrics_port):
            await server.start(f"{settings.listen_host}:{port}", serving=False)
            await stop_signal()
            await server.drain(DRAIN_SECONDS)


async def fleet(settings: Settings) -> None:
    """Runs one fleet controller until SIGTERM or SIGINT: it leads when no other does. Pods outlive
    it. Raises NotSetUpError.
    """
    metrics = _log_and_metrics("fleet", settings)
    leading = asyncio.create_task(_lead(settings, metrics))
    stopping = asyncio.create_task(stop_signal())
    with _shown(metrics, settings.metrics_port):
        await asyncio.wait((leading, stopping), return_when=asyncio.FIRST_COMPLETED)
    if leading.done():
        # It only ever ends by a defect, or for lack of its key: whoever started this process is to
        # see it fail.
        leading.result()
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)


def _log_and_metrics(program: str, settings: Settings) -> Metrics:
    log, metrics = logs.configure(program, settings.log_level), Metrics()
    metrics.watch_log(lambda: log.lost_lines)
    return metrics


@contextmanager
def _shown(metrics: Metrics, port: int) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(served(metrics, port))
        except OSError as error:
            message = f"Metrics cannot be served on port {port} ({error.strerror}). Set METRICS_PORT to another one."
            raise NotSetUpError(message) from error
        yield


async def _lead(settings: Settings, metrics: Metrics) -> None:
    signing_key = _signing_key(settings)
    leadership = Leadership(settings.database_url)
    pod_tokens, agent_key = PodTokens(signing_key), public_key(signing_key)

    def spec_for(agent: AgentIdentity) -> PodSpec:
        return PodSpec(
            workspace_id=agent.workspace_id,
            epoch=agent.epoch,
            runtime_addresses=settings.worker_addresses,
            runtime_token=pod_tokens.runtime_token(agent),
            control_plane_public_key=agent_key,
            model=settings.model,
            openai_base_url=settings.openai_base_url,
            openai_api_key=settings.openai_api_key.get_secret_value(),
            model_timeout_seconds=settings.model_timeout_seconds,
            tool_timeout_seconds=settings.tool_timeout_seconds,
            crash_points_dir=str(settings.crash_points_dir or ""),
        )

    adopt()
    pods = LocalPods(settings.state_dir, spec_for, processes.leftovers)
    agents = AgentClient(pod_tokens)
    async with (
        open_pool(settings.database_url, max_size=settings.pool_size) as pool,
        PostgresWakeups(pool, settings.database_url) as wakeups,
        aclosing(agents),
    ):
        metrics.watch_pool(pool.get_stats)
        store = PostgresStore(pool, wakeups.announce, metrics.committed)
        bounds = Bounds(
            model_timeout_seconds=settings.model_timeout_seconds,
            tool_timeout_seconds=settings.tool_timeout_seconds,
            lease_seconds=settings.lease_seconds,
        )
        backlog = metrics.backlog(now) if settings.metrics_port else None
        measured = MeasuredAgents(agents, metrics)
        while True:
            async with leadership.acquired() as lost, wakeups.subscribe_all() as changes:
                controller = Controller(
                    store, pods, measured, bounds, settings.stack_id, now, now(), backlog
                )
                await _until(lost, controller.run(changes))


def _signing_key(settings: Settings) -> str:
    """The control plane's key, for a program that has a database to go with it."""
    if not settings.database_url:
        raise NotSetUpError(
            "DATABASE_URL is not set. `python -m server up` starts everything, a database included."
        )
    try:
        return settings.signing_key_path.read_text()
    except OSError as error:
        message = f"{settings.signing_key_path} cannot be read ({error.strerror}). `python -m server up` makes it."
        raise NotSetUpError(message) from error


async def _until(lost: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Runs the work until the event is set. Raises what the work raises."""
    working, losing = asyncio.create_task(work), asyncio.create_task(lost.wait())
    try:
        await asyncio.wait((working, losing), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, losing):
            task.cancel()
        await asyncio.gather(working, losing, return_exceptions=True)


async def stop_signal() -> None:
    """Returns at the first SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
