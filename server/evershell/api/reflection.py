"""Server reflection in the versions v1 and v1alpha. Clients that support both try v1 first.

grpcio-reflection has only v1alpha. The messages of both versions are the same on the wire, so one
servicer serves both. The servicer shows only the files of the public services, although the process
has also loaded the files of the internal services.

The generated code has no comments, so the servicer takes the comments from the descriptor set of
the edge. With them, `grpcurl describe` shows what each method and field means.
"""

from importlib import resources
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

_V1ALPHA = "grpc.reflection.v1alpha"
_V1 = "grpc.reflection.v1"
SERVICE_NAMES = (f"{_V1}.ServerReflection", f"{_V1ALPHA}.ServerReflection")


def add_to_server(service_names: tuple[str, ...], server: grpc.aio.Server) -> None:
    """Adds reflection for these services, and for the reflection service itself."""
    servicer = _Servicer((*service_names, *SERVICE_NAMES), _public_pool(service_names))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                f"{_V1}.ServerReflection", {"ServerReflectionInfo": method}
            ),
        )
    )


def _public_pool(service_names: tuple[str, ...]) -> descriptor_pool.DescriptorPool:
    """A pool with the files of these services and of reflection, and all files that they import.

    The pool also has the standard error details, so that clients can read the details of an error.
    """
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name not in added:
            added.add(file.name)
            for imported in file.dependencies:
                add(imported)
            pool.AddSerializedFile(file.serialized_pb)

    for name in service_names:
        add(descriptor_pool.Default().FindFileContainingSymbol(name))
    add(reflection_pb2.DESCRIPTOR)
    add(error_details_pb2.DESCRIPTOR)
    pool.AddSerializedFile(_descriptor_of_v1())
    return pool


def _descriptor_of_v1() -> bytes:
    """A copy of the file of v1alpha, renamed to v1."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file = json_format.Parse(
        json_format.MessageToJson(file).replace(_V1ALPHA, _V1), descriptor_pb2.FileDescriptorProto()
    )
    file.name = "grpc/reflection/v1/reflection.proto"
    return file.SerializeToString()


def _comments() -> "dict[str, descriptor_pb2.SourceCodeInfo]":
    """The comments in the files of this project, by the file's name."""
    content = (resources.files("evershell.edge") / "workspace.binpb").read_bytes()
    return {
        file.name: file.source_code_info
        for file in descriptor_pb2.FileDescriptorSet.FromString(content).file
        if file.name.startswith("evershell/")
    }


class _Servicer(reflection.aio.ReflectionServicer):  # type: ignore[misc] # the package has no types
    """Adds comments, and also finds a file by the name of a method, which the pool cannot do."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._comments = _comments()

    def _file_by_filename(self, request: Any, filename: str) -> Any:
        return self._with_comments(super()._file_by_filename(request, filename))

    def _with_comments(self, response: Any) -> Any:
        files = response.file_descriptor_response.file_descriptor_proto
        for index, content in enumerate(files):
            file = descriptor_pb2.FileDescriptorProto.FromString(content)
            if file.name in self._comments:
                file.source_code_info.CopyFrom(self._comments[file.name])
                files[index] = file.SerializeToString()
        return response

    def _file_containing_symbol(self, request: Any, fully_qualified_name: str) -> Any:
        service, _, method = fully_qualified_name.rpartition(".")
        try:
            is_method = method in self._pool.FindServiceByName(service).methods_by_name
        except KeyError:
            is_method = False
        symbol = service if is_method else fully_qualified_name
        return self._with_comments(super()._file_containing_symbol(request, symbol))
