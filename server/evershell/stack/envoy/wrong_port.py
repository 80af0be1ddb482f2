"""Tells a client of gRPC that it has called the port of REST, and which port gRPC has."""

from typing import Any

from evershell.stack.envoy.header import header

# A call of gRPC: its path, the header that every client sends, and the content type as envoy.yaml
# puts it together with the content length.
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
    """The route for gRPC calls that no other route takes, made from the route of unknown paths."""
    return {
        "direct_response": not_found["direct_response"],
        "match": {"prefix": "/", "headers": _GRPC_CALL},
        # These filters would make a REST answer from a gRPC answer.
        "typed_per_filter_config": not_found["typed_per_filter_config"]
        | dict.fromkeys(
            ("envoy.filters.http.header_mutation", "envoy.filters.http.lua"), _DISABLED
        ),
    }


def reply(grpc_port: int) -> dict[str, Any]:
    """The mapper for the answer to such a call: a status in the headers and no body."""
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
