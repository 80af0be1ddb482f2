"""Runs a real server on a loopback port, over a store in memory, and calls it."""

import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
from a2a.types import a2a_pb2_grpc
from evershell.workspace.v1 import workspace_service_pb2_grpc
from google.rpc import error_details_pb2, status_pb2

from evershell.api import chain
from evershell.api.handlers import Service
from evershell.api.interceptors.admission import Admission
from evershell.api.interceptors.auditing import Auditing
from evershell.api.interceptors.authentication import Authentication
from evershell.api.interceptors.rate_limits import RateLimits
from evershell.api.interceptors.request_log import RequestLog
from evershell.api.method_options import A2A_SERVICE
from evershell.api.queueing_delay import DelayProbe, QueueingDelay
from evershell.api.runtime_servicer import RuntimeServicer
from evershell.api.server import AgentListener, Server
from evershell.api.workspace_servicer import WorkspaceServicer
from evershell.auth.api_keys import ApiKeys, fingerprint
from evershell.auth.authenticator import Authenticator, HostBinding
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.sealing import SigningKeySealing
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.auth.signing_keys import new_key
from evershell.core.caller import ApiKey, Caller, KeyTemplate
from evershell.core.children import Children
from evershell.core.event_feeds import EventFeeds
from evershell.core.runtime import Runtime
from evershell.features.a2a.api import A2AServicer
from evershell.features.a2a.card import Endpoints
from evershell.features.a2a.errors import ERROR_FORM
from evershell.features.webhooks.api import WebhookServicer
from evershell.features.webhooks.task_webhooks import StoredTaskWebhooks
from evershell.pod.tls import TlsIdentity
from evershell.telemetry.metrics import Metrics
from tests.support.fake_audit import FakeAuditQueue
from tests.support.fake_webhooks import FakeWebhookStore
from tests.support.runtime_tokens import runtime_token
from tests.support.small_agent import spec_for
from tests.support.world import NOW, ORG, World

PUBLIC = "/evershell.workspace.v1.WorkspaceService/"
INTERNAL = "/evershell.agent.v1.RuntimeService/"
SECRET = "sk_test"
READER = "sk_reader"
OBSERVER = "sk_observer"
# A credential with every scope, including `org:hold`, which no template for API keys has.
HOLDER = "sk_holder"
TEMPLATES = {
    SECRET: KeyTemplate.FULL_ACCESS,
    READER: KeyTemplate.READ_ONLY,
    OBSERVER: KeyTemplate.SUBMIT_OBSERVE,
}


async def _slug_of(org_id: str) -> str | None:
    return {ORG: "acme"}.get(org_id)


A2A_ENDPOINTS = Endpoints("https://{org}.example.com", "{org}.example.com:443", _slug_of)
POD_TOKENS = PodTokens(new_key())
Metadata = tuple[tuple[str, str], ...]
DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.RequestInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.ResourceInfo,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.RetryInfo,
)


def bearer(token: str = SECRET, **more: str) -> Metadata:
    """Metadata with this token. `more` is further metadata; underscores stand for hyphens.

    With `x_request_id`, the call looks like a call that the edge has passed on.
    """
    if "x_request_id" in more:
        more.setdefault("x_evershell_host", "x")
    return (
        ("authorization", f"Bearer {token}"),
        *((name.replace("_", "-"), value) for name, value in more.items()),
    )


def agent_bearer(workspace_id: str, epoch: int = 1) -> Metadata:
    return bearer(runtime_token(POD_TOKENS, workspace_id, epoch))


class _HolderKey(ApiKey):
    def caller(self) -> Caller:
        caller = ApiKey.caller(self)
        return replace(caller, scopes=caller.scopes | {"org:hold"})


async def find_key(digest: bytes) -> ApiKey | None:
    if digest == fingerprint(HOLDER):
        template = KeyTemplate.FULL_ACCESS
        return _HolderKey(id="key_holder", org_id=ORG, name="", template=template, created_at=NOW)
    for secret, template in TEMPLATES.items():
        if digest == fingerprint(secret):
            return ApiKey(
                id=f"key_{template}", org_id=ORG, name="", template=template, created_at=NOW
            )
    return None


