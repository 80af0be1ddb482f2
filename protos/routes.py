"""Derives the edge's routes and, in replies.py, its own errors from the protos.

The result is gen/evershell/edge/routes.json.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import grpc_web
import repeats
import size_limit
from cors import PREFLIGHT, PREFLIGHT_ANSWER
from deprecations import response_headers
from replies import UNPRINTABLE_STATUS, grpc_errors, grpc_local_replies, header, local_replies
from source import SERVICE, Binding, Protos

# Routes that the edge answers itself skip the filters that read bodies. These filters would reject
# some requests before the route is reached.
WITHOUT_BODY_FILTERS = {
    name: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
    for name in ("envoy.filters.http.filter_chain", "envoy.filters.http.grpc_json_transcoder")
}
# Turns on a filter that envoy.yaml has turned off.
FILTER_ON = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}
# Routes to the workers. A circuit breaker belongs to a cluster and a priority, so each class of
# calls has its own combination of the two (see envoy.yaml).
FIRST_ROUTE = {"cluster": "control_plane", "priority": "HIGH"}
SMALL_ROUTE = {"cluster": "control_plane", "priority": "DEFAULT"}
LONG_ROUTE = {"cluster": "control_plane_long", "priority": "HIGH"}
LARGE_ROUTE = {"cluster": "control_plane_long", "priority": "DEFAULT"}
# Unary methods that wait for the end of a task, so that a call may take as long as a stream.
WAITING_METHODS = frozenset({"SendMessage"})
# Tells a worker that the body may be large.
LARGE_BODY_HEADER = "x-evershell-large-body"

# The routes of this method come first, because Envoy tries routes in turn. No path of another
# method matches them.
HOT_METHOD = "CancelTask"

# A call may wait 30 s for a task, so it is answered within 35 s.
CALL_TIMEOUT = "35s"
# No limit, because a stream has no end.
STREAM_TIMEOUT = "0s"
# Longer than any pause in a stream, which sends a heartbeat after 4 s.
STREAM_IDLE_TIMEOUT = "300s"

# The listener joins a request's content type and content length into this header (see envoy.yaml).
CONTENT_HEADER = "x-evershell-content"
# A body is read as JSON if the request has no content type, a type of JSON, or the default type of
# curl. The default type of browsers is accepted only with an empty body.
ACCEPTED_CONTENT = (
    r"(?i)-?\|.*"
    r"|application/([^;]+\+)?json( *;.*)?\|.*"
    r"|application/x-www-form-urlencoded\|.*"
    r"|text/plain.*\|0"
)
GRPC_CONTENT = r"(?i)application/grpc.*"
# Headers of callers that a worker reads; a2a_routes.py has one more. The edge refuses values that
# are not printable ASCII: the worker's gRPC library would log a value that it cannot decode, and
# the value may be a credential.
READ_HEADERS = (
    "authorization",
    "idempotency-key",
    "last-event-id",
    "traceparent",
    "x-forwarded-for",
)
PRINTABLE_ASCII = "[ -~]*"
# A content length of at most 9,999 bytes.
SMALL_CONTENT = r".*\|\d{1,4}"
# If the size limit of a method is at most this, all its requests count as small. For other methods,
# the content length decides.
SMALL_METHOD_MAX_BYTES = 16_384

# Methods for probes and tools. They need no credential, so they have a cluster that serves only a
# few calls at a time, each for at most 5 s. Health and reflection have different priorities, so
# each has its own circuit breaker. A call of health counts against the circuit breaker only once
# its message has arrived: otherwise, callers who send no message could use up the limit.
# Health/Watch is not served, because its streams stay open and could use up the limit too. A client
# that gets UNIMPLEMENTED for Watch makes its calls without health checks.
REFLECTION = {
    "cluster": "introspection",
    "timeout": "5s",
    "max_stream_duration": {"max_stream_duration": "5s"},
}
HEALTH = REFLECTION | {"priority": "HIGH"}
INTROSPECTION_METHODS: dict[str, dict[str, Any]] = {
    "/grpc.health.v1.Health/Check": HEALTH,
    "/grpc.health.v1.Health/List": HEALTH,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": REFLECTION,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": REFLECTION,
}
# Enough for every request to these methods: a request names at most a service, a symbol or a file.
INTROSPECTION_REQUEST_BYTES = 4096


def edge_config(
    protos: Protos,
    other_routes: list[dict[str, Any]],
    other_size_limits: Mapping[str, int],
    other_classes: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """The content of gen/evershell/edge/routes.json.

    `other_routes` are the REST routes that are not bindings of the protos. `other_size_limits` has
    the gRPC methods that are not in the protos; a path that ends with a slash stands for all paths
    below it. `other_classes` has the routes of these methods.
    """
    rules = protos.rules()
    methods, first = protos.service.methods, protos.first_methods()
    size_limits = {
        f"/{SERVICE}/{method.name}": protos.max_request_bytes(method) for method in methods
    }
    size_limits |= dict.fromkeys(INTROSPECTION_METHODS, INTROSPECTION_REQUEST_BYTES)
    size_limits |= other_size_limits
    grpc_errors_of_edge = grpc_local_replies(rules, size_limits)
    return {
        # The edge puts this route before all others, even before the routes of the documents.
        "preflight_route": answer({"prefix": "/", "headers": PREFLIGHT}, 200, PREFLIGHT_ANSWER),
        "routes": [
            _several_hosts(),
            *(answer_text(match, 400, text) for match, text in _unprintable_headers()),
            *_routes(protos),
            *(
                route
                for method in methods
                for route in repeats.routes(
                    grpc_web.route(
                        f"/{SERVICE}/{method.name}",
                        CONTENT_HEADER,
                        _action(method, first),
                        size_limit.of_grpc(protos.max_request_bytes(method)),
                    )
                    | response_headers(protos, method),
                    protos.repeat(method),
                )
            ),
            *other_routes,
            # CONNECT has no path, and its body has no end for which the filters could wait. With
            # this route, Envoy refuses it at once: with 403, and not with the 405 of the route.
            answer({"connect_matcher": {}}, 405, {"allow": "GET, HEAD, OPTIONS, POST"}),
            *_near_paths(protos),
            *_wrong_methods(protos),
            answer({"prefix": "/"}, 404, {}),
        ],
        "without_body_filters": WITHOUT_BODY_FILTERS,
        "local_replies": [*map(grpc_web.local_reply, grpc_errors_of_edge), *local_replies(rules)],
        "grpc_errors": grpc_errors(rules),
        "grpc_routes": _grpc_routes(
            size_limits,
            {f"/{SERVICE}/{method.name}": protos.repeat(method) for method in methods},
            {f"/{SERVICE}/{method.name}": response_headers(protos, method) for method in methods},
            {f"/{SERVICE}/{method.name}": class_of(method, first) for method in methods}
            | dict(other_classes),
        ),
        # Requests that are not gRPC get the envelopes of REST.
        "grpc_local_replies": [*grpc_errors_of_edge, *local_replies(rules)],
    }


def _by_path(protos: Protos) -> dict[str, list[Binding]]:
    """The bindings of each path, a regular expression. Those of CancelTask come first."""
    by_path: dict[str, list[Binding]] = defaultdict(list)
    for binding in sorted(protos.bindings(), key=lambda binding: binding.rpc.name != HOT_METHOD):
        by_path[re.sub(r"\{[^}]*\}", "[^/]+", binding.path)].append(binding)
    return by_path


def _routes(protos: Protos) -> Iterator[dict[str, Any]]:
    """The routes of the methods of each path."""
    first = protos.first_methods()
    for regex, group in _by_path(protos).items():
        path = {"safe_regex": {"regex": regex}}
        for binding in group:
            refusals = (_unsupported_body(path, binding), _misplaced_query(path, binding))
            yield from filter(None, refusals)
            headers = response_headers(protos, binding.rpc)
            yield from (call | headers for call in _calls(path, binding, first))


def _wrong_methods(protos: Protos) -> Iterator[dict[str, Any]]:
    """For each path, refuses all methods that it does not have."""
    for regex, group in _by_path(protos).items():
        methods = (
            {"OPTIONS"}
            | {binding.method for binding in group}
            | {"HEAD" for binding in group if _has_head(binding)}
        )
        calls = " or ".join(f"{binding.method} {binding.path}" for binding in group)
        yield answer_text(
            {"safe_regex": {"regex": regex}},
            405,
            f" Use {calls}.",
            {"allow": ", ".join(sorted(methods))},
        )


def _grpc_routes(
    size_limits: Mapping[str, int],
    when_to_repeat: Mapping[str, str],
    headers: Mapping[str, dict[str, Any]],
    classes: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """The routes of the gRPC listener. The edge answers UNIMPLEMENTED to all other methods."""
    refusals = [
        {"match": match, "direct_response": {"status": UNPRINTABLE_STATUS}}
        for match, _ in _unprintable_headers()
    ]
    return refusals + [
        route
        for path, limit in size_limits.items()
        for route in repeats.routes(
            {
                "match": {"prefix" if path.endswith("/") else "path": path, "grpc": {}},
                "route": INTROSPECTION_METHODS.get(path)
                # No timeout here: the workers enforce the deadline that the client sets.
                or classes[path] | {"timeout": STREAM_TIMEOUT},
                "typed_per_filter_config": size_limit.of_grpc(
                    limit, waits_for_body=INTROSPECTION_METHODS.get(path) is HEALTH
                ),
            }
            | headers.get(path, {}),
            when_to_repeat.get(path, repeats.ALWAYS),
        )
    ]


def answer(match: dict[str, Any], status: int, headers: dict[str, str]) -> dict[str, Any]:
    """A route that the edge answers itself, regardless of the body."""
    # Envoy turns the answer to an application/grpc request into a gRPC answer. The Lua filter
    # restores the HTTP status from this header.
    headers = headers | {"x-evershell-status": str(status)}
    return {
        "match": match,
        "direct_response": {"status": status},
        "response_headers_to_add": [header(name, value) for name, value in headers.items()],
        "typed_per_filter_config": WITHOUT_BODY_FILTERS,
    }


def answer_text(
    match: dict[str, Any], status: int, text: str, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Like `answer`, with a text that the message of the error quotes."""
    route = answer(match, status, headers or {})
    route["direct_response"]["body"] = {"inline_string": text}
    return route


