"""Sends any call of any method to a stack, over REST or gRPC, with any headers."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc
from google.api import annotations_pb2
from google.protobuf.json_format import MessageToDict, ParseDict

from tests.support.forgeries import Headers
from tests.support.missing import NOT_APPLICABLE
from tests.support.stack import Stack
from tests.support.wires import Failed, grpc_failure, rest_failure

WIRES = ("REST", "gRPC")
SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
METHODS = [method.name for method in SERVICE.methods]
_SECONDS = 20.0

Answer = Mapping[str, Any] | Failed


@dataclass
class Wire:
    """Calls a stack over one protocol. Each binding of a method to REST counts as a call."""

    name: str
    stack: Stack
    calls: int = 0
    _client: httpx.Client = field(init=False)
    _channel: grpc.Channel = field(init=False)

    def __post_init__(self) -> None:
        url = self.stack.ready["rest_url"]
        self._client = httpx.Client(base_url=url, timeout=_SECONDS, trust_env=False)
        self._channel = grpc.insecure_channel(self.stack.ready["grpc_addr"])
        self._stub = workspace_service_pb2_grpc.WorkspaceServiceStub(self._channel)

    def close(self) -> None:
        self._client.close()
        self._channel.close()

    def send(self, method: str, headers: Headers, **fields: Any) -> list[Answer]:
        """Makes the call in every form that the protocol has for it. Returns each answer."""
        if self.name == "gRPC":
            answers = [self._grpc(method, headers, fields)]
        else:
            answers = [
                self._rest(verb, path, headers, fields) for verb, path in _bindings(method, fields)
            ]
        self.calls += len(answers)
        return answers

    def raw(self, method: str, headers: Headers, body: bytes) -> Answer:
        """Sends these bytes as the request, or as the body."""
        self.calls += 1
        if self.name == "REST":
            ((verb, path), *_) = _bindings(method, {"workspace_id": "", "task_id": ""})
            path = path.replace("{workspace_id}", "ws_1").replace("{task_id}", "task_1")
            return self._answer(self._client.request(verb, path, headers=headers, content=body))
        call: Any = self._channel.unary_unary(f"/{SERVICE.full_name}/{method}")
        try:
            call(body, metadata=headers, timeout=_SECONDS)
        except grpc.RpcError as error:
            return grpc_failure(error)
        return {}

    def _grpc(self, method: str, headers: Headers, fields: Mapping[str, Any]) -> Answer:
        request = ParseDict(dict(fields), _request(method))
        call = getattr(self._stub, method)
        try:
            message = call(request, metadata=headers, timeout=_SECONDS)
            if SERVICE.methods_by_name[method].server_streaming:
                stream, message = message, next(message)
                stream.cancel()
        except grpc.RpcError as error:
            return grpc_failure(error)
        return MessageToDict(message, preserving_proto_field_name=True)

    def _rest(self, verb: str, path: str, headers: Headers, fields: Mapping[str, Any]) -> Answer:
        named = {name for name in fields if f"{{{name}}}" in path}
        for name in named:
            path = path.replace(f"{{{name}}}", quote(str(fields[name]), safe=""))
        rest = {name: value for name, value in fields.items() if name not in named}
        arguments: dict[str, Any] = {"params": rest} if verb == "get" else {"json": rest}
        with self._client.stream(verb, path, headers=headers, **arguments) as response:
            if response.headers["content-type"] == "text/event-stream":
                return {"event": next(response.iter_lines())}
            response.read()
            return self._answer(response)

    def _answer(self, response: httpx.Response) -> Answer:
        if response.is_error:
            return rest_failure(response)
        body: dict[str, Any] = response.json()
        return body


def _request(method: str) -> Any:
    return getattr(workspace_service_pb2, SERVICE.methods_by_name[method].input_type.name)()


def _bindings(method: str, fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The verb and the path of each binding whose path these fields can fill."""
    http = SERVICE.methods_by_name[method].GetOptions().Extensions[annotations_pb2.http]
    found = []
    for rule in (http, *http.additional_bindings):
        if (verb := rule.WhichOneof("pattern")) is None:
            pytest.skip(f"{NOT_APPLICABLE}{method} has no path over REST")
        path = getattr(rule, verb)
        if set(re.findall(r"{(\w+)}", path)) <= set(fields):
            found.append((verb, path))
    return found


def text_of(answer: Answer) -> str:
    """Everything that a caller can read of the answer, without what differs in every call."""
    if isinstance(answer, Failed):
        # A map of a message has no order.
        details = json.dumps(answer.details, sort_keys=True)
        facts = (answer.status, answer.slug, answer.message, details)
        return str(facts).replace(answer.request_id, "<request id>")
    return json.dumps(answer)


def slug_of(answer: Answer) -> str:
    """The slug of a failure; empty for a success."""
    return answer.slug if isinstance(answer, Failed) else ""
