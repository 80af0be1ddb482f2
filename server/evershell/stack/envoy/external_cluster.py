"""The cluster of a server that does not belong to the service."""

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 1
_EXTENSIONS = "type.googleapis.com/envoy.extensions"


def external_cluster(name: str, url: str, ca_file: str, *, max_requests: int) -> dict[str, Any]:
    """The cluster of the URL's host.

    With https, the host's certificate is checked against the authorities in `ca_file`.
    """
    parts = urlsplit(url)
    host = str(parts.hostname)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = {"socket_address": {"address": host, "port_value": port}}
    limits = {
        "max_connections": 2,
        "max_pending_requests": max_requests,
        "max_requests": max_requests,
    }
    cluster: dict[str, Any] = {
        "name": name,
        "type": "STATIC" if _is_address(host) else "STRICT_DNS",
        "connect_timeout": f"{TIMEOUT_SECONDS}s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    if parts.scheme == "https":
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": host,
                "auto_sni_san_validation": True,
                "common_tls_context": {"validation_context": {"trusted_ca": {"filename": ca_file}}},
            },
        }
    return cluster


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
