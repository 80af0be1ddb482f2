"""The listener that serves Envoy's metrics, and nothing else of the admin interface."""

from pathlib import Path
from typing import Any

_CLUSTER = "admin"
_HTTP = "type.googleapis.com/envoy.extensions.filters.http"
_NETWORK = "type.googleapis.com/envoy.extensions.filters.network"


def listener(host: str, port: int) -> dict[str, Any]:
    """Serves `GET /metrics` in the format of Prometheus."""
    route = {
        "match": {
            "path": "/metrics",
            "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
        },
        "route": {"cluster": _CLUSTER, "prefix_rewrite": "/stats/prometheus"},
    }
    manager = {
        "@type": f"{_NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "metrics",
        # Silent connections are closed soon. envoy.yaml limits the number of connections.
        "common_http_protocol_options": {"idle_timeout": "10s"},
        "request_headers_timeout": "10s",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_HTTP}.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": [route]}]
        },
    }
    return {
        "name": "metrics",
        "address": {"socket_address": {"address": host, "port_value": port}},
        # Prometheus can connect even if callers use up all connections or all memory.
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }


def cluster(admin_socket: Path) -> dict[str, Any]:
    """The cluster of the admin interface."""
    address = {"pipe": {"path": str(admin_socket)}}
    return {
        "name": _CLUSTER,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": _CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
