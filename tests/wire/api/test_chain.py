"""The handlers of the server: composed once, in the order of the list, for every method."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1 import workspace_service_pb2
from grpc_health.v1 import health_pb2

from evershell.api import call as calls
from evershell.api import chain
from evershell.api.call import Call
from evershell.api.handlers import Handlers
from evershell.api.interceptors.auditing import Auditing
from evershell.api.interceptors.authentication import Authentication
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.api.interceptors.rate_limits import Rate, RateLimits
from evershell.api.interceptors.request_log import RequestLog
from evershell.auth.api_keys import ApiKeys
from evershell.auth.authenticator import Authenticator
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core import deadline, trace
from evershell.telemetry.metrics import Metrics
from tests.support.fakes import FakeAuditQueue
from tests.support.waiting import eventually_async
from tests.support.world import NOW, World
from tests.wire.api.running import (
    INTERNAL,
    POD_TOKENS,
    PUBLIC,
    Failed,
    agent_bearer,
    bearer,
    find_key,
    running,
)

SERVICES = (
    workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"],
    runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)
PATHS = [
    f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods
]


class Probe(Interceptor):
    """Records the methods that it wraps and the calls that pass."""

    def __init__(self, name: str = "probe", passes: list[str] | None = None) -> None:
        self._name = name
        self._passes = passes if passes is not None else []
        self.wrapped: Counter[str] = Counter()
        self.calls: list[Call] = []
        # The trace and the bound of a wait, as the core sees them.
        self.seen: list[tuple[str, float]] = []

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        self.wrapped[method.path] += 1

        async def probed(call: Call) -> Any:
            assert calls.current() is call
            self.calls.append(call)
            self.seen.append((trace.current_id(), deadline.bounded(3600.0)))
            self._passes.append(f"{self._name} in")
            try:
                return await proceed(call)
            finally:
                self._passes.append(f"{self._name} out")

        return probed


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """An interceptor at the end of the list, just outside `Reading`."""
    probe = Probe()
    whole = chain.interceptors

    def with_probe(*args: Any, **more: Any) -> list[Interceptor]:
        *others, reading = whole(*args, **more)
        return [*others, probe, reading]

    monkeypatch.setattr(chain, "interceptors", with_probe)
    return probe


async def respond(_request: object, _context: object) -> str:
    return "reply"


def details_of(path: str) -> grpc.HandlerCallDetails:
    details: Any = SimpleNamespace(method=path, invocation_metadata=())
    return cast(grpc.HandlerCallDetails, details)


def authentication() -> Authentication:
    authenticator = Authenticator(
        ApiKeys(find_key), SessionTokens(JwkSet("/nonexistent"), "issuer", "audience")
    )
    return Authentication(authenticator, POD_TOKENS, None)


def test_the_list_is_in_its_documented_order() -> None:
    listed = chain.interceptors(
        RequestLog(Metrics()),
        authentication(),
        RateLimits(Rate(1, 1), Rate(1, 1)),
        Probe(),
        Auditing(FakeAuditQueue(), lambda: NOW),
    )
    assert [type(each).__name__ for each in listed] == [
        "RequestLog",
        "Probe",
        "Auditing",
        "Errors",
        "Authentication",
        "RateLimits",
        "Reading",
    ]


async def test_calls_pass_the_interceptors_in_the_order_of_the_list() -> None:
    passes: list[str] = []
    methods: dict[str, Any] = {"/s/M": grpc.unary_unary_rpc_method_handler(respond, bytes)}
    handlers = Handlers(methods, [Probe(name, passes) for name in "abc"])
    handler: Any = handlers.service(details_of("/s/M"))

    class Context:
        def invocation_metadata(self) -> tuple[()]:
            return ()

        def time_remaining(self) -> None:
            return None

    assert await handler.stream_unary(None, Context()) == "reply"
    assert passes == ["a in", "b in", "c in", "c out", "b out", "a out"]


async def test_every_method_of_every_service_passes_every_interceptor(
    world: World, probe: Probe
) -> None:
    idle = await world.add()
    async with running(world) as server:
        assert dict(probe.wrapped) == dict.fromkeys(PATHS, 1)
        for path in PATHS:
            call: Any = server.channel.unary_stream(path)
            metadata = agent_bearer(idle.id) if path.startswith(INTERNAL) else bearer()
            if path == INTERNAL + "Bootstrap":
                metadata = bearer(POD_TOKENS.bootstrap_token(idle.id, idle.epoch))
            replies = call(b"\xff", metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await anext(aiter(replies))
            # `Reading` refuses the request, which is not a message.
            assert Failed.of(raised.value).slug == "validation_error", path
        assert len(probe.calls) == len(PATHS)
        # Nothing was composed again for these calls.
        assert dict(probe.wrapped) == dict.fromkeys(PATHS, 1)


def test_a_method_has_the_same_handler_for_each_call() -> None:
    handlers = Handlers({"/s/M": grpc.unary_unary_rpc_method_handler(respond, bytes)}, [Probe()])
    found = handlers.service(details_of("/s/M"))
    assert found is not None and handlers.service(details_of("/s/M")) is found
    # gRPC must not read the request before the interceptors have admitted the call.
    assert found.request_streaming and found.request_deserializer is None


def test_a_server_with_a_service_that_has_no_kind_of_credential_cannot_be_made() -> None:
    methods: dict[str, Any] = {"/s/M": grpc.unary_unary_rpc_method_handler(respond, bytes)}
    with pytest.raises(KeyError, match="'s'"):
        Handlers(methods, [authentication()])


async def test_a_call_without_a_trace_or_a_deadline_has_neither(world: World, probe: Probe) -> None:
    """A call that has them leaves nothing behind for the next one."""
    traced = bearer(traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    async with running(world) as server:
        listing: Any = server.channel.unary_unary(f"{PUBLIC}ListWorkspaces")
        for metadata, timeout in ((traced, 60), (bearer(), None)):
            await listing(b"", metadata=metadata, timeout=timeout)
    (trace_id, bounded), plain = probe.seen
    assert trace_id == "a" * 32 and bounded < 60
    assert plain == ("", 3600.0)
    assert [call.trace_id for call in probe.calls] == ["a" * 32, ""]


async def test_concurrent_calls_have_facts_of_their_own(world: World, probe: Probe) -> None:
    async with running(world) as server:
        listing: Any = server.channel.unary_unary(f"{PUBLIC}ListWorkspaces")
        pending = [
            listing(b"", metadata=bearer(x_request_id=f"req_{number}")) for number in range(20)
        ]
        for number, call in enumerate(pending):
            await call
            assert dict(await call.trailing_metadata())["x-request-id"] == f"req_{number}"
    assert {call.request_id for call in probe.calls} == {f"req_{number}" for number in range(20)}


async def test_an_unknown_method_passes_no_interceptor(world: World, probe: Probe) -> None:
    async with running(world) as server:
        for path in (f"{PUBLIC}Nope", "/nope.Nope/Nope", "/nope"):
            seen = await server.raw(path, bearer())
            assert isinstance(seen, Failed) and seen.code is grpc.StatusCode.UNIMPLEMENTED
    assert probe.calls == []


async def test_a_stream_of_health_passes_the_interceptors(world: World, probe: Probe) -> None:
    """Its method writes its messages itself."""
    async with running(world) as server:
        watch: Any = server.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        call = watch(b"")
        first = await anext(aiter(call))
        assert first.status == health_pb2.HealthCheckResponse.SERVING
        call.cancel()
        await eventually_async(lambda: len(probe.calls) == 1)
