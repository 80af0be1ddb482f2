"""Every method of every service passes every interceptor."""

from collections import Counter
from typing import Any

import grpc
import pytest
from a2a.types import a2a_pb2
from evershell.agent.v1 import runtime_service_pb2
from evershell.workspace.v1 import workspace_service_pb2
from grpc_health.v1 import health_pb2

from evershell.api import call as calls
from evershell.api import chain
from evershell.api.call import Call
from evershell.api.handlers import Handlers
from evershell.api.interceptors.authentication import Authentication
from evershell.api.interceptors.interceptor import Handler, Interceptor, Method
from evershell.auth.api_keys import ApiKeys
from evershell.auth.authenticator import Authenticator
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core import deadline, trace
from tests.support.waiting import eventually_async
from tests.support.world import World
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
    a2a_pb2.DESCRIPTOR.services_by_name["A2AService"],
    runtime_service_pb2.DESCRIPTOR.services_by_name["RuntimeService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)
PATHS = [
    f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods
]


class Probe(Interceptor):
    """Records the methods that it wraps and the calls that pass."""

    def __init__(self) -> None:
        self.wrapped: Counter[str] = Counter()
        self.calls: list[Call] = []
        # What the core sees in each call: the trace id, how long a wait of an hour may take, and
        # how much of an hour is left since the call arrived.
        self.seen: list[tuple[str, float, float]] = []

    def wrap(self, method: Method, proceed: Handler) -> Handler:
        self.wrapped[method.path] += 1

        async def probed(call: Call) -> Any:
            assert calls.current() is call
            self.calls.append(call)
            left_seconds = deadline.left_of_call(3600.0, 0.0)
            self.seen.append((trace.current_id(), deadline.bounded(3600.0), left_seconds))
            return await proceed(call)

        return probed


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """The last interceptor but one. After it, calls pass only the interceptor `Reading`."""
    probe = Probe()
    whole = chain.interceptors

    def with_probe(*args: Any, **more: Any) -> list[Interceptor]:
        *others, reading = whole(*args, **more)
        return [*others, probe, reading]

    monkeypatch.setattr(chain, "interceptors", with_probe)
    return probe


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
        # The interceptors wrap each method once, not again for each call.
        assert dict(probe.wrapped) == dict.fromkeys(PATHS, 1)


def test_a_server_with_a_service_that_has_no_kind_of_credential_cannot_be_made() -> None:
    authenticator = Authenticator(
        ApiKeys(find_key), SessionTokens(JwkSet("/nonexistent"), "issuer", "audience")
    )
    methods: dict[str, Any] = {"/s/M": grpc.unary_unary_rpc_method_handler(bytes, bytes, bytes)}
    with pytest.raises(KeyError, match="'s'"):
        Handlers(methods, [Authentication(authenticator, POD_TOKENS, None)])


async def test_a_call_without_a_trace_or_a_deadline_has_neither(world: World, probe: Probe) -> None:
    """An earlier call with a trace and a deadline leaves nothing behind for the next call."""
    traced = bearer(traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    async with running(world) as server:
        listing: Any = server.channel.unary_unary(f"{PUBLIC}ListWorkspaces")
        for metadata, timeout in ((traced, 60), (bearer(), None)):
            await listing(b"", metadata=metadata, timeout=timeout)
    (trace_id, bounded, _), (*plain, left_seconds) = probe.seen
    assert trace_id == "a" * 32 and bounded < 60
    assert plain == ["", 3600.0]
    # The time of arrival is known even without a deadline.
    assert left_seconds < 3600.0
    assert [call.trace_id for call in probe.calls] == ["a" * 32, ""]


async def test_a_stream_of_health_passes_the_interceptors(world: World, probe: Probe) -> None:
    """Unlike other methods, Watch of the health service writes its messages itself."""
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
