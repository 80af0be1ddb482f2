"""The size limit of a route.

The filter that enforces it cannot be configured by route, so it is wrapped in a filter chain, which
can.
"""

from typing import Any

_FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
# Each gRPC message has a prefix: the compression flag and the length.
_GRPC_PREFIX_BYTES = 5


def of(max_request_bytes: int) -> dict[str, Any]:
    """The configuration of a route whose bodies have at most this size."""
    limit = {
        "name": "envoy.filters.http.body_size_limit",
        "typed_config": {
            "@type": f"{_FILTERS}.body_size_limit.v3.BodySizeLimit",
            "max_request_bytes": max_request_bytes,
        },
    }
    return {
        "envoy.filters.http.filter_chain": {
            "@type": f"{_FILTERS}.filter_chain.v3.FilterChainConfigPerRoute",
            "filter_chain": {"filters": [limit]},
        }
    }


def of_grpc(max_request_bytes: int) -> dict[str, Any]:
    """The same for a body that is one gRPC message of at most this size."""
    return of(max_request_bytes + _GRPC_PREFIX_BYTES)
