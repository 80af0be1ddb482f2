"""The size limit of a route.

The filter that enforces the limit cannot be configured for single routes. A filter chain can, so a
filter chain contains the filter.
"""

from typing import Any

_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
# Each gRPC message has a prefix: the compression flag and the length.
_GRPC_PREFIX_BYTES = 5


def of(max_request_bytes: int, *, waits_for_body: bool = False) -> dict[str, Any]:
    """The configuration of a route whose bodies have at most this size.

    With `waits_for_body`, a call reaches the worker only when its whole body has arrived.
    """
    limit: dict[str, Any] = {
        "name": "envoy.filters.http.body_size_limit",
        "typed_config": {
            "@type": f"{_FILTERS}.body_size_limit.v3.BodySizeLimit",
            "max_request_bytes": max_request_bytes,
        },
    }
    filters = [limit]
    if waits_for_body:
        buffer = {"@type": f"{_FILTERS}.buffer.v3.Buffer", "max_request_bytes": max_request_bytes}
        filters.append({"name": "envoy.filters.http.buffer", "typed_config": buffer})
    return {
        "envoy.filters.http.filter_chain": {
            "@type": f"{_FILTERS}.filter_chain.v3.FilterChainConfigPerRoute",
            "filter_chain": {"filters": filters},
        }
    }


def of_grpc(max_request_bytes: int, *, waits_for_body: bool = False) -> dict[str, Any]:
    """Like `of`, for a body that is one gRPC message of at most this size."""
    return of(max_request_bytes + _GRPC_PREFIX_BYTES, waits_for_body=waits_for_body)
