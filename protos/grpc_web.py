"""The routes with which scripts in browsers call the public service by gRPC-Web.

Envoy's filter for gRPC-Web translates to gRPC. On these routes the filters for REST are off, so
answers are the same as over gRPC: a message, or a gRPC status with its details.
"""

from typing import Any

from replies import GRPC_CALL, header

TYPE = "application/grpc-web+proto"
# Clients that send base64 (application/grpc-web-text) are refused, like other content types.
CONTENT = r"(?i)application/grpc-web(\+proto)?\|.*"
# Removed from calls: with these headers, the edge and the worker would treat a call as REST.
REST_HEADERS = ["x-evershell-edge", "x-evershell-content"]

# The filter evershell.grpc_web_headers adds this header. The header stays in the calls to workers,
# which ignore it, because the mappers of Envoy's own answers read it as well.
_WEB_CALL = {"header_filter": {"header": {"name": "x-evershell-grpc-web", "present_match": True}}}
_FILTER = "type.googleapis.com/envoy.config.route.v3.FilterConfig"
_FILTERS: dict[str, dict[str, Any]] = {
    **{
        name: {"@type": _FILTER, "disabled": True}
        for name in (
            "envoy.filters.http.header_mutation",
            "envoy.filters.http.lua",
            "envoy.filters.http.grpc_json_transcoder",
        )
    },
    # The configuration of these filters in envoy.yaml turns them off for all other routes.
    **{
        name: {"@type": _FILTER, "config": {}}
        for name in (
            "evershell.grpc_web_headers",
            "envoy.filters.http.grpc_web",
            "evershell.grpc_web_trailers",
        )
    },
}


def route(
    path: str, content_header: str, action: dict[str, Any], size_limit: dict[str, Any]
) -> dict[str, Any]:
    """The route of one method.

    `content_header` names the header that has the content type and the content length.
    """
    post = {"name": ":method", "string_match": {"exact": "POST"}}
    content = {"name": content_header, "string_match": {"safe_regex": {"regex": CONTENT}}}
    return {
        "match": {"path": path, "headers": [post, content]},
        "route": action,
        "request_headers_to_remove": REST_HEADERS,
        "typed_per_filter_config": size_limit | _FILTERS,
    }


def local_reply(mapper: dict[str, Any]) -> dict[str, Any]:
    """Converts a mapper of the gRPC listener into a mapper for calls of gRPC-Web.

    A mapper rewrites one of Envoy's own answers. Envoy does not know that the call is gRPC-Web, so
    the mapper makes the whole answer: a gRPC status in the headers and no body.
    """
    message = mapper["body_format_override"]["text_format_source"]["inline_string"]
    if not message.isascii() or "%" in message:
        raise ValueError(f"the message needs percent-encoding: {message}")
    filters = mapper["filter"]["and_filter"]["filters"]
    web_filters = [_WEB_CALL if each == GRPC_CALL else each for each in filters]
    return mapper | {
        "filter": {"and_filter": {"filters": web_filters}},
        "status_code": 200,
        "headers_to_add": [*mapper["headers_to_add"], header("grpc-message", message)],
        "body_format_override": {
            "content_type": TYPE,
            "text_format_source": {"inline_string": ""},
        },
    }