@dataclass
class Failed:
    """A failed call, as its caller sees it."""

    code: grpc.StatusCode
    message: str
    trailers: dict[str, str]
    status: status_pb2.Status | None

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Failed":
        pairs = list(error.trailing_metadata() or ())
        rich = [value for name, value in pairs if name == "grpc-status-details-bin"]
        status = status_pb2.Status.FromString(bytes(rich[0])) if rich else None
        trailers = {name: str(value) for name, value in pairs if not name.endswith("-bin")}
        return cls(error.code(), error.details() or "", trailers, status)

    @property
    def details(self) -> dict[str, Any]:
        """The details of the rich status by the names of their types. No type occurs twice."""
        assert self.status is not None
        found: dict[str, Any] = {}
        for packed in self.status.details:
            kind = next(each for each in DETAILS if packed.Is(each.DESCRIPTOR))
            message = kind()
            packed.Unpack(message)
            assert kind.__name__ not in found
            found[kind.__name__] = message
        return found

    @property
    def slug(self) -> str:
        reason: str = self.details["ErrorInfo"].reason
        return reason.lower()

    @property
    def envelope(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.trailers["x-evershell-error"])["error"]
        return error


@dataclass
class Running:
    """A running server, and the world that it serves."""

    world: World
    channel: grpc.aio.Channel
    port: int
    server: Server
    stub: "workspace_service_pb2_grpc.WorkspaceServiceAsyncStub"
    # The queue of audit entries that the calls did not store themselves.
    audit: FakeAuditQueue
    webhooks: FakeWebhookStore

    async def fails(self, call: Any) -> Failed:
        """The failure of a unary call, or of reading a stream's first message."""
        try:
            if hasattr(call, "__aiter__"):
                async for _ in call:
                    break
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return Failed.of(error)
        raise AssertionError("the call succeeded")

    async def raw(
        self, method: str, metadata: Metadata = (), request: bytes = b""
    ) -> Failed | bytes:
        """Makes a unary call with the bytes of a request. Returns the bytes of the reply."""
        try:
            call: Any = self.channel.unary_unary(method)
            return bytes(await call(request, metadata=metadata))
        except grpc.aio.AioRpcError as error:
            return Failed.of(error)


@asynccontextmanager
async def running(
    world: World,
    host_binding: HostBinding | None = None,
    rate_limits: RateLimits | None = None,
    authenticator: Authenticator | None = None,
    metrics: Metrics | None = None,
    pod_tokens: PodTokens = POD_TOKENS,
    agent_tls: TlsIdentity | None = None,
    delay: QueueingDelay | None = None,
    probe: DelayProbe | None = None,
    *,
    rooms: Collection[str] = ("webhooks", "a2a"),
) -> AsyncIterator[Running]:
    authenticator = authenticator or Authenticator(
        ApiKeys(find_key), SessionTokens(JwkSet("/nonexistent"), "issuer", "audience")
    )
    request_log, audit = RequestLog(metrics or Metrics()), FakeAuditQueue()
    admission = Admission(delay or QueueingDelay(), *([probe.arrived] if probe else []))
    webhooks = FakeWebhookStore()
    feeds = EventFeeds(world.store, world.subscriptions, world.clock)
    server = Server(
        WorkspaceServicer(  # type: ignore[abstract] # rooms have the others
            world.store, world.agents, world.subscriptions, feeds, world.clock
        ),
        RuntimeServicer(
            Runtime(world.store, world.clock, 30),
            spec_for,
            Children(world.store, world.agents, world.subscriptions, world.clock),
        ),
        request_log,
        admission,
        chain.interceptors(
            request_log,
            admission,
            Authentication(
                authenticator, pod_tokens, host_binding, agent_tls=agent_tls is not None
            ),
            rate_limits,
            auditing=Auditing(audit, world.clock),
        ),
        agent_listener=AgentListener("127.0.0.1:0", agent_tls) if agent_tls else None,
        probe=probe,
        services=_services(world, feeds, webhooks, rooms),
    )
    port = await server.start("127.0.0.1:0")
    try:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}",
            # Without BDP probes, the flow-control window stays small, as it does for a slow caller.
            options=[("grpc.enable_http_proxy", 0), ("grpc.http2.bdp_probe", 0)],
        ) as channel:
            yield Running(
                world,
                channel,
                port,
                server,
                workspace_service_pb2_grpc.WorkspaceServiceStub(channel),
                audit,
                webhooks,
            )
    finally:
        await server.drain(0)


def _services(
    world: World, feeds: EventFeeds, webhooks: FakeWebhookStore, rooms: Collection[str]
) -> Sequence[Service]:
    shared = world.store, webhooks, SigningKeySealing(new_key()), world.clock
    services = {
        "webhooks": Service(
            workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server,
            WebhookServicer(*shared),  # type: ignore[abstract] # a part of the service
        ),
        "a2a": Service(
            a2a_pb2_grpc.add_A2AServiceServicer_to_server,
            A2AServicer(
                world.store,
                world.agents,
                world.subscriptions,
                feeds,
                world.clock,
                A2A_ENDPOINTS,
                StoredTaskWebhooks(*shared) if "webhooks" in rooms else None,
            ),
            A2A_SERVICE,
            ERROR_FORM,
        ),
    }
    return [services[room] for room in rooms]
