"""A bare Envoy, which only translates `POST /empty` into the method Empty of floor.py."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from bench import processes
from bench.servers import floor
from evershell.stack.envoy import config

PATH = "/empty"
_TYPES = "type.googleapis.com/envoy.extensions"


@contextmanager
def running(floor_address: str, folder: Path) -> Iterator[str]:
    """Runs the bare Envoy inside the block. Yields host:port of its listener."""
    descriptors = folder / "floor.binpb"
    descriptors.write_bytes(_descriptors().SerializeToString())
    port = processes.free_port()
    path = folder / "bare_edge.json"
    path.write_text(json.dumps(_configuration(port, floor_address, descriptors)))
    log = folder / "bare_edge.log"
    with processes.started(config.command(path), log) as process:
        processes.await_listening(process, port, log)
        yield f"127.0.0.1:{port}"


def _descriptors() -> FileDescriptorSet:
    """The descriptors of the floor's method Empty, its HTTP path and the proto files they need."""
    file = FileDescriptorProto(name="floor.proto", package="bench", syntax="proto3")
    file.dependency.append(annotations_pb2.DESCRIPTOR.name)
    file.message_type.add(name="Nothing")
    package, _, name = floor.SERVICE.partition(".")
    service = file.service.add(name=name)
    message = f".{package}.Nothing"
    method = service.method.add(name="Empty", input_type=message, output_type=message)
    method.options.Extensions[annotations_pb2.http].post = PATH
    needed = (
        *annotations_pb2.DESCRIPTOR.dependencies,
        http_pb2.DESCRIPTOR,
        annotations_pb2.DESCRIPTOR,
    )
    files = {each.name: FileDescriptorProto.FromString(each.serialized_pb) for each in needed}
    return FileDescriptorSet(file=[*files.values(), file])


def _configuration(port: int, floor_address: str, descriptors: Path) -> dict[str, Any]:
    host, _, floor_port = floor_address.rpartition(":")
    manager = {
        "stat_prefix": "bare",
        "http_filters": [
            _extension(
                "filters.http.grpc_json_transcoder",
                "GrpcJsonTranscoder",
                proto_descriptor=str(descriptors),
                services=[floor.SERVICE],
                match_incoming_request_route=True,
            ),
            _extension("filters.http.router", "Router"),
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "bare",
                    "domains": ["*"],
                    "routes": [{"match": {"path": PATH}, "route": {"cluster": "floor"}}],
                }
            ]
        },
    }
    listener = {
        "address": _address("127.0.0.1", port),
        "filter_chains": [
            {
                "filters": [
                    _extension(
                        "filters.network.http_connection_manager",
                        "HttpConnectionManager",
                        **manager,
                    )
                ]
            }
        ],
    }
    over_http2 = _extension(
        "upstreams.http", "HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}}
    )
    endpoint = {"endpoint": {"address": _address(host, int(floor_port))}}
    cluster = {
        "name": "floor",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": over_http2["typed_config"]
        },
        "load_assignment": {"cluster_name": "floor", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _extension(package: str, message: str, **fields: object) -> dict[str, Any]:
    typed = {"@type": f"{_TYPES}.{package}.v3.{message}", **fields}
    return {"name": f"envoy.{package}", "typed_config": typed}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
