"""Derives what the edge must know from the protos: routes, and how its own errors look. Written to gen/routes.json."""

import re
from collections import defaultdict
from http import HTTPStatus
from typing import Any

from google.rpc import code_pb2
from source import Binding, Protos, Rule

CLUSTER = "control_plane"

# A call may wait for a task for 30 s; beyond 35 s nothing is coming. A stream has no end: 0 turns the limit off.
CALL_TIMEOUT = "35s"
STREAM_TIMEOUT = "0s"
# Longer than any pause in a stream, which says something every 15 s.
STREAM_IDLE_TIMEOUT = "300s"

# The listener joins a request's content type and content length into this header (see envoy.yaml).
CONTENT = "x-evershell-content"
# JSON, or nothing said; what curl calls any body unless told otherwise; what browsers name by themselves when there is none.
READABLE_BODY = r"(?i)-?\|.*|application/([^;]+\+)?json( *;.*)?\|.*|application/x-www-form-urlencoded\|.*|text/plain.*\|0"
GRPC_BODY = r"(?i)application/grpc.*"

# The edge's reader says what it does not like about a request; every other message is the first sentence of its code's comment.
MESSAGES = {"validation_error": "The request cannot be read: %LOCAL_REPLY_BODY%"}

# A browser asks before it sends a token to another site. Envoy's own filter for this leaves out the paths that the edge answers
# itself; every site may call, with a token of its own, so that the answer is the same for all (see also envoy.yaml).
PREFLIGHT = [
    {"name": ":method", "string_match": {"exact": "OPTIONS"}},
    {"name": "access-control-request-method", "present_match": True},
]
PREFLIGHT_ANSWER = {"access-control-allow-headers": "authorization, content-type", "access-control-max-age": "600"}

BODY_FILTERS = ("envoy.filters.http.buffer", "envoy.filters.http.grpc_json_transcoder")
FILTER_CONFIG = "type.googleapis.com/envoy.config.route.v3.FilterConfig"


def edge(protos: Protos) -> dict[str, Any]:
    """What gen/routes.json holds."""
    rules = protos.rules()
    return {
        "routes": _routes(protos.bindings()),
        "local_replies": _local_replies(rules),
        "grpc_errors": _grpc_errors(rules),
    }


def _routes(bindings: list[Binding]) -> list[dict[str, Any]]:
    """Of each path: its methods, a browser's question about them, then 405 for all others; at the end 404 for every other path."""
    by_path: dict[str, list[Binding]] = defaultdict(list)
    for binding in bindings:
        by_path[re.sub(r"\{[^}]*\}", "[^/]+", binding.path)].append(binding)
    routes: list[dict[str, Any]] = []
    for regex, group in by_path.items():
        path = {"safe_regex": {"regex": regex}}
        for binding in group:
            refusals = (_unsupported_body(path, binding), _misplaced_query(path, binding))
            routes += [*filter(None, refusals), _call(path, binding)]
        allow = ", ".join(sorted({binding.method for binding in group} | {"OPTIONS"}))
        routes.append(_answer(path | {"headers": PREFLIGHT}, 200, {"access-control-allow-methods": allow} | PREFLIGHT_ANSWER))
        routes.append(_answer(path, 405, {"allow": allow}))
    # A tunnel has no path, and no end of its body for which the filters could wait: with a route, Envoy refuses it at once (403).
    tunnel = _answer({"connect_matcher": {}}, 405, {"allow": "GET, OPTIONS, POST"})
    return [*routes, tunnel, _answer({"prefix": "/"}, 404, {})]


def _answer(match: dict[str, Any], status: int, headers: dict[str, str]) -> dict[str, Any]:
    """A route that answers by itself, whatever the body: the filters that read bodies would find fault with it first."""
    # Envoy answers a request that calls itself application/grpc in gRPC; by this header the Lua filter finds the status again.
    headers = headers | {"x-evershell-status": str(status)}
    return {
        "match": match,
        "direct_response": {"status": status},
        "response_headers_to_add": [_header(name, value) for name, value in headers.items()],
        "typed_per_filter_config": {name: {"@type": FILTER_CONFIG, "disabled": True} for name in BODY_FILTERS},
    }


