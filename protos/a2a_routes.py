"""The edge's routes for A2A (https://a2a-protocol.org), and the descriptor set of its transcoder.

Both come from the bindings of `lf.a2a.v1.A2AService`. Each path exists twice below /a2a: as A2A
defines it, and after the id of a workspace, which is the tenant.
"""

import re
from collections import defaultdict
from typing import Any

import size_limit
from a2a.types import a2a_pb2
from google.api import annotations_pb2, httpbody_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from replies import header
from routes import (
    ACCEPTED_CONTENT,
    CALL_TIMEOUT,
    CONTENT_HEADER,
    FIRST_ROUTE,
    LARGE_BODY_HEADER,
    LONG_ROUTE,
    PRINTABLE_ASCII,
    SMALL_CONTENT,
    SMALL_METHOD_MAX_BYTES,
    SMALL_ROUTE,
    STREAM_TIMEOUT,
    answer,
    answer_text,
    class_of,
)

_PREFIX = "/a2a"
_SERVICE = a2a_pb2.DESCRIPTOR.services_by_name["A2AService"].full_name
# The name of all these routes. It appears in spans, and the edge's configuration adds the filters
# of A2A to routes with this name.
NAME = _SERVICE
_METHODS_WITH_MESSAGE = ("SendMessage", "SendStreamingMessage")
# The size limits of requests, in bytes.
_MESSAGE_BYTES, _OTHER_BYTES = 1_048_576, SMALL_METHOD_MAX_BYTES
# SendMessage sends nothing until its task has ended. A stream has no heartbeats, so it sends
# nothing during an iteration, which takes at most 12 minutes unless the agents' configuration
# allows more.
_SILENCE = {"idle_timeout": "3600s"}
_LONG = LONG_ROUTE | _SILENCE | {"timeout": STREAM_TIMEOUT}
_ROUTES = {
    "message": _LONG,
    "stream": _LONG,
    "first": FIRST_ROUTE | {"timeout": CALL_TIMEOUT},
    "call": SMALL_ROUTE | {"timeout": CALL_TIMEOUT},
    "card": SMALL_ROUTE | {"timeout": CALL_TIMEOUT},
}

# The public card. In A2A, a host has one card at this path; here, each workspace has one.
_CARD_PATH = "/{tenant}/.well-known/agent-card.json"
# Matches a segment of a path, without the verb, which begins with a colon.
_SEGMENT = "[^/:]+"
# Names of query parameters that are refused, because the transcoder would use their values instead
# of values in the path. A name with a percent escape is refused too: it could be one of these names
# in its escaped form.
_REPLACING_NAMES = (
    (f"{_PREFIX}/", "id|taskId|task_id|[^=&]*%[^=&]*"),
    (rf"{_PREFIX}/[^?/:]+/(tasks|message:|e|\.w)", "tenant"),
)


def descriptors() -> bytes:
    """The descriptor set with which the edge reads paths and bodies and writes answers."""
    return _descriptors().SerializeToString(deterministic=True)


def grpc_classes(first: frozenset[str]) -> dict[str, dict[str, Any]]:
    """The routes of methods over gRPC. The last route is for all other methods.

    For `first`, see class_of.
    """
    return {
        **{
            f"/{_SERVICE}/{method.name}": route | _SILENCE if route is LONG_ROUTE else route
            for method in a2a_pb2.DESCRIPTOR.services_by_name["A2AService"].methods
            if (route := class_of(method, first)) is not SMALL_ROUTE
        },
        f"/{_SERVICE}/": SMALL_ROUTE,
    }


def grpc_size_limits(first: frozenset[str]) -> dict[str, int]:
    """The edge's size limits over gRPC, by path: the largest limit, for every method.

    Some methods have a smaller limit, which the workers enforce.
    """
    return dict.fromkeys(grpc_classes(first), _MESSAGE_BYTES)


def routes(first: frozenset[str]) -> list[dict[str, Any]]:
    """The routes: first refusals, then routes to the workers, then 405 and 404.

    Paths with the same treatment share a route. With one route for each path, there would be more
    than a hundred.
    """
    calls: dict[tuple[str, str], set[str]] = defaultdict(set)
    methods: dict[str, set[str]] = defaultdict(set)
    (service,) = _descriptors().file[-1].service
    for rpc in service.method:
        rule = rpc.options.Extensions[annotations_pb2.http]
        for each in (rule, *rule.additional_bindings):
            verb = str(each.WhichOneof("pattern"))
            path = getattr(each, verb)
            below = path.removeprefix(_PREFIX).removeprefix("/{tenant}").removeprefix("/")
            regex = re.sub(r"\{[^}]*\}", _SEGMENT, below.replace(".", r"\."))
            kind = "card" if path == _PREFIX + _CARD_PATH else _kind(rpc, first)
            calls[kind, verb.upper()].add(regex)
            methods[regex].add(verb.upper())
    by_methods: dict[str, set[str]] = defaultdict(set)
    for regex, allowed in methods.items():
        by_methods[", ".join(sorted({"OPTIONS", *allowed}))].add(regex)
    every = [
        *_refusals(),
        *(route for key, paths in sorted(calls.items()) for route in _calls(*key, _match(paths))),
        *(
            answer(_match(paths), 405, {"allow": allow})
            for allow, paths in sorted(by_methods.items())
        ),
        answer({"prefix": f"{_PREFIX}/"}, 404, {}),
    ]
    return [{"name": NAME, **route} for route in every]


