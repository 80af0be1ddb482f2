"""Server reflection, in both of its versions."""

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from tests.wire.api.running import Running

VERSIONS = ["v1", "v1alpha"]


async def ask(
    server: Running, version: str, **question: str
) -> reflection_pb2.ServerReflectionResponse:
    # Both versions are the same on the wire.
    method = server.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = [
        answer
        async for answer in method(iter([reflection_pb2.ServerReflectionRequest(**question)]))
    ]
    return answer


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        (
            "evershell.workspace.v1.WorkspaceService.CancelTask",
            "evershell/workspace/v1/workspace_service.proto",
        ),
        ("grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"),
        ("grpc.health.v1.Health", "grpc_health/v1/health.proto"),
        # Clients need this message to read the details of an error.
        ("google.rpc.RetryInfo", "google/rpc/error_details.proto"),
    ],
)
async def test_a_symbol_is_found_in_its_file(
    server: Running, version: str, symbol: str, file: str
) -> None:
    answer = await ask(server, version, file_containing_symbol=symbol)
    protos = map(
        descriptor_pb2.FileDescriptorProto.FromString,
        answer.file_descriptor_response.file_descriptor_proto,
    )
    assert file in [proto.name for proto in protos]


@pytest.mark.parametrize(
    "question",
    [
        {"file_containing_symbol": "evershell.workspace.v1.WorkspaceService.CancelTask"},
        {"file_by_filename": "evershell/workspace/v1/workspace_service.proto"},
    ],
)
async def test_a_file_has_its_comments(server: Running, question: dict[str, str]) -> None:
    answer = await ask(server, "v1", **question)
    comments = [
        location.leading_comments
        for content in answer.file_descriptor_response.file_descriptor_proto
        for location in descriptor_pb2.FileDescriptorProto.FromString(
            content
        ).source_code_info.location
    ]
    assert any(text.startswith(" Cancels the task that runs in a workspace.") for text in comments)


INTERNAL = ["RuntimeService", "AgentService", "RuntimeService.Register", "RegisterRequest"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("symbol", INTERNAL)
async def test_an_internal_symbol_is_not_found(server: Running, version: str, symbol: str) -> None:
    assert descriptor_pool.Default().FindFileContainingSymbol("evershell.agent.v1.RegisterRequest")
    answer = await ask(server, version, file_containing_symbol=f"evershell.agent.v1.{symbol}")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("file", ["runtime_service", "agent_service"])
async def test_an_internal_file_is_not_found(server: Running, file: str) -> None:
    answer = await ask(server, "v1", file_by_filename=f"evershell/agent/v1/{file}.proto")
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
