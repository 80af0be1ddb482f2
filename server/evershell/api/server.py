"""The gRPC server of one control-plane worker."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import cast

import grpc
from evershell.agent.v1 import runtime_service_pb2_grpc
from evershell.workspace.v1 import workspace_service_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from evershell.api import reflection
from evershell.api.handlers import Handlers, Methods, Service
from evershell.api.health import LIVENESS, Health
from evershell.api.interceptors.admission import Admission
from evershell.api.interceptors.interceptor import Interceptor
from evershell.api.interceptors.reading import MAX_MESSAGE_BYTES
from evershell.api.interceptors.request_log import RequestLog
from evershell.api.method_options import PUBLIC_SERVICES
from evershell.api.queueing_delay import DelayProbe
from evershell.api.runtime_servicer import RuntimeServicer
from evershell.api.workspace_servicer import WorkspaceServicer
from evershell.pod.tls import TlsIdentity, listen
from evershell.store.background import running

_MAX_METADATA_BYTES = 64 * 1024
OPTIONS: Sequence[tuple[str, int]] = (
    # Tokens may be long, and trailers carry the envelope of an error. By default gRPC rejects some
    # calls with metadata above 8 KiB, at random.
    ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Limits how much of a call gRPC buffers before the request is read. The bandwidth probe
    # (bdp_probe) would raise the limit to megabytes on a fast connection.
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    ("grpc.http2.bdp_probe", 0),
    # gRPC itself resets a call that the worker has not begun after this many seconds. Most callers
    # have gone by then. A refusal by the worker would take several times as much processor time.
    ("grpc.server_max_unrequested_time_in_server", 3),
    # Makes a second worker on the same port fail instead of sharing the port.
    ("grpc.so_reuseport", 0),
    # Detects a peer that has vanished, so that its streams end.
    ("grpc.keepalive_time_ms", 60_000),
    # The edge pings every second, to detect a frozen worker at once. By default gRPC closes a
    # connection with so many pings.
    ("grpc.http2.max_ping_strikes", 0),
)
# The name under which the health service answers for the whole server.
_EVERY_SERVICE = ""
# A draining server serves new calls until every client that checks health regularly has seen
# NOT_SERVING and no call has arrived for _QUIET_SECONDS, but for at most _ARRIVALS_SECONDS.
_QUIET_SECONDS = 0.1
_ARRIVALS_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class AgentListener:
    """The listener for agents with TLS: its host:port, and the control plane's certificate."""

    address: str
    identity: TlsIdentity


class Server:
    """Listens from `start` until `drain` has returned."""

    def __init__(
        self,
        public: WorkspaceServicer,
        internal: RuntimeServicer,
        request_log: RequestLog,
        admission: Admission,
        interceptors: Sequence[Interceptor],
        drain_waits: Callable[[], None] = lambda: None,
        agent_listener: AgentListener | None = None,
        probe: DelayProbe | None = None,
        services: Sequence[Service] = (),
    ) -> None:
        """`interceptors` comes from chain.py, and contains `request_log` and `admission`.

        `drain_waits` makes every call that waits, now or later, answer at once. The server also
        listens at `agent_listener`, if it is given. `probe` measures how long calls wait.
        `services` are the gRPC services of the rooms (features/).
        """
        self._agent_listener = agent_listener
        # The port of the agents' listener.
        self.agent_port: int | None = None
        self._drain_waits = drain_waits
        self._probe = probe
        self._probing = AsyncExitStack()
        self._request_log = request_log
        self._admission = admission
        self._health = Health()
        methods = Methods()
        registry = cast(grpc.aio.Server, methods)
        workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(public, registry)
        runtime_service_pb2_grpc.add_RuntimeServiceServicer_to_server(internal, registry)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, registry)
        for each in services:
            each.add(each.servicer, registry)
        forms = {each.name: each.form for each in services if each.form is not None}
        served = {path.split("/")[1] for path in methods}
        self._public = tuple(name for name in PUBLIC_SERVICES if name in served)
        self._server = grpc.aio.server(options=OPTIONS)
        self._server.add_generic_rpc_handlers((Handlers(methods, interceptors, forms),))
        health_service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        if probe is not None:
            self._server.add_generic_rpc_handlers((probe,))
        reflection.add_to_server((*self._public, health_service), self._server)

    async def start(self, address: str, *, serving: bool = True) -> int:
        """Listens on `address` (host:port) and returns the port.

        For port 0 the system chooses one. Raises RuntimeError if the port is in use.
        """
        port = listen(self._server, address, None)
        if self._agent_listener is not None:
            self.agent_port = listen(
                self._server, self._agent_listener.address, self._agent_listener.identity
            )
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.set_serving(serving=serving)
        await self._server.start()
        if self._probe is not None:
            host = address.rpartition(":")[0]
            measuring = self._probe.run(f"{host}:{port}")
            await self._probing.enter_async_context(running(measuring, "queueing-delay"))
        return port

    async def set_serving(self, *, serving: bool) -> None:
        """Sets what the health service answers, for the server and for the public services.

        While the server is not serving, public calls fail with `unavailable`.
        """
        self._admission.is_ready = serving
        serving_status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in (_EVERY_SERVICE, *self._public):
            await self._health.set(name, serving_status)

    async def drain(self, grace_seconds: float) -> None:
        """Stops the server within the grace period.

        Reports NOT_SERVING, ends waits and streams, serves the calls that still arrive, then aborts
        the calls that are left.
        """
        until = time.monotonic() + grace_seconds
        await self._probing.aclose()
        await self._health.enter_graceful_shutdown()
        self._drain_waits()
        await self._serve_arrivals(min(_ARRIVALS_SECONDS, grace_seconds))
        await self._server.stop(max(0.0, until - time.monotonic()))

    async def _serve_arrivals(self, limit_seconds: float) -> None:
        """Serves new calls until clients have stopped sending them.

        When gRPC stops, it aborts calls that it has received but not started, without a rich
        status.
        """
        # Counts checks instead of seconds, because the process may be frozen in between.
        for _ in range(int(limit_seconds / _QUIET_SECONDS)):
            arrived = self._request_log.arrived_calls
            await asyncio.sleep(_QUIET_SECONDS)
            if self._request_log.arrived_calls == arrived and self._health.is_drain_known():
                return
