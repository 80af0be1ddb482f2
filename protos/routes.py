"""Derives what the edge must know from the protos: its routes, and (in replies.py) its own errors.
Written to gen/routes.json.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from replies import grpc_errors, grpc_local_replies, header, local_replies
from source import SERVICE, Binding, Protos

# Routes that the edge answers itself skip the filters that read bodies. These filters would reject
# some requests before the route is reached.
WITHOUT_BODY_FILTERS = {
    name: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    for name in ("envoy.filters.http.filter_chain", "envoy.filters.http.grpc_json_transcoder")
}
# Routes to the workers. Priority HIGH has the circuit breaker for small requests, DEFAULT the one
# for large requests.
ROUTE = {"cluster": "control_plane", "priority": "HIGH"}

# A call may wait for a task for 30 s; beyond 35 s nothing is coming. A stream has no end: 0 turns
# the limit off.
CALL_TIMEOUT = "35s"
STREAM_TIMEOUT = "0s"
# Longer than any pause in a stream, which says something every 15 s.
STREAM_IDLE_TIMEOUT = "300s"

# The listener joins a request's content type and content length into this header (see envoy.yaml).
CONTENT = "x-evershell-content"
# JSON, or nothing said; what curl calls any body unless told otherwise; what browsers name by
# themselves when there is none.
READABLE_BODY = r"(?i)-?\|.*|application/([^;]+\+)?json( *;.*)?\|.*|application/x-www-form-urlencoded\|.*|text/plain.*\|0"
# Requests of methods with at most this limit are always small; for other methods the content length
# decides (at most 9,999).
SMALL_BYTES = 16_384
SMALL_BODY = r".*\|\d{1,4}"
GRPC_BODY = r"(?i)application/grpc.*"

# A browser asks before it sends a token to another site. Envoy's own filter for this leaves out the
# paths that the edge answers itself; every site may call, with a token of its own, so that the
# answer is the same for all (see also envoy.yaml).
PREFLIGHT = [
    {"name": ":method", "string_match": {"exact": "OPTIONS"}},
    {"name": "access-control-request-method", "present_match": True},
]
PREFLIGHT_ANSWER = {
    "access-control-allow-headers": "authorization, content-type",
    "access-control-max-age": "600",
}

SIZE_LIMIT = "envoy.filters.http.filter_chain"
FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
# The prefix of each message: the compression flag and the length.
GRPC_PREFIX_BYTES = 5

# Methods for probes and tools. They need no credential, so a cluster of their own serves only a few
# calls at a time. Its circuit breaker of priority DEFAULT is for streams that stay open, the one of
# priority HIGH for calls that end soon.
INTROSPECTION = "introspection"
PROBE = {
    "cluster": INTROSPECTION,
    "priority": "HIGH",
    "timeout": "5s",
    "max_stream_duration": {"max_stream_duration": "5s"},
}
COMMON_METHODS: dict[str, dict[str, Any]] = {
    "/grpc.health.v1.Health/Check": PROBE,
    "/grpc.health.v1.Health/List": PROBE,
    "/grpc.health.v1.Health/Watch": {"cluster": INTROSPECTION, "timeout": STREAM_TIMEOUT},
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": PROBE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": PROBE,
}
# These requests hold the name of a service or a file.
COMMON_REQUEST_BYTES = 4096


def edge(protos: Protos) -> dict[str, Any]:
    """What gen/routes.json holds."""
    rules = protos.rules()
    methods = protos.service.methods
    size_limits = {
        f"/{SERVICE}/{method.name}": protos.max_request_bytes(method) for method in methods
    }
    size_limits |= dict.fromkeys(COMMON_METHODS, COMMON_REQUEST_BYTES)
    return {
        "routes": _routes(protos.bindings()),
        "without_body_filters": WITHOUT_BODY_FILTERS,
        "local_replies": local_replies(rules),
        "grpc_errors": grpc_errors(rules),
        "grpc_routes": _grpc_routes(size_limits),
        "grpc_local_replies": grpc_local_replies(rules, size_limits),
    }


def _routes(bindings: list[Binding]) -> list[dict[str, Any]]:
    """Of each path: its methods, a browser's question about them, then 405 for all others; at the
    end 404 for every other path.
    """
    by_path: dict[str, list[Binding]] = defaultdict(list)
    for binding in bindings:
        by_path[re.sub(r"\{[^}]*\}", "[^/]+", binding.path)].append(binding)
    routes: list[dict[str, Any]] = [_two_hosts()]
    for regex, group in by_path.items():
        path = {"safe_regex": {"regex": regex}}
        for binding in group:
            refusals = (_unsupported_body(path, binding), _misplaced_query(path, binding))
            routes += [*filter(None, refusals), *_calls(path, binding)]
        methods = (
            {"OPTIONS"}
            | {binding.method for binding in group}
            | {"HEAD" for binding in group if _has_head(binding)}
        )
        allow = ", ".join(sorted(methods))
        routes.append(
            _answer(
                path | {"headers": PREFLIGHT},
                200,
                {"access-control-allow-methods": allow} | PREFLIGHT_ANSWER,
            )
        )
        routes.append(_answer(path, 405, {"allow": allow}))
    # A tunnel has no path, and no end of its body for which the filters could wait: with a route,
    # Envoy refuses it at once (403).
    tunnel = _answer({"connect_matcher": {}}, 405, {"allow": "GET, HEAD, OPTIONS, POST"})
    return [*routes, tunnel, _answer({"prefix": "/"}, 404, {})]


def _grpc_routes(size_limits: Mapping[str, int]) -> list[dict[str, Any]]:
    """The routes of the gRPC listener: one for each method, so that the edge answers UNIMPLEMENTED
    to any other.
    """
    # No timeout here: the workers enforce the deadline that the client sets.
    usual = ROUTE | {"timeout": STREAM_TIMEOUT}
    return [
        {
            "match": {"path": path, "grpc": {}},
            "route": COMMON_METHODS.get(path, usual),
            "typed_per_filter_config": _size_limit(limit + GRPC_PREFIX_BYTES),
        }
        for path, limit in size_limits.items()
    ]


def _size_limit(max_request_bytes: int) -> dict[str, Any]:
    """The size limit of a route. Its filter cannot be configured by route, so it is put into a
    chain, which can.
    """
    name = "envoy.filters.http.body_size_limit"
    config = {
        "@type": f"{FILTERS}.body_size_limit.v3.BodySizeLimit",
        "max_request_bytes": max_request_bytes,
    }
    chain = {"filters": [{"name": name, "typed_config": config}]}
    return {
        SIZE_LIMIT: {
            "@type": f"{FILTERS}.filter_chain.v3.FilterChainConfigPerRoute",
            "filter_chain": chain,
        }
    }


def _answer(match: dict[str, Any], status: int, headers: dict[str, str]) -> dict[str, Any]:
    """A route that answers by itself, whatever the body."""
    # Envoy answers a request that calls itself application/grpc in gRPC; by this header the Lua
    # filter finds the status again.
    headers = headers | {"x-evershell-status": str(status)}
    return {
        "match": match,
        "direct_response": {"status": status},
        "response_headers_to_add": [header(name, value) for name, value in headers.items()],
        "typed_per_filter_config": WITHOUT_BODY_FILTERS,
    }


def _method(binding: Binding) -> dict[str, Any]:
    if _has_head(binding):
        return {
            "name": ":method",
            "string_match": {"safe_regex": {"regex": f"{binding.method}|HEAD"}},
        }
    return {"name": ":method", "string_match": {"exact": binding.method}}


def _has_head(binding: Binding) -> bool:
    """HEAD is GET without the body; a stream has nothing before its body."""
    return binding.method == "GET" and not binding.streams


def _unsupported_body(path: dict[str, Any], binding: Binding) -> dict[str, Any]:
    content: dict[str, Any] = {"name": CONTENT}
    if binding.has_body:
        content |= {"string_match": {"safe_regex": {"regex": READABLE_BODY}}, "invert_match": True}
    else:
        content |= {"string_match": {"safe_regex": {"regex": GRPC_BODY}}}
    return _answer(path | {"headers": [_method(binding), content]}, 415, {})


def _misplaced_query(path: dict[str, Any], binding: Binding) -> dict[str, Any] | None:
    """Refuses what the transcoder would let win over the path (measured): a query that names a
    field of the path's.

    With `body: "*"` no field is the query's, so that none is taken. Elsewhere names are compared as
    the client wrote them, and a name with an escape in it is refused as well.
    """
    if binding.has_body:
        return _query_refusal(
            path,
            binding,
            r"[^?]*\?.+",
            "This method takes its fields from the path and the body, not from a query.",
        )
    fields = re.findall(r"\{(\w+)", binding.path)
    names = "|".join(
        name
        for field in fields
        for name in (field, re.sub(r"_(\w)", lambda found: found[1].upper(), field))
    )
    if not names:
        return None
    regex = rf"[^?]*\?(.*&)?([^=&]*%[^=&]*|{names})([=&].*)?"
    return _query_refusal(
        path,
        binding,
        regex,
        "A query parameter has the name of a field that the path gives, or an escape in its name.",
    )


def _two_hosts() -> dict[str, Any]:
    """Two Host headers reach the routes as one, with a comma: whose host is meant, each reader
    would decide for itself.
    """
    hosts = {"name": ":authority", "string_match": {"contains": ","}}
    route = _answer({"prefix": "/", "headers": [hosts]}, 400, {})
    route["direct_response"]["body"] = {"inline_string": "There is more than one Host header."}
    return route


def _query_refusal(path: dict[str, Any], binding: Binding, regex: str, text: str) -> dict[str, Any]:
    query = {"name": ":path", "string_match": {"safe_regex": {"regex": regex}}}
    route = _answer(path | {"headers": [_method(binding), query]}, 400, {})
    route["direct_response"]["body"] = {"inline_string": text}
    return route


def _calls(path: dict[str, Any], binding: Binding) -> list[dict[str, Any]]:
    """The route to the workers. If bodies may be large, one route for small bodies and one for all
    others.
    """
    if binding.max_request_bytes <= SMALL_BYTES or not binding.has_body:
        return [_call(path, binding, [])]
    is_small = {"name": CONTENT, "string_match": {"safe_regex": {"regex": SMALL_BODY}}}
    large = _call(path, binding, [])
    large["route"]["priority"] = "DEFAULT"
    return [_call(path, binding, [is_small]), large]


def _call(path: dict[str, Any], binding: Binding, headers: list[dict[str, Any]]) -> dict[str, Any]:
    action = ROUTE | {"timeout": STREAM_TIMEOUT if binding.streams else CALL_TIMEOUT}
    if binding.streams:
        action["idle_timeout"] = STREAM_IDLE_TIMEOUT
    route: dict[str, Any] = {
        "match": path | {"headers": [_method(binding), *headers]},
        "route": action,
        "typed_per_filter_config": _size_limit(binding.max_request_bytes),
    }
    facts: dict[str, Any] = {}
    if binding.success_status != 200:
        facts["success_status"] = str(binding.success_status)
    if _has_head(binding):
        facts["has_head"] = True
    metadata: dict[str, Any] = {
        "evershell": {"max_request_bytes": f"{binding.max_request_bytes:,}"}
    }
    if facts:
        metadata["envoy.filters.http.lua"] = facts
    route["metadata"] = {"filter_metadata": metadata}
    return route