def _descriptors() -> descriptor_pb2.FileDescriptorSet:
    """The files that A2A's file imports, then A2A's file with the changes for the edge."""
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    for file in (httpbody_pb2.DESCRIPTOR, a2a_pb2.DESCRIPTOR):
        _add(file, files)
    a2a = files[a2a_pb2.DESCRIPTOR.name]
    a2a.dependency.append(httpbody_pb2.DESCRIPTOR.name)
    for rpc in a2a.service[0].method:
        rule = rpc.options.Extensions[annotations_pb2.http]
        match rpc.name:
            case "SubscribeToTask":
                # The specification says POST (section 11.3.2), its proto says GET.
                for path in (rule.get, *(each.get for each in rule.additional_bindings)):
                    rule.additional_bindings.add(post=path)
            case "GetExtendedAgentCard":
                rule.additional_bindings.add(get=_CARD_PATH)
            case "ListTasks":
                # In A2A, a page always has its token, even an empty one, but its tasks have no
                # artifacts unless the client asks for them. The transcoder can only print all empty
                # fields or none, so the worker writes the JSON.
                rpc.output_type = f".{httpbody_pb2.HttpBody.DESCRIPTOR.full_name}"
        for each in (rule, *rule.additional_bindings):
            verb = str(each.WhichOneof("pattern"))
            setattr(each, verb, _PREFIX + getattr(each, verb))
    return descriptor_pb2.FileDescriptorSet(file=files.values())


def _add(file: FileDescriptor, files: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    """Adds a file after the files that it imports."""
    if file.name not in files:
        for each in file.dependencies:
            _add(each, files)
        files[file.name] = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(files[file.name])


def _kind(rpc: descriptor_pb2.MethodDescriptorProto, first: frozenset[str]) -> str:
    if rpc.name in _METHODS_WITH_MESSAGE:
        return "message"
    if rpc.name in first:
        return "first"
    return "stream" if rpc.server_streaming else "call"


def _match(paths: set[str]) -> dict[str, Any]:
    """Matches these paths below the prefix, with and without a tenant."""
    return {"safe_regex": {"regex": f"{_PREFIX}(/{_SEGMENT})?/({'|'.join(sorted(paths))})"}}


def _refusals() -> list[dict[str, Any]]:
    """Refuses content types, queries and versions that the service would misread."""

    def having(name: str, regex: str, *, invert: bool = False) -> dict[str, Any]:
        value = {"name": name, "string_match": {"safe_regex": {"regex": regex}}}
        return {
            "prefix": f"{_PREFIX}/",
            "headers": [value | {"invert_match": True} if invert else value],
        }

    return [
        answer(having(CONTENT_HEADER, ACCEPTED_CONTENT, invert=True), 415, {}),
        *(
            answer_text(
                having(":path", rf"{path}[^?]*\?(.*&)?({names})([=&].*)?"),
                400,
                "A query parameter has the name of a field of the path, or an escape in its name.",
            )
            for path, names in _REPLACING_NAMES
        ),
        answer_text(
            # The edge unescapes the parameter and copies it into the header a2a-version.
            having(":path", rf"{_PREFIX}/[^?]*\?(.*&)?A2A-Version=[^&]*%.*"),
            400,
            "The query parameter A2A-Version has an escape.",
        ),
        answer_text(
            having("a2a-version", PRINTABLE_ASCII, invert=True),
            400,
            "The header a2a-version has a character that is not printable ASCII.",
        ),
    ]


def _calls(kind: str, method: str, path: dict[str, Any]) -> list[dict[str, Any]]:
    """The route to the workers. If bodies can be large, small ones have a route of their own."""
    limit = _MESSAGE_BYTES if kind == "message" else _OTHER_BYTES
    is_method = {"name": ":method", "string_match": {"exact": method}}
    route: dict[str, Any] = {
        "match": path | {"headers": [is_method]},
        "route": _ROUTES[kind],
        "metadata": {"filter_metadata": {"evershell": {"max_request_bytes": f"{limit:,}"}}},
        "typed_per_filter_config": size_limit.of(limit),
    }
    if kind == "card":
        return [route | {"request_headers_to_add": [header("x-evershell-public-card", "1")]}]
    if kind != "message":
        return [route]
    is_small = {"name": CONTENT_HEADER, "string_match": {"safe_regex": {"regex": SMALL_CONTENT}}}
    small = route | {"match": path | {"headers": [is_method, is_small]}}
    # The route for large bodies stays in the class LONG_ROUTE. Once its body has arrived, a call
    # may wait for minutes, and in LARGE_ROUTE it would count against the circuit breaker all that
    # time.
    return [small, route | {"request_headers_to_add": [header(LARGE_BODY_HEADER, "1")]}]