def _method(binding: Binding) -> dict[str, Any]:
    if _has_head(binding):
        return {
            "name": ":method",
            "string_match": {"safe_regex": {"regex": f"{binding.method}|HEAD"}},
        }
    return {"name": ":method", "string_match": {"exact": binding.method}}


def _has_head(binding: Binding) -> bool:
    """Whether HEAD is supported: for every GET that is not a stream."""
    return binding.method == "GET" and not binding.streams


def _unsupported_body(path: dict[str, Any], binding: Binding) -> dict[str, Any]:
    """Answers 415 to a content type that the method does not accept."""
    content: dict[str, Any] = {"name": CONTENT_HEADER}
    if binding.has_body:
        accepted = {"string_match": {"safe_regex": {"regex": ACCEPTED_CONTENT}}}
        content |= accepted | {"invert_match": True}
    else:
        content |= {"string_match": {"safe_regex": {"regex": GRPC_CONTENT}}}
    return answer(path | {"headers": [_method(binding), content]}, 415, {})


def _misplaced_query(path: dict[str, Any], binding: Binding) -> dict[str, Any] | None:
    """Refuses a query that could override a field of the path.

    The transcoder prefers the query (measured on Envoy 1.40). With `body: "*"` no field comes from
    the query, so every query is refused. Without a body, names are compared as the client wrote
    them, a name with an escape is refused as well, and a path without fields needs no route (None).
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
        for name in (field, re.sub(r"_(\w)", lambda match: match[1].upper(), field))
    )
    if not names:
        return None
    regex = rf"[^?]*\?(.*&)?([^=&]*%[^=&]*|{names})([=&].*)?"
    return _query_refusal(
        path,
        binding,
        regex,
        "A query parameter has the name of a field of the path, or an escape in its name.",
    )


def _near_paths(protos: Protos) -> Iterator[dict[str, Any]]:
    """Refuses the paths of the usual mistakes, and says what the path should be."""
    cancel = " or ".join(
        f"POST {binding.path}" for binding in protos.bindings() if binding.rpc.name == HOT_METHOD
    )
    for regex, text in (
        (r".+/(\?.*)?", "Remove the slash at the end of the path."),
        (
            r"/v1/(workspaces/[^/]+(/tasks)?|tasks/[^/]+)/cancel(\?.*)?|/v1.*:cancel(\?.*)?",
            f"Use {cancel}.",
        ),
        (r"(/v1)?/workspace(/.*)?(\?.*)?", "The path has /workspaces, not /workspace."),
        (r"/(workspaces|tasks|webhooks|events|hold)([/?].*)?", "Begin the path with /v1."),
    ):
        near = {"name": ":path", "string_match": {"safe_regex": {"regex": regex}}}
        yield answer_text({"prefix": "/", "headers": [near]}, 404, f" {text}")


def _several_hosts() -> dict[str, Any]:
    """Refuses more than one Host header, because two readers could choose different ones.

    Envoy joins them with a comma before it matches routes.
    """
    hosts = {"name": ":authority", "string_match": {"contains": ","}}
    match = {"prefix": "/", "headers": [hosts]}
    return answer_text(match, 400, "The request has more than one Host header.")


def _unprintable_headers() -> Iterator[tuple[dict[str, Any], str]]:
    """For each header, yields the match of requests whose value is not printable ASCII, and the
    text of the answer.
    """
    for name in READ_HEADERS:
        printable = {"name": name, "string_match": {"safe_regex": {"regex": PRINTABLE_ASCII}}}
        match = {"prefix": "/", "headers": [printable | {"invert_match": True}]}
        yield match, f"The header {name} has a character that is not printable ASCII."


def _query_refusal(path: dict[str, Any], binding: Binding, regex: str, text: str) -> dict[str, Any]:
    query = {"name": ":path", "string_match": {"safe_regex": {"regex": regex}}}
    return answer_text(path | {"headers": [_method(binding), query]}, 400, text)


def _calls(path: dict[str, Any], binding: Binding, first: frozenset[str]) -> list[dict[str, Any]]:
    """The route to the workers, or two routes if bodies can be large: one for small bodies and one
    for all others.
    """
    if binding.max_request_bytes <= SMALL_METHOD_MAX_BYTES or not binding.has_body:
        routes = [_call(path, binding, first, [])]
    else:
        is_small = {
            "name": CONTENT_HEADER,
            "string_match": {"safe_regex": {"regex": SMALL_CONTENT}},
        }
        large = _call(path, binding, first, [])
        # Large calls of FIRST_ROUTE keep this route: no other calls count against its circuit
        # breaker.
        if class_of(binding.rpc, first) is not FIRST_ROUTE:
            large["route"] |= LARGE_ROUTE
        large.setdefault("request_headers_to_add", []).append(header(LARGE_BODY_HEADER, "1"))
        routes = [_call(path, binding, first, [is_small]), large]
    when = repeats.ALWAYS if binding.names_task else binding.repeat
    return [each for route in routes for each in repeats.routes(route, when)]


def class_of(method: Any, first: frozenset[str]) -> dict[str, Any]:
    """The route of small calls of a method of any service. `first` has the names of the
    methods whose calls are served first.
    """
    if method.server_streaming or method.name in WAITING_METHODS:
        return LONG_ROUTE
    return FIRST_ROUTE if method.name in first else SMALL_ROUTE


def _action(method: Any, first: frozenset[str]) -> dict[str, Any]:
    """Sends a call to the workers, with the time limits of the REST listener."""
    if method.server_streaming:
        times = {"timeout": STREAM_TIMEOUT, "idle_timeout": STREAM_IDLE_TIMEOUT}
    else:
        times = {"timeout": CALL_TIMEOUT}
    return class_of(method, first) | times


def _call(
    path: dict[str, Any],
    binding: Binding,
    first: frozenset[str],
    headers: list[dict[str, Any]],
) -> dict[str, Any]:
    route: dict[str, Any] = {
        "match": path | {"headers": [_method(binding), *headers]},
        "route": _action(binding.rpc, first),
        "typed_per_filter_config": size_limit.of(binding.max_request_bytes),
    }
    for_lua: dict[str, Any] = {}
    if binding.success_status != 200:
        for_lua["success_status"] = str(binding.success_status)
    if _has_head(binding):
        route["typed_per_filter_config"]["evershell.head"] = FILTER_ON
    metadata: dict[str, Any] = {
        "evershell": {"max_request_bytes": f"{binding.max_request_bytes:,}"}
    }
    if for_lua:
        metadata["envoy.filters.http.lua"] = for_lua
    route["metadata"] = {"filter_metadata": metadata}
    if binding.names_task:
        # Tells workers that the call names its task, because a call can fail before a worker has
        # read its request.
        route["request_headers_to_add"] = [header("x-evershell-task", "named")]
    return route
