"""Callers over every wire. Each call is recorded, and returns a Reply even if it fails."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import grpc
import grpc.aio
import httpx
from evershell.workspace.v1 import error_pb2, workspace_service_pb2, workspace_service_pb2_grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from evershell.histories.recorder import Recorder
from tests.support.stack import Stack

RULES: dict[str, error_pb2.ErrorRule] = {
    value.name: value.GetOptions().Extensions[error_pb2.rule]
    for value in error_pb2.Error.ErrorCode.DESCRIPTOR.values
    if value.number
}

_ROUTES = {
    "ListWorkspaces": ("GET", "/v1/workspaces"),
    "CreateWorkspace": ("POST", "/v1/workspaces"),
    "DeleteWorkspace": ("DELETE", "/v1/workspaces/{workspace_id}"),
    "GetWorkspace": ("GET", "/v1/workspaces/{workspace_id}"),
    "StopWorkspace": ("POST", "/v1/workspaces/{workspace_id}/stop"),
    "ResumeWorkspace": ("POST", "/v1/workspaces/{workspace_id}/resume"),
    "SubmitTask": ("POST", "/v1/workspaces/{workspace_id}/tasks"),
    "ListTasks": ("GET", "/v1/workspaces/{workspace_id}/tasks"),
    "GetTask": ("GET", "/v1/workspaces/{workspace_id}/tasks/{task_id}"),
    "CancelTask": ("POST", "/v1/workspaces/{workspace_id}/task/cancel"),
    "CancelTasks": ("POST", "/v1/tasks/cancel"),
    "HoldOrg": ("POST", "/v1/hold"),
    "GetHold": ("GET", "/v1/hold"),
    "ReleaseOrg": ("POST", "/v1/hold/release"),
    "CreateWebhook": ("POST", "/v1/webhooks"),
}
# These calls use the owner's token, because no template of API keys has the scope org:hold.
_NEED_OWNER = {"HoldOrg", "ReleaseOrg"}
_FIRST_MESSAGE_SECONDS = 15.0
_CANCEL_OF_A_NAMED_TASK = "/v1/workspaces/{workspace_id}/tasks/{task_id}/cancel"
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


# The values of `slug` if the service gave no slug. NO_CONNECTION: a REST call had no connection, or
# its connection broke. NO_ANSWER: the caller's own time limit passed. BARE: the answer was not in
# the service's form. A gRPC call without a connection, or with a broken one, counts as BARE too.
NO_CONNECTION, NO_ANSWER, BARE = "(no connection)", "(no answer)", "(bare status)"


class Wire(StrEnum):
    """How a call reaches the service."""

    REST = "REST, edge"
    GRPC = "gRPC, edge"
    WORKER_0 = "gRPC, worker 0"
    WORKER_1 = "gRPC, worker 1"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or what the caller got instead of an answer."""

    # The HTTP status, or the name of the gRPC code; empty if there was none.
    status: str
    # Empty for a success.
    slug: str
    # The message of a success, or the details of a failure.
    body: Mapping[str, Any]
    # What is wrong with a malformed answer; empty if the answer is well-formed.
    problem: str = ""
    # The request id, which identifies the call in the logs; empty if the answer has none.
    request_id: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether there was no answer from the service itself."""
        return self.slug in (NO_CONNECTION, NO_ANSWER, BARE)


class Callers:
    """Makes calls over any wire, on connections that belong to this instance."""

    def __init__(self, stack: Stack, recorder: Recorder) -> None:
        self._recorder = recorder
        self._token = stack.tokens["full_access"]
        self._token_of_owner = stack.tokens["owner"]
        self._token_of_other = stack.tokens.get("other_org")
        self._rest = httpx.AsyncClient(
            base_url=stack.ready["rest_url"],
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        first, other = stack.worker_addresses()
        addresses = {
            Wire.GRPC: stack.ready["grpc_addr"],
            Wire.WORKER_0: first,
            Wire.WORKER_1: other,
        }
        self._channels = {
            wire: grpc.aio.insecure_channel(address, _CHANNEL_OPTIONS)
            for wire, address in addresses.items()
        }

    async def close(self) -> None:
        await self._rest.aclose()
        for channel in self._channels.values():
            await channel.close()

    async def call(
        self,
        wire: Wire,
        rpc: str,
        limit_seconds: float,
        fields: Mapping[str, Any],
        token: str | None = None,
    ) -> Reply:
        """Makes a call. `fields` are the fields of the request, as in JSON.

        If `token` is None, sends a token with the needed scopes. If it is empty, sends no token.
        """
        if token is None:
            token = self._token_of_owner if rpc in _NEED_OWNER else self._token
        headers = {"authorization": f"Bearer {token}"} if token else {}
        org = "other" if token == self._token_of_other else ""
        call_id = self._recorder.begin(wire, rpc, fields, org=org)
        if wire is Wire.REST:
            reply = await self._call_rest(rpc, limit_seconds, dict(fields), headers)
        else:
            channel = self._channels[wire]
            reply = await self._call_grpc(channel, wire, rpc, limit_seconds, fields, headers)
        self._record(call_id, reply)
        return reply

    def _record(self, call_id: str, reply: Reply) -> None:
        if reply.slug:
            self._recorder.fail(call_id, reply.slug, reply.body, reply.request_id)
        else:
            self._recorder.answer(call_id, reply.body, reply.request_id)

    async def watch(
        self,
        wire: Wire,
        workspace_id: str,
        messages: int,
        stay_seconds: float,
        after: int = 0,
        on_event: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> Reply:
        """Watches the workspace's log after the event `after`. Returns the last message.

        Hangs up after `messages` messages, or `stay_seconds` after the first message.
        """
        fields = {"workspace_id": workspace_id, "after": after}
        call_id = self._recorder.begin(wire, "WatchEvents", fields)
        seen = 0
        last = Reply("", NO_ANSWER, {})
        stream = self._watch(wire, workspace_id, after)
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_MESSAGE_SECONDS) as limit, aclosing(stream):
                async for last in stream:
                    seen += 1
                    if event := last.body.get("event"):
                        self._recorder.message(call_id, {"event": event})
                        on_event(event)
                    if seen == 1:
                        limit.reschedule(asyncio.get_running_loop().time() + stay_seconds)
                    if last.slug or seen == messages:
                        break
        self._record(call_id, last)
        return last

    async def _watch(self, wire: Wire, workspace_id: str, after: int) -> AsyncGenerator[Reply]:
        headers = {"authorization": f"Bearer {self._token}"}
        if wire is not Wire.REST:
            stub = workspace_service_pb2_grpc.WorkspaceServiceStub(self._channels[wire])
            request = workspace_service_pb2.WatchEventsRequest(
                workspace_id=workspace_id, after=after
            )
            try:
                async for message in stub.WatchEvents(request, metadata=tuple(headers.items())):
                    body = MessageToDict(message, preserving_proto_field_name=True)
                    yield Reply("OK", "", body)
            except grpc.aio.AioRpcError as error:
                yield _grpc_failure(error, wire)
            return
        try:
            async for reply in self._watch_rest(workspace_id, after, headers):
                yield reply
        except httpx.TransportError as error:
            yield Reply("", NO_CONNECTION, {"said": repr(error)})

    async def _watch_rest(
        self, workspace_id: str, after: int, headers: Mapping[str, str]
    ) -> AsyncIterator[Reply]:
        async with self._rest.stream(
            "GET",
            f"/v1/workspaces/{workspace_id}/events",
            params={"after": after},
            headers=headers,
            timeout=None,
        ) as response:
            if response.status_code != 200:
                yield rest_reply(
                    response.status_code, response.headers, (await response.aread()).decode()
                )
                return
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    yield Reply("200", "", json.loads(line.removeprefix("data: ")))

    async def _call_rest(
        self, rpc: str, limit_seconds: float, fields: dict[str, Any], headers: Mapping[str, str]
    ) -> Reply:
        method, path = _ROUTES[rpc]
        if rpc == "CancelTask" and "task_id" in fields:
            path = _CANCEL_OF_A_NAMED_TASK
        url = path.format(**fields)
        body = (
            {name: value for name, value in fields.items() if f"{{{name}}}" not in path}
            if method == "POST"
            else None
        )
        try:
            async with asyncio.timeout(limit_seconds):
                response = await self._rest.request(
                    method, url, json=body or None, headers=headers, timeout=None
                )
        except TimeoutError:
            return Reply("", NO_ANSWER, {})
        except httpx.TransportError as error:
            return Reply("", NO_CONNECTION, {"said": repr(error)})
        return rest_reply(response.status_code, response.headers, response.text)

    async def _call_grpc(
        self,
        channel: grpc.aio.Channel,
        wire: Wire,
        rpc: str,
        limit_seconds: float,
        fields: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> Reply:
        request = ParseDict(dict(fields), getattr(workspace_service_pb2, f"{rpc}Request")())
        method = getattr(workspace_service_pb2_grpc.WorkspaceServiceStub(channel), rpc)
        try:
            reply = await method(request, metadata=tuple(headers.items()), timeout=limit_seconds)
        except grpc.aio.AioRpcError as error:
            return _grpc_failure(error, wire)
        return Reply(
            "OK",
            "",
            MessageToDict(
                reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            ),
        )


def rest_reply(status: int, headers: Mapping[str, str], text: str) -> Reply:
    """Reads an answer of the edge: a message, or the error envelope with a known slug."""
    try:
        body = json.loads(text)
        if status < 400:
            return Reply(str(status), "", body, request_id=headers.get("x-request-id", ""))
        error = body["error"]
        slug, request_id = error["code"], error["request_id"]
    except (ValueError, KeyError, TypeError):
        return Reply(
            str(status),
            BARE,
            {},
            f"{status} has neither a message nor the envelope: {text[:200]!r}",
        )
    problem, seen_id = "", headers.get("x-request-id", "")
    if slug not in RULES:
        problem = f"the slug {slug!r} is not of the closed set"
    elif RULES[slug].http != status:
        problem = f"{slug} came with status {status}"
    elif request_id != seen_id:
        problem = f"the request id {request_id} differs from the header's"
    return Reply(str(status), slug, error.get("details", {}), problem, seen_id)


def _grpc_failure(error: grpc.aio.AioRpcError, wire: Wire) -> Reply:
    code = error.code()
    try:
        status = rpc_status.from_call(error)
    except ValueError as mismatch:
        return Reply(code.name, BARE, {}, f"the status and its details differ: {mismatch}")
    info = error_details_pb2.ErrorInfo()
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Reply(code.name, NO_ANSWER, {})
        # gRPC's library refuses a call with CANCELLED if the worker does not begin it within 3 s
        # (api/server.py). The edge makes `unavailable` of it.
        expected = code is grpc.StatusCode.UNAVAILABLE or (
            code is grpc.StatusCode.CANCELLED and wire is not Wire.GRPC
        )
        problem = "" if expected else f"bare {code.name}: {error.details()}"
        return Reply(code.name, BARE, {"said": error.details()}, problem)
    slug = info.reason.lower()
    problem = (
        ""
        if slug in RULES and RULES[slug].grpc == code.value[0]
        else f"{slug!r} came with {code.name}"
    )
    request_id = str(dict(error.trailing_metadata() or ()).get("x-request-id", ""))
    return Reply(code.name, slug, dict(info.metadata), problem, request_id)
