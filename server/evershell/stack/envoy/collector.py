"""The collector of the edge's spans.

The other programs find the collector by OpenTelemetry's environment variables, which Envoy does not
read. This module translates them for Envoy.
"""

import math
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from evershell.core.errors import OperatorError
from evershell.stack.envoy.external_cluster import TIMEOUT_SECONDS, external_cluster
from evershell.stack.envoy.header import header

_COLLECTOR_CLUSTER = "collector"
_ENVOY_TYPES = "type.googleapis.com/envoy"
# The prefix of the variables in Envoy's environment that hold the values of headers.
_HEADER_VARIABLE = "EVERSHELL_COLLECTOR_HEADER_"
_TRACED_CLUSTERS = ("control_plane", "control_plane_long")
_SAMPLINGS = ("client_sampling", "random_sampling", "overall_sampling")


@dataclass(frozen=True)
class Collector:
    """The collector, and the sampling of calls."""

    # The URL that receives spans.
    url: str
    # Headers of each request to the collector. They may hold a credential.
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    # The file with the authorities that the collector's certificate is checked against.
    ca_file: str = ""
    service_name: str = "evershell-edge"
    # Of the calls that arrive without a trace, the percentage to sample.
    sampled_percent: float = 100.0

    @classmethod
    def of(cls, endpoint: str, environment: Mapping[str, str]) -> Self | None:
        """The collector at `endpoint`, the value of OTEL_EXPORTER_OTLP_ENDPOINT.

        The other variables of OpenTelemetry are in `environment`. Returns None if spans are off.
        Raises OperatorError if a variable is not valid.
        """
        if not endpoint or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None

        def variable(name: str) -> str:
            prefix = "OTEL_EXPORTER_OTLP_"
            return environment.get(f"{prefix}TRACES_{name}") or environment.get(prefix + name, "")

        name, given = "OTEL_EXPORTER_OTLP_ENDPOINT", endpoint
        url = f"{endpoint.rstrip('/')}/v1/traces"
        if traces := environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
            name, given, url = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", traces, traces
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise OperatorError(f"{name} must be a URL of OTLP over HTTP, not {given!r}")
        pairs = (pair.partition("=") for pair in variable("HEADERS").split(",") if "=" in pair)
        return cls(
            url=url,
            headers=tuple((key.strip().lower(), unquote(value.strip())) for key, _, value in pairs),
            ca_file=variable("CERTIFICATE") or ssl.get_default_verify_paths().cafile or "",
            service_name=environment.get("OTEL_SERVICE_NAME") or cls.service_name,
            sampled_percent=_sampled_percent(environment),
        )

    def environment(self) -> dict[str, str]:
        """The variables that hold the headers.

        The configuration does not contain the headers, because Envoy's admin interface shows it.
        """
        return {
            f"{_HEADER_VARIABLE}{index}": value for index, (_, value) in enumerate(self.headers)
        }

    def tracing(self) -> dict[str, Any]:
        """The configuration of a listener's spans. They are the parents of the workers' spans."""
        headers = [
            header(key, f"%ENVIRONMENT({_HEADER_VARIABLE}{index})%")
            for index, (key, _) in enumerate(self.headers)
        ]
        service: dict[str, Any] = {
            "http_uri": {
                "uri": self.url,
                "cluster": _COLLECTOR_CLUSTER,
                "timeout": f"{TIMEOUT_SECONDS}s",
            },
            "request_headers_to_add": headers,
        }
        return {
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": f"{_ENVOY_TYPES}.config.trace.v3.OpenTelemetryConfig",
                    "http_service": service,
                    "service_name": self.service_name,
                },
            },
            "random_sampling": {"value": self.sampled_percent},
            # As in the access log, the path has no query: callers may put secrets into the query.
            "max_path_tag_length": 0,
            "custom_tags": [
                {"tag": "url.path", "value": "%PATH(NQ:ORIG_OR_PATH):300%"},
                # These replace Envoy's own tags, which have no maximum length or include the query.
                {"tag": "grpc.path", "value": "%PATH(NQ:PATH):300%"},
                {"tag": "user_agent", "value": "%REQ(user-agent):200%"},
                {"tag": "evershell.request_id", "value": "%REQ(x-request-id):64%"},
            ],
        }

    def traced(self, routes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The routes, with the span names of their calls. Only calls to workers have spans."""
        return [{**route, **_span_of(route)} for route in routes]

    def cluster(self) -> dict[str, Any]:
        """The collector's cluster. Spans that the collector does not accept in time are lost."""
        return external_cluster(_COLLECTOR_CLUSTER, self.url, self.ca_file, max_requests=8)


def _span_of(route: Mapping[str, Any]) -> dict[str, Any]:
    if route.get("route", {}).get("cluster") not in _TRACED_CLUSTERS:
        return {"tracing": {name: {"numerator": 0} for name in _SAMPLINGS}}
    match = route["match"]
    if "name" in route:
        name = route["name"]
    elif "path" in match or "prefix" in match:
        name = (match.get("path") or match["prefix"]).strip("/")
    else:
        (method,) = (each["string_match"] for each in match["headers"] if each["name"] == ":method")
        path = match["safe_regex"]["regex"].replace("[^/]+", "*")
        name = f"{method.get('exact', 'GET')} {path}"
    return {"decorator": {"operation": name, "propagate": False}}


def _sampled_percent(environment: Mapping[str, str]) -> float:
    """Of the calls without a trace, the percentage to sample according to OTEL_TRACES_SAMPLER."""
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
        raise OperatorError("OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1")
    return 100 * share
