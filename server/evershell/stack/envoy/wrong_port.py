"""Tells a client of gRPC that it has called the port of REST, and which port gRPC has."""

from typing import Any

# The content type and the content length, as envoy.yaml puts them together.
_CONTENT = {
    "name": "x-evershell-content",
    "string_match": {"safe_regex": {"regex": r"application/grpc(\+[a-z]+)?\|.*"}},
}
_DISABLED = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}


def route(not_found: dict[str, Any]) -> dict[str, Any]:
    """The route of the calls of gRPC that no other route takes, from the one of unknown paths."""
    return not_found | {
        "match": {"prefix": "/", "headers": [_CONTENT]},
        # These filters make an answer of REST from one of gRPC.
        "typed_per_filter_config": not_found["typed_per_filter_config"]
        | dict.fromkeys(
            ("envoy.filters.http.header_mutation", "envoy.filters.http.lua"), _DISABLED
        ),
    }


def reply(grpc_port: int) -> dict[str, Any]:
    """The mapper of their answer: a status in the headers and no body."""
    status = {"comparison": {"op": "EQ", "value": {"default_value": 404, "runtime_key": "none"}}}
    headers = {
        "grpc-status": "12",
        "grpc-message": f"This port serves REST; gRPC has port {grpc_port}.",
    }
    return {
        "filter": {
            "and_filter": {
                "filters": [{"status_code_filter": status}, {"header_filter": {"header": _CONTENT}}]
            }
        },
        "status_code": 200,
        "headers_to_add": [
            {
                "header": {"key": name, "value": value},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for name, value in headers.items()
        ],
        "body_format_override": {
            "content_type": "application/grpc",
            "text_format_source": {"inline_string": ""},
        },
    }
