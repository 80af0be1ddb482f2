"""The collector of spans, as Envoy's configuration names it.

Envoy reads no variables of OpenTelemetry. Those that the other programs read are translated here.
"""

import math
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from evershell.local.envoy.config import EdgeConfigurationError

_CLUSTER = "collector"
_CONFIG = "type.googleapis.com/envoy"
# The variables of Envoy's own environment that hold the values of headers.
_HEADER_VARIABLE = "EVERSHELL_COLLECTOR_HEADER_"
_TIMEOUT_SECONDS = 1
_TRACED_CLUSTER = "control_plane"
_SAMPLINGS = ("client_sampling", "random_sampling", "overall_sampling")
# The default of OTEL_BSP_SCHEDULE_DELAY.
_FLUSH_MILLISECONDS = 5_000
# Spans that are sent together at most, before the interval is over.
_FLUSH_SPANS = 128


@dataclass(frozen=True)
class Collector:
    """Where spans are sent, and which."""

    # The URL that takes spans.
    url: str
    # They may hold a credential for the collector.
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    # The authorities that the collector's certificate is checked with.
    ca_file: str = ""
    service_name: str = "evershell-edge"
    # Of the calls that bring no trace.
    sampled_percent: float = 100.0
    flush_milliseconds: int = _FLUSH_MILLISECONDS

    @classmethod
    def of(cls, endpoint: str, environment: Mapping[str, str]) -> Self | None:
        """The collector at OTEL_EXPORTER_OTLP_ENDPOINT, with the other variables of OpenTelemetry.

        None if spans are off. Raises EdgeConfigurationError if a variable is not valid.
        """
        if not endpoint or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None

        def variable(name: str) -> str:
            prefix = "OTEL_EXPORTER_OTLP_"
            return environment.get(f"{prefix}TRACES_{name}") or environment.get(prefix + name, "")

        url = environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or (
            f"{endpoint.rstrip('/')}/v1/traces"
        )
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EdgeConfigurationError(
                f"OTEL_EXPORTER_OTLP_ENDPOINT is a URL of OTLP over HTTP, not {endpoint!r}"
            )
        pairs = (pair.partition("=") for pair in variable("HEADERS").split(",") if "=" in pair)
        return cls(
            url=url,
            headers=tuple((key.strip().lower(), unquote(value.strip())) for key, _, value in pairs),
            ca_file=variable("CERTIFICATE") or ssl.get_default_verify_paths().cafile or "",
            service_name=environment.get("OTEL_SERVICE_NAME") or cls.service_name,
            sampled_percent=_sampled_percent(environment),
            flush_milliseconds=_milliseconds(environment.get("OTEL_BSP_SCHEDULE_DELAY", "")),
        )

    def environment(self) -> dict[str, str]:
        """The variables that Envoy needs. Its configuration and its admin pages have no header."""
        return {
            f"{_HEADER_VARIABLE}{index}": value for index, (_, value) in enumerate(self.headers)
        }

    def tracing(self) -> dict[str, Any]:
        """The tracing of a listener. An edge span is the parent of the worker's span."""
        headers = [
            {
                "header": {"key": key, "value": f"%ENVIRONMENT({_HEADER_VARIABLE}{index})%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
            for index, (key, _) in enumerate(self.headers)
        ]
        service: dict[str, Any] = {
            "http_uri": {"uri": self.url, "cluster": _CLUSTER, "timeout": f"{_TIMEOUT_SECONDS}s"},
            "request_headers_to_add": headers,
        }
        return {
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": f"{_CONFIG}.config.trace.v3.OpenTelemetryConfig",
                    "http_service": service,
                    "service_name": self.service_name,
                },
            },
            "random_sampling": {"value": self.sampled_percent},
            # The path without its query, in which callers may put secrets, as in the access log.
            "max_path_tag_length": 0,
            "custom_tags": [
                {"tag": "url.path", "value": "%PATH(NQ:ORIG_OR_PATH):300%"},
                # These replace tags of Envoy, which have no maximum length, or the query.
                {"tag": "grpc.path", "value": "%PATH(NQ:PATH):300%"},
                {"tag": "user_agent", "value": "%REQ(user-agent):200%"},
                {"tag": "evershell.request_id", "value": "%REQ(x-request-id):64%"},
            ],
        }

    def traced(self, routes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The routes, with the name of the span of each call. Only calls of workers have spans."""
        return [{**route, **_span_of(route)} for route in routes]

    def runtime_layer(self) -> dict[str, Any]:
        """How often Envoy sends spans."""
        layer = {
            "tracing.opentelemetry.flush_interval_ms": self.flush_milliseconds,
            "tracing.opentelemetry.min_flush_spans": _FLUSH_SPANS,
        }
        return {"name": "tracing", "static_layer": layer}

    def cluster(self) -> dict[str, Any]:
        """The cluster of the collector. Spans that it does not take in time are lost."""
        parts = urlsplit(self.url)
        host = str(parts.hostname)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = {"socket_address": {"address": host, "port_value": port}}
        cluster: dict[str, Any] = {
            "name": _CLUSTER,
            "type": "STATIC" if _is_address(host) else "STRICT_DNS",
            "connect_timeout": f"{_TIMEOUT_SECONDS}s",
            "circuit_breakers": {
                "thresholds": [{"max_connections": 2, "max_pending_requests": 8, "max_requests": 8}]
            },
            "load_assignment": {
                "cluster_name": _CLUSTER,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }
        if parts.scheme == "https":
            cluster["transport_socket"] = {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": f"{_CONFIG}.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": host,
                    "auto_sni_san_validation": True,
                    "common_tls_context": {
                        "validation_context": {"trusted_ca": {"filename": self.ca_file}}
                    },
                },
            }
        return cluster


def _span_of(route: Mapping[str, Any]) -> dict[str, Any]:
    if route.get("route", {}).get("cluster") != _TRACED_CLUSTER:
        return {"tracing": {name: {"numerator": 0} for name in _SAMPLINGS}}
    match = route["match"]
    if "path" in match:
        name = match["path"].removeprefix("/")
    else:
        (method,) = (
            header["string_match"] for header in match["headers"] if header["name"] == ":method"
        )
        path = match["safe_regex"]["regex"].replace("[^/]+", "*")
        name = f"{method.get('exact', 'GET')} {path}"
    return {"decorator": {"operation": name, "propagate": False}}


def _sampled_percent(environment: Mapping[str, str]) -> float:
    """What OTEL_TRACES_SAMPLER says of calls without a trace."""
    sampler = environment.get("OTEL_TRACES_SAMPLER", "").removeprefix("parentbased_")
    if sampler == "always_off":
        return 0.0
    if sampler != "traceidratio":
        return 100.0
    try:
        share = float(environment.get("OTEL_TRACES_SAMPLER_ARG", "1"))
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise EdgeConfigurationError("OTEL_TRACES_SAMPLER_ARG is a number from 0 to 1")
    return 100 * share


def _milliseconds(text: str) -> int:
    return int(text) if text.isdecimal() and int(text) else _FLUSH_MILLISECONDS


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
