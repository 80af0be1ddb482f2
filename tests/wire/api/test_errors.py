"""Every error code, as gRPC and REST callers see it."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest
from evershell.workspace.v1 import error_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages
from evershell.workspace.v1.error_slugs import Slug
from google.protobuf.message import Message
from structlog.testing import capture_logs

from evershell.api.call import Call
from evershell.api.interceptors import errors as errors_module
from evershell.api.interceptors.errors import Errors
from evershell.api.interceptors.interceptor import Method
from evershell.auth.api_keys import ApiKeys
from evershell.auth.authenticator import Authenticator
from evershell.auth.session_tokens import JwkSet, SessionTokens
from evershell.core import errors
from evershell.core.caller import ApiKey
from evershell.core.errors import Failure, UnavailableError
from tests.support.faulty_store import FaultyStore
from tests.support.world import World
from tests.wire.api.running import HOLDER, Failed, Running, bearer, running

RULES = {
    value.name: value.GetOptions().Extensions[error_pb2.rule]
    for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
    if value.number
}
# The standard details besides ErrorInfo and RequestInfo, by gRPC code.
STANDARD = {
    grpc.StatusCode.INVALID_ARGUMENT: {"BadRequest"},
    grpc.StatusCode.NOT_FOUND: {"ResourceInfo"},
    grpc.StatusCode.FAILED_PRECONDITION: {"PreconditionFailure"},
    grpc.StatusCode.RESOURCE_EXHAUSTED: {"RetryInfo"},
}
GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
# The gRPC code, the HTTP status and the standard details of each slug of the service.
TABLE: dict[str, tuple[grpc.StatusCode, int, set[str]]] = {
    slug: (code, rule.http, {"RetryInfo"} if slug == "unavailable" else STANDARD.get(code, set()))
    for slug, rule in RULES.items()
    if not (rule.edge_only or rule.a2a_only)
    for code in [GRPC_CODES[rule.grpc]]
}
MAKERS: dict[str, Callable[[], Failure]] = {
    "validation_error": lambda: errors.invalid({"reason": "is too long", "task_id": "is bad"}),
    "unauthenticated": lambda: errors.unauthenticated("No."),
    "permission_denied": lambda: errors.permission_denied(
        "No.", ["workspace:write", "workspace:write:own"]
    ),
    "workspace_not_found": lambda: errors.workspace_not_found("ws_1"),
    "task_not_found": lambda: errors.task_not_found("ws_1", "task_1"),
    "webhook_not_found": lambda: errors.webhook_not_found("wh_1"),
    "rate_limited": lambda: Failure("rate_limited", "Slower.", retry_after_seconds=0.25),
    "agent_unreachable": lambda: errors.agent_unreachable(
        "ws_1", "task_1", "Größe 🐚", intent_recorded=True
    ),
    "unavailable": errors.unavailable,
}


def failure_of(slug: Slug) -> Failure:
    make = MAKERS.get(slug)
    if make is not None:
        return make()
    if slug.endswith("_not_found"):
        return Failure(slug, f"It is {slug}.", resource_type="thing", resource_name="thing_1")
    return Failure(slug, f"It is {slug}.", workspace_id="ws_1", status="x", count=2)


# A call, its metadata, and whether the call can be repeated without a second effect.
REPEATS = [
    ("CancelTask", messages.CancelTaskRequest(workspace_id="ws_1"), {}, False),
    ("CancelTask", messages.CancelTaskRequest(workspace_id="ws_1", task_id="task_1"), {}, True),
    ("SubmitTask", messages.SubmitTaskRequest(workspace_id="ws_1", description="x"), {}, False),
    (
        "SubmitTask",
        messages.SubmitTaskRequest(workspace_id="ws_1", description="x"),
        {"idempotency_key": "k"},
        True,
    ),
    ("CreateWorkspace", messages.CreateWorkspaceRequest(), {}, False),
    ("CreateWorkspace", messages.CreateWorkspaceRequest(), {"idempotency_key": "k"}, True),
    ("StopWorkspace", messages.StopWorkspaceRequest(workspace_id="ws_1"), {}, False),
    ("ResumeWorkspace", messages.ResumeWorkspaceRequest(workspace_id="ws_1"), {}, False),
    ("DeleteWorkspace", messages.DeleteWorkspaceRequest(workspace_id="ws_1"), {}, True),
    ("ReleaseOrg", messages.ReleaseOrgRequest(), {}, False),
    ("HoldOrg", messages.HoldOrgRequest(), {}, True),
    ("GetTask", messages.GetTaskRequest(workspace_id="ws_1", task_id="task_1"), {}, True),
]


async def failed(server: Running, **metadata: str) -> Failed:
    request = messages.GetWorkspaceRequest(workspace_id="ws_1")
    return await server.fails(
        server.stub.GetWorkspace(request, metadata=bearer(x_request_id="req_7", **metadata))
    )


@pytest.mark.parametrize("slug", TABLE)
async def test_each_slug_has_its_status_and_details_over_grpc(
    server: Running, store: FaultyStore, slug: Slug
) -> None:
    store.error = lambda: failure_of(slug)
    seen = await failed(server)
    grpc_code, http, standard = TABLE[slug]
    assert (seen.code, RULES[slug].http) == (grpc_code, http)
    assert seen.message == failure_of(slug).message
    assert seen.status is not None and (seen.status.code, seen.status.message) == (
        RULES[slug].grpc,
        seen.message,
    )
    info = seen.details["ErrorInfo"]
    assert (info.reason, info.domain) == (slug.upper(), "evershell.ai")
    assert seen.details["RequestInfo"].request_id == "req_7"
    assert set(seen.details) == {"ErrorInfo", "RequestInfo"} | standard
    assert seen.trailers["x-request-id"] == "req_7"
    assert not any(name.startswith("x-evershell") for name in seen.trailers)
    assert ("www-authenticate" in seen.trailers) is (slug == "unauthenticated")
    assert ("retry-after" in seen.trailers) is ("RetryInfo" in standard)
    assert "x-should-retry" not in seen.trailers


@pytest.mark.parametrize("slug", TABLE)
async def test_each_slug_has_its_status_and_envelope_over_rest(
    server: Running, store: FaultyStore, slug: Slug
) -> None:
    """The trailers contain everything that Envoy needs."""
    store.error = lambda: failure_of(slug)
    seen = await failed(server, x_evershell_edge="rest")
    assert seen.trailers["x-evershell-status"] == str(TABLE[slug][1])
    assert seen.trailers["x-evershell-error"].isascii()
    is_final = TABLE[slug][1] == 409 or slug == "agent_unreachable"
    assert seen.trailers.get("x-should-retry") == ("false" if is_final else None)
    envelope = seen.envelope
    failure = failure_of(slug)
    assert (envelope["code"], envelope["message"], envelope["request_id"]) == (
        slug,
        seen.message,
        "req_7",
    )
    assert envelope.get("details", {}) == json.loads(json.dumps(dict(failure.details)))
    assert set(envelope) <= {"code", "message", "request_id", "details"}
    assert seen.details["ErrorInfo"].reason.lower() == envelope["code"]


async def test_the_standard_details_have_the_facts(server: Running, store: FaultyStore) -> None:
    store.error = lambda: failure_of("validation_error")
    violations = (await failed(server)).details["BadRequest"].field_violations
    assert {each.field: each.description for each in violations} == {
        "reason": "is too long",
        "task_id": "is bad",
    }
    store.error = lambda: failure_of("task_not_found")
    resource = (await failed(server)).details["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == ("task", "task_1")
    store.error = lambda: failure_of("workspace_busy")
    (violation,) = (await failed(server)).details["PreconditionFailure"].violations
    assert (violation.type, violation.subject) == ("WORKSPACE_BUSY", "ws_1")
    store.error = lambda: failure_of("rate_limited")
    limited = await failed(server)
    assert limited.details["RetryInfo"].retry_delay.ToMilliseconds() == 250
    assert limited.trailers["retry-after"] == "1"


async def test_the_metadata_of_error_info_is_flat(server: Running, store: FaultyStore) -> None:
    store.error = lambda: failure_of("agent_unreachable")
    flat = (await failed(server)).details["ErrorInfo"].metadata
    assert dict(flat) == {"workspace_id": "ws_1", "task_id": "task_1", "intent_recorded": "true"}
    store.error = lambda: failure_of("permission_denied")
    assert (await failed(server)).details["ErrorInfo"].metadata[
        "required"
    ] == "workspace:write,workspace:write:own"


async def test_an_unexpected_exception_is_not_disclosed(
    server: Running, store: FaultyStore
) -> None:
    store.error = lambda: ZeroDivisionError("the password is hunter2")
    seen = await failed(server, x_evershell_edge="rest")
    assert (seen.code, seen.slug) == (grpc.StatusCode.INTERNAL, "internal")
    everything = f"{seen.message} {seen.trailers} {seen.status}"
    assert "hunter2" not in everything and "ZeroDivision" not in everything
    assert seen.details["RequestInfo"].request_id == "req_7"


async def test_a_cancelled_error_from_a_handler_is_an_internal_error(
    server: Running, store: FaultyStore
) -> None:
    store.error = asyncio.CancelledError
    async with asyncio.timeout(10):
        seen = await failed(server)
    assert (seen.code, seen.slug) == (grpc.StatusCode.INTERNAL, "internal")


@pytest.mark.parametrize("problem", [UnavailableError, ZeroDivisionError])
@pytest.mark.parametrize(("method", "request_", "metadata", "can_repeat"), REPEATS)
async def test_an_error_advises_to_repeat_only_what_can_be_repeated(
    server: Running,
    store: FaultyStore,
    method: str,
    request_: Message,
    metadata: dict[str, str],
    can_repeat: bool,
    problem: type[Exception],
) -> None:
    store.error = problem
    make = getattr(server.stub, method)
    rest = await server.fails(
        make(request_, metadata=bearer(HOLDER, x_evershell_edge="rest", **metadata))
    )
    grpc_ = await server.fails(make(request_, metadata=bearer(HOLDER, **metadata)))
    assert rest.slug == grpc_.slug == ("unavailable" if problem is UnavailableError else "internal")
    assert rest.trailers.get("x-should-retry") == (None if can_repeat else "false")
    advises_repeat = can_repeat and problem is UnavailableError
    for seen in (rest, grpc_):
        assert ("retry-after" in seen.trailers) == ("RetryInfo" in seen.details) == advises_repeat
        assert ("repeat" in seen.message) != can_repeat
    assert ("retry_after_seconds" in rest.envelope.get("details", {})) == advises_repeat


async def test_every_error_of_a_call_that_must_not_be_repeated_says_so(server: Running) -> None:
    request = messages.CancelTaskRequest(workspace_id="ws_unknown")
    metadata = bearer(x_evershell_edge="rest")
    unnamed = await server.fails(server.stub.CancelTask(request, metadata=metadata))
    request.task_id = "task_1"
    named = await server.fails(server.stub.CancelTask(request, metadata=metadata))
    assert unnamed.slug == named.slug == "workspace_not_found"
    assert unnamed.trailers["x-should-retry"] == "false"
    assert "x-should-retry" not in named.trailers


@pytest.mark.parametrize("is_named", [False, True])
async def test_a_cancellation_that_fails_before_it_is_read(world: World, is_named: bool) -> None:
    """The edge tells the worker whether the path names the task."""

    async def find_key(digest: bytes) -> ApiKey | None:
        raise UnavailableError

    sessions = SessionTokens(JwkSet("/nonexistent"), "issuer", "audience")
    metadata = bearer(x_evershell_edge="rest", **{"x_evershell_task": "named"} if is_named else {})
    async with running(world, authenticator=Authenticator(ApiKeys(find_key), sessions)) as server:
        seen = await server.fails(
            server.stub.CancelTask(messages.CancelTaskRequest(), metadata=metadata)
        )
    assert seen.slug == "unavailable"
    assert ("retry-after" in seen.trailers) == is_named
    assert ("x-should-retry" in seen.trailers) != is_named


async def test_a_caller_without_the_edge_does_not_choose_the_request_id(server: Running) -> None:
    metadata = (*bearer(), ("x-request-id", "req_7"))
    call = server.stub.ListWorkspaces(messages.ListWorkspacesRequest(), metadata=metadata)
    await call
    request_id = str(dict(await call.trailing_metadata())["x-request-id"])
    assert re.fullmatch(r"[0-9a-f-]{36}", request_id)


async def test_a_call_that_its_caller_has_reset_gets_no_status() -> None:
    sent: list[str] = []

    class Context:
        async def abort(self, *status: object) -> None:
            sent.append(repr(status))

    async def refused(call: Call) -> None:
        raise errors.unauthenticated("No.")

    method = Method("evershell.workspace.v1.WorkspaceService", "GetTask", bytes, is_stream=False)
    call = Call(cast(grpc.aio.ServicerContext[Any, Any], Context()), {}, "id", is_rest=True)
    task = asyncio.ensure_future(Errors().wrap(method, refused)(call))
    await asyncio.sleep(0)
    # gRPC cancels the task when it reports the reset.
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), sent) == (True, [])


@pytest.mark.parametrize("is_reported", [True, False])
async def test_a_caller_that_goes_while_a_message_is_sent_is_no_error(
    monkeypatch: pytest.MonkeyPatch, *, is_reported: bool
) -> None:
    """gRPC fails to send the message, and then reports that the caller has gone."""
    monkeypatch.setattr(errors_module, "_GONE_REPORTED_SECONDS", 600.0 if is_reported else 0.0)
    failed, sent = asyncio.Event(), list[str]()

    class Context:
        async def abort(self, *status: object) -> None:
            sent.append(repr(status))

    async def watched(call: Call) -> None:
        failed.set()
        raise grpc.aio.InternalError("Failed to send")

    method = Method("evershell.workspace.v1.WorkspaceService", "GetTask", bytes, is_stream=True)
    call = Call(cast(grpc.aio.ServicerContext[Any, Any], Context()), {}, "id", is_rest=False)
    with capture_logs() as logs:
        task = asyncio.ensure_future(Errors().wrap(method, watched)(call))
        await failed.wait()
        if is_reported:
            task.cancel()
        await asyncio.wait([task])
    # If gRPC does not report that the caller has gone, the failure counts as a defect.
    assert task.cancelled() is is_reported
    assert [bool(logs), bool(sent)] == [not is_reported] * 2
