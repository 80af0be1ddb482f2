"""Tells a client of gRPC or REST that it has called the port of the other, and names its port."""

from typing import Any

from evershell.stack.envoy.header import header

# What a gRPC call looks like: the path, the header that every gRPC client sends, and the content
# type, which envoy.yaml combines with the content length in one header.
_GRPC_CALL = [
    {"name": name, "string_match": {"safe_regex": {"regex": regex}}}
    for name, regex in (
        (":path", r"/[a-z0-9]+(\.[a-z0-9]+)*\.[A-Z][A-Za-z0-9]*/[A-Z][A-Za-z0-9]*"),
        ("te", "trailers"),
        ("x-evershell-content", r"application/grpc(\+[a-z]+)?\|.*"),
    )
]
_DISABLED = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}


def route(not_found: dict[str, Any]) -> dict[str, Any]:
    """The route for gRPC calls that no other route takes, made from the route for unknown paths."""
    return {
        "direct_response": not_found["direct_response"],
        "match": {"prefix": "/", "headers": _GRPC_CALL},
        # These filters would turn the gRPC answer into a REST answer.
        "typed_per_filter_config": not_found["typed_per_filter_config"]
        | dict.fromkeys(
            ("envoy.filters.http.header_mutation", "envoy.filters.http.lua"), _DISABLED
        ),
    }


def route_of_rest(rest_port: int) -> dict[str, Any]:
    """The route for calls of REST on the port of gRPC."""
    text = f" This port serves gRPC; REST has port {rest_port}."
    return {
        "match": {"prefix": "/v1/"},
        "direct_response": {"status": 404, "body": {"inline_string": text}},
    }


def reply(grpc_port: int) -> dict[str, Any]:
    """The mapper for the answer to a gRPC call: a gRPC status in the headers, and no body."""
    status = {"comparison": {"op": "EQ", "value": {"default_value": 404, "runtime_key": "none"}}}
    headers = {
        "grpc-status": "12",
        "grpc-message": f"This port serves REST; gRPC has port {grpc_port}.",
    }
    return {
        "filter": {
            "and_filter": {
                "filters": [
                    {"status_code_filter": status},
                    *({"header_filter": {"header": each}} for each in _GRPC_CALL),
                ]
            }
        },
        "status_code": 200,
        "headers_to_add": [header(name, value) for name, value in headers.items()],
        "body_format_override": {
            "content_type": "application/grpc",
            "text_format_source": {"inline_string": ""},
        },
    }
