"""The gRPC server of one control-plane worker."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from evershell.agent.v1 import runtime_service_pb2_grpc
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from server.api import reflection
from server.api.interceptors import Authentication, Deadline, Errors, Interceptor, RequestLog
from server.api.measuring import Measuring
from server.api.rate_limits import RateLimits
from server.api.reading import MAX_MESSAGE_BYTES, Reading
from server.api.runtime_servicer import RuntimeServicer
from server.api.workspace_servicer import WorkspaceServicer
from server.metrics import Metrics

_MAX_METADATA_BYTES = 64 * 1024
OPTIONS: Sequence[tuple[str, int]] = (
    # Metadata above 8 KiB would be refused at random: tokens may be long, and an error's envelope
    # travels in the trailers.
    ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Limits what gRPC buffers of a call before its request is read. The probe would raise it to
    # megabytes on a fast connection.
    ("grpc.http2.lookahead_bytes", 64 * 1024),
    ("grpc.http2.bdp_probe", 0),
    # A second worker on the same port would share it silently; each has its own.
    ("grpc.so_reuseport", 0),
    # A peer that vanished is noticed, so that its streams end.
    ("grpc.keepalive_time_ms", 60_000),
    # The edge pings each second, so that a worker which is frozen is noticed at once; gRPC would
    # take that for an attack.
    ("grpc.http2.max_ping_strikes", 0),
)
# A draining server takes calls until all who ask for its health have learned of it, and none has
# come for so long ...
_QUIET_SECONDS = 0.1
# ... or until this is over ...
_ARRIVALS_SECONDS = 2.0
# ... where who has not asked for so long does not ask any more: the edge does so every second.
_HEALTH_ASKED_SECONDS = 1.5


class Server:
    """Listens on one address, from `start` until `drain` has returned."""

    def __init__(
        self,
        public: WorkspaceServicer,
        internal: RuntimeServicer,
        authentication: Authentication,
        end_waits: Callable[[], None] = lambda: None,
        rate_limits: RateLimits | None = None,
        metrics: Metrics | None = None,
        traced_calls: Interceptor | None = None,
    ) -> None:
        """`end_waits` has every call that waits for something answer with what there is."""
        self._end_waits = end_waits
        self._log = RequestLog()
        interceptors = [
            self._log,  # outermost, so that every call has an id and a line in the log
            *(
                [traced_calls] if traced_calls is not None else []
            ),  # inside the log, which names the trace; around what takes time
            Measuring(metrics or Metrics()),  # as near to the outside as the slug is known
            Errors(),  # inside the log, which shows the slug; around all that may fail
            Deadline(),  # before anything that waits for others
            authentication,  # before anything of the request is looked at; the servicers may then ask who calls
            *(
                [rate_limits] if rate_limits is not None else []
            ),  # once it is known whose call it is, and before it costs anything
            Reading(),  # innermost: no request is read before all the others have admitted the call
        ]
        self._server = grpc.aio.server(interceptors=interceptors, options=OPTIONS)
        workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(public, self._server)
        runtime_service_pb2_grpc.add_RuntimeServiceServicer_to_server(internal, self._server)
        self._health = _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        public_services = (
            workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        )
        reflection.add_to_server(public_services, self._server)

    async def start(self, address: str, *, serving: bool = True) -> int:
        """Serves on host:port and returns the port (the system chooses for 0). Raises RuntimeError
        when it is taken.
        """
        port = self._server.add_insecure_port(address)
        await self.set_serving(serving=serving)
        await self._server.start()
        return port

    async def set_serving(self, *, serving: bool) -> None:
        """What the health service answers from here on."""
        serving_status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        await self._health.set("", serving_status)

    async def drain(self, grace_seconds: float) -> None:
        """Says NOT_SERVING, takes the calls that are on their way, has waits and streams answer,
        and ends what is left.

        All of that within the grace.
        """
        until = time.monotonic() + grace_seconds
        await self._health.enter_graceful_shutdown()
        self._end_waits()
        await self._take_arrivals(min(_ARRIVALS_SECONDS, grace_seconds))
        await self._server.stop(max(0.0, until - time.monotonic()))

    async def _take_arrivals(self, limit_seconds: float) -> None:
        """What gRPC has received but not handed over yet when it stops, it breaks off with a status
        that says nothing.
        """
        # Counted in looks: a process that was frozen meanwhile has not looked.
        for _ in range(int(limit_seconds / _QUIET_SECONDS)):
            taken = self._log.taken
            await asyncio.sleep(_QUIET_SECONDS)
            if self._log.taken == taken and self._health.is_known():
                return


class _Health(health.aio.HealthServicer):  # type: ignore[misc] # it comes without types
    """Remembers who asks, so that it can say whether they know of a drain: until then they send
    calls.
    """

    def __init__(self) -> None:
        super().__init__()
        # Peer → when it last asked, of those that have not learned of the drain.
        self._unaware: dict[str, float] = {}
        self._is_draining = False

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """See the protocol of gRPC's health service."""
        if self._is_draining:
            self._unaware.pop(context.peer(), None)
        else:
            self._forget()
            self._unaware[context.peer()] = time.monotonic()
        response: health_pb2.HealthCheckResponse = await super().Check(request, context)
        return response

    async def List(
        self, request: health_pb2.HealthListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthListResponse:
        """See the protocol of gRPC's health service. The library does not implement this method."""
        found = {
            name: health_pb2.HealthCheckResponse(status=known)
            for name, known in self._server_status.items()
        }
        return health_pb2.HealthListResponse(statuses=found)

    async def enter_graceful_shutdown(self) -> None:
        """NOT_SERVING, whatever is set later."""
        self._is_draining = True
        await super().enter_graceful_shutdown()

    def is_known(self) -> bool:
        """Whether all that ask regularly have been told of the drain."""
        self._forget()
        return not self._unaware

    def _forget(self) -> None:
        since = time.monotonic() - _HEALTH_ASKED_SECONDS
        self._unaware = {peer: asked for peer, asked in self._unaware.items() if asked > since}
