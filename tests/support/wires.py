"""Callers over REST and gRPC. Both report failures in the same form."""

import json
import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from evershell.workspace.v1 import workspace_service_pb2, workspace_service_pb2_grpc
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.openapi import Operation, operation
from tests.support.waiting import LIMIT_SECONDS

# The beginning of the message with which a busy worker refuses a call, which has had no effect. The
# messages of an outage begin differently.
OVERLOADED = "The service is overloaded."
# The pause that the refusal asks callers to make before they try again.
OVERLOADED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed call, over REST or gRPC."""

    # The HTTP status, or the gRPC code.
    status: Any
    slug: str
    message: str
    request_id: str
    # Over REST, the details of the error. Over gRPC, the standard details, each by the name of its
    # message.
    details: Mapping[str, Any]


class Rest:
    """A caller over REST, which checks every response against the OpenAPI document."""

    def __init__(self, url: str, token: str, verify: ssl.SSLContext | bool = True) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.client = httpx.Client(base_url=url, headers=headers, timeout=20, verify=verify)

    def close(self) -> None:
        self.client.close()

    def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Makes a call, and checks its response against the OpenAPI document.

        Repeats the call while a busy worker refuses it.
        """
        until = time.monotonic() + LIMIT_SECONDS
        while True:
            response = self.client.request(method, path, **arguments)
            described = operation(method, response.request.url.path)
            if described is not None:
                content_type = response.headers["content-type"]
                described.check(response.status_code, content_type, response.json())
            is_refused = response.status_code == 503 and OVERLOADED in response.text
            if not is_refused or time.monotonic() > until:
                return response
            time.sleep(OVERLOADED_SECONDS)

    def serves(self, path: str) -> bool:
        """Whether a read of this path succeeds. Returns False if nothing listens."""
        with suppress(httpx.TransportError):
            return self.call("GET", path).is_success
        return False

    def get(self, path: str, **arguments: Any) -> dict[str, Any]:
        return _succeeded(self.call("GET", path, **arguments), 200)

    def post(self, path: str, body: Any = None, status: int = 202) -> dict[str, Any]:
        return _succeeded(
            self.call("POST", path, json=body) if body is not None else self.call("POST", path),
            status,
        )

    def fails(self, method: str, path: str, **arguments: Any) -> Failed:
        """Makes a call that must fail, and checks the form of the failure."""
        response = self.call(method, path, **arguments)
        assert response.status_code >= 400, response.text
        assert response.headers["content-type"] == "application/json"
        return rest_failure(response)

    def events(self, workspace_id: str | None, after: int = 0) -> Iterator[dict[str, Any]]:
        """Yields the messages of the stream of a workspace, or of the organization with None.

        Checks each event against the OpenAPI document.
        """
        path = f"/v1/workspaces/{workspace_id}/events" if workspace_id else "/v1/events"
        watch = operation("GET", path)
        assert watch is not None
        until = time.monotonic() + LIMIT_SECONDS
        while not (yield from self._events(path, after, watch, until)):
            time.sleep(OVERLOADED_SECONDS)

    def _events(
        self, path: str, after: int, watch: Operation, until: float
    ) -> Generator[dict[str, Any], None, bool]:
        """Yields the messages of one stream. Returns False if a busy worker refused the stream."""
        with self.client.stream("GET", path, params={"after": after}) as response:
            if response.status_code != 200:
                text = response.read().decode()
                assert OVERLOADED in text and time.monotonic() < until, text
                return False
            for line in response.iter_lines():
                if line.startswith("data: "):
                    message = json.loads(line.removeprefix("data: "))
                    watch.check(200, response.headers["content-type"], message)
                    yield message
                elif line.startswith(":"):
                    yield {"heartbeat": {}}
        return True


def rest_failure(response: httpx.Response) -> Failed:
    """Reads an error response of REST, and checks its form."""
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert error["request_id"] == response.headers["x-request-id"]
    return Failed(
        response.status_code,
        error["code"],
        error["message"],
        error["request_id"],
        error.get("details", {}),
    )


def _succeeded(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    return body


class Grpc:
    """A caller over gRPC."""

    def __init__(self, address: str, token: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._stub = workspace_service_pb2_grpc.WorkspaceServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def call(
        self,
        rpc: str,
        timeout: float = 20,
        headers: tuple[tuple[str, str], ...] = (),
        **fields: Any,
    ) -> dict[str, Any]:
        """Makes a call. Returns the response in the form of REST's JSON. Raises grpc.RpcError.

        Repeats the call while a busy worker refuses it.
        """
        request = getattr(workspace_service_pb2, f"{rpc}Request")(**fields)
        metadata = (*self._metadata, *headers)
        until = time.monotonic() + LIMIT_SECONDS
        while True:
            try:
                reply = getattr(self._stub, rpc)(request, metadata=metadata, timeout=timeout)
                break
            except grpc.RpcError as error:
                if OVERLOADED not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(OVERLOADED_SECONDS)
        return MessageToDict(
            reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    def begin(self, rpc: str, timeout: float = 20, **fields: Any) -> Any:
        """Starts a call. Returns its grpc.Future, which can be cancelled."""
        request = getattr(workspace_service_pb2, f"{rpc}Request")(**fields)
        return getattr(self._stub, rpc).future(request, metadata=self._metadata, timeout=timeout)

    def fails(self, rpc: str, **fields: Any) -> Failed:
        """Makes a call that must fail, and checks the form of the failure."""
        with pytest.raises(grpc.RpcError) as raised:
            self.call(rpc, **fields)
        return grpc_failure(raised.value)


def grpc_failure(error: grpc.RpcError) -> Failed:
    """Reads the rich status of a failed gRPC call, and checks its form."""
    refused = read_failure(error)
    assert refused.details["ErrorInfo"]["domain"] == "evershell.ai"
    assert refused.details["RequestInfo"]["request_id"] == refused.request_id
    return refused


def read_failure(error: grpc.RpcError) -> Failed:
    """Reads the status and the details of a failed gRPC call.

    If the edge itself has answered, there are fewer details. If there is no slug, `slug` is the
    name of the gRPC code in lower case.
    """
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    details = {} if status is None else _details(status)
    slug = details.get("ErrorInfo", {}).get("reason", error.code().name).lower()
    trailers = {name: str(value) for name, value in error.trailing_metadata() or ()}
    request_id = trailers.get("x-request-id", "")
    return Failed(error.code(), slug, error.details() or "", request_id, details)


def raw_grpc(
    address: str, method: str, metadata: tuple[tuple[str, str], ...], request: bytes = b""
) -> bytes | Failed:
    """Makes a unary call with the bytes of a request.

    Returns the bytes of the reply, or a failure.
    """
    with grpc.insecure_channel(address) as channel:
        try:
            call: Any = channel.unary_unary(method)
            reply: bytes = call(request, metadata=metadata, timeout=20)
            return reply
        except grpc.RpcError as error:
            return read_failure(error)


def _details(status: Any) -> dict[str, Any]:
    return {detail.TypeName().rpartition(".")[2]: _unpacked(detail) for detail in status.details}


def _unpacked(detail: Any) -> dict[str, Any]:
    message = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
    assert detail.Unpack(message)
    return MessageToDict(message, preserving_proto_field_name=True)
