"""The filters of the routes for A2A (https://a2a-protocol.org), whose JSON has its own rules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

# The name of the routes, and of the service that they call.
NAME = "lf.a2a.v1.A2AService"
_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"


def with_filters(route: dict[str, Any], edge_file: Callable[[str], Path]) -> dict[str, Any]:
    """Returns the generated route with the filters of A2A.

    `edge_file` returns the path of a file of the edge by its name.
    """
    filters: dict[str, Any] = {
        "envoy.filters.http.lua": {
            "@type": f"{_FILTERS}.lua.v3.LuaPerRoute",
            "source_code": {"filename": str(edge_file("a2a.lua"))},
        }
    }
    if "route" in route:
        filters |= {
            "envoy.filters.http.grpc_json_transcoder": {
                **_TRANSCODER,
                "proto_descriptor": str(edge_file("a2a.binpb")),
            },
            "envoy.filters.http.header_mutation": _VERSION,
        }
    return route | {"typed_per_filter_config": filters | route["typed_per_filter_config"]}


_TRANSCODER = {
    "@type": f"{_FILTERS}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
    "services": [NAME],
    "match_incoming_request_route": True,
    "print_options": {"stream_newline_delimited": True, "stream_sse_style_delimited": True},
    # A2A requires that unknown fields are ignored (section 5.7), in a body and in a query.
    "ignore_unknown_query_parameters": True,
    "request_validation_options": {
        "reject_unknown_method": True,
        # Refuses a body that names a different task or workspace than the path.
        "reject_binding_body_field_collisions": True,
    },
    "max_response_body_size": 33_554_432,
}
# If a request has no header `a2a-version`, sets it from the query (section 3.6.1).
_VERSION = {
    "@type": f"{_FILTERS}.header_mutation.v3.HeaderMutationPerRoute",
    "mutations": {
        "request_mutations": [
            {
                "append": {
                    "header": {"key": "a2a-version", "value": "%QUERY_PARAM(A2A-Version)%"},
                    "append_action": "ADD_IF_ABSENT",
                }
            }
        ]
    },
}