def _header(name: str, value: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _method(binding: Binding) -> dict[str, Any]:
    return {"name": ":method", "string_match": {"exact": binding.method}}


def _unsupported_body(path: dict[str, Any], binding: Binding) -> dict[str, Any]:
    content: dict[str, Any] = {"name": CONTENT}
    if binding.has_body:
        content |= {"string_match": {"safe_regex": {"regex": READABLE_BODY}}, "invert_match": True}
    else:
        content |= {"string_match": {"safe_regex": {"regex": GRPC_BODY}}}
    return _answer(path | {"headers": [_method(binding), content]}, 415, {})


def _misplaced_query(path: dict[str, Any], binding: Binding) -> dict[str, Any] | None:
    """Refuses what the transcoder would let win over the path (measured): a query that names a field of the path's.

    With `body: "*"` no field is the query's, so that none is taken. Elsewhere names are compared as the client wrote them, and a
    name with an escape in it is refused as well.
    """
    if binding.has_body:
        return _query_refusal(
            path, binding, r"[^?]*\?.+", "This method takes its fields from the path and the body, not from a query."
        )
    fields = re.findall(r"\{(\w+)", binding.path)
    names = "|".join(name for field in fields for name in (field, re.sub(r"_(\w)", lambda found: found[1].upper(), field)))
    if not names:
        return None
    regex = rf"[^?]*\?(.*&)?([^=&]*%[^=&]*|{names})([=&].*)?"
    return _query_refusal(
        path, binding, regex, "A query parameter has the name of a field that the path gives, or an escape in its name."
    )


def _query_refusal(path: dict[str, Any], binding: Binding, regex: str, text: str) -> dict[str, Any]:
    query = {"name": ":path", "string_match": {"safe_regex": {"regex": regex}}}
    route = _answer(path | {"headers": [_method(binding), query]}, 400, {})
    route["direct_response"]["body"] = {"inline_string": text}
    return route


def _call(path: dict[str, Any], binding: Binding) -> dict[str, Any]:
    action = {"cluster": CLUSTER, "timeout": STREAM_TIMEOUT if binding.streams else CALL_TIMEOUT}
    if binding.streams:
        action["idle_timeout"] = STREAM_IDLE_TIMEOUT
    route: dict[str, Any] = {"match": path | {"headers": [_method(binding)]}, "route": action}
    if binding.success_status != 200:
        route["metadata"] = {"filter_metadata": {"envoy.filters.http.lua": {"success_status": str(binding.success_status)}}}
    return route


def _local_replies(rules: list[Rule]) -> list[dict[str, Any]]:
    """The envelope for each status with which the edge itself may answer."""
    by_status = defaultdict(list)
    for rule in rules:
        by_status[rule.http].append(rule)
    chosen = {status: _plainest(candidates) for status, candidates in sorted(by_status.items())}
    mappers = [_mapper("EQ", status, rule) for status, rule in chosen.items() if rule]
    # What is left is not in the table: another fault of the client's or another fault of ours.
    last = [_mapper("GE", rule.http, rule) | {"status_code": rule.http} for rule in (chosen[500], chosen[400]) if rule]
    return mappers + last


def _plainest(candidates: list[Rule]) -> Rule | None:
    """The edge's own code, or the one named as its gRPC code, or the fallback, or the only one; of several others, none."""
    own = [rule for rule in candidates if rule.edge_only]
    same = [rule for rule in candidates if rule.code.upper() == code_pb2.Code.Name(rule.grpc)]
    fallback = [rule for rule in candidates if rule.fallback]
    chosen = own or same or fallback or candidates
    return chosen[0] if len(chosen) == 1 else None


def _message(rule: Rule) -> str:
    return MESSAGES.get(rule.code, rule.message)


def _mapper(comparison: str, status: int, rule: Rule) -> dict[str, Any]:
    threshold = {"default_value": status, "runtime_key": f"evershell.local_reply.{comparison.lower()}_{status}"}
    # A request that could not be read has no id yet. It gets one here, once, for the header and for the body.
    request_id = '%COALESCE({"operators":[{"command":"REQ","param":"x-request-id"},"UNIQUE_ID"]})%'
    envelope = {"error": {"code": rule.code, "message": _message(rule), "request_id": "%RESP(x-request-id)%"}}
    headers = {"x-request-id": request_id}
    if rule.http == HTTPStatus.SERVICE_UNAVAILABLE:
        # As the service says it when its database is away.
        headers["retry-after"] = "1"
    return {
        "filter": {"status_code_filter": {"comparison": {"op": comparison, "value": threshold}}},
        "headers_to_add": [_header(name, value) for name, value in headers.items()],
        "body_format_override": {"json_format": envelope},
    }


def _grpc_errors(rules: list[Rule]) -> dict[str, dict[str, str]]:
    """By gRPC status: what the Lua filter answers when a worker's gRPC library, and not the service, refused a call."""
    by_status = defaultdict(list)
    for rule in rules:
        if not rule.edge_only:
            by_status[rule.grpc].append(rule)
    # A worker that ends cancels what it has not taken yet; a caller that cancels does not wait for an answer.
    by_status[code_pb2.CANCELLED] = by_status[code_pb2.UNAVAILABLE]
    chosen = {grpc: _plainest(candidates) for grpc, candidates in sorted(by_status.items())}
    return {
        str(grpc): {
            "code": rule.code,
            "status": str(rule.http),
            "message": _message(rule).split(": %")[0] + "." * (": %" in _message(rule)),
        }
        for grpc, rule in chosen.items()
        if rule
    }
