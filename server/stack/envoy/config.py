"""Envoy, the edge: its configuration from the template in envoy/, and the command that runs it."""

import importlib.resources
import json
import resource
import string
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.stack.envoy import documents

ROOT = documents.ROOT

# What the kernel allows for a socket's path, with the final NUL.
SOCKET_PATH_BYTES = 108
MAX_CONNECTIONS = 10_000
# Files that Envoy needs for other things than its callers.
_OTHER_FILES = 100


class EdgeConfigurationError(Exception):
    """The edge cannot be configured like this; the text says why."""


@dataclass(frozen=True)
class Tls:
    """A certificate with its chain, and its key, as PEM files.

    With `client_ca_file`, callers of gRPC need a certificate of their own that it has signed.
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None


@dataclass(frozen=True)
class Edge:
    """Where the edge listens, and what is behind it.

    `workers` are the gRPC addresses of the control plane's workers, one of each: `host:port`, with
    the host a numeric address, or `unix:/absolute/path`. Without `tls` both listeners speak plain
    text.
    """

    rest_port: int
    grpc_port: int
    workers: Sequence[str]
    admin_socket: Path
    host: str = "127.0.0.1"
    tls: Tls | None = None
    # Envoy sheds load as its memory approaches this limit.
    max_heap_bytes: int = 2**30


def render(edge: Edge, config_path: Path) -> None:
    """Writes Envoy's configuration.

    Raises EdgeConfigurationError when the admin socket's path is too long for the kernel, a
    worker's address is malformed, or a file of the TLS settings cannot be read.
    """
    if len(bytes(edge.admin_socket)) >= SOCKET_PATH_BYTES:
        raise EdgeConfigurationError(
            f"the path of Envoy's admin socket is too long for the kernel: {edge.admin_socket}"
        )
    generated = json.loads((ROOT / "gen" / "routes.json").read_text())
    # JSON is YAML: what is filled in needs no indentation and no quoting of its own.
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
        "workers": [_endpoint(address) for address in edge.workers],
        "descriptor_set": str(ROOT / "gen" / "workspace.binpb"),
        "envelope_lua": str(ROOT / "envoy" / "envelope.lua"),
        "unsolicited_calls": str(ROOT / "envoy" / "unsolicited_calls.yaml"),
        **generated,
        "routes": [
            *documents.routes(generated["without_body_filters"]),
            *generated["routes"],
        ],
        "max_document_bytes": documents.MAX_FILE_BYTES,
    }
    template = string.Template((ROOT / "envoy" / "envoy.yaml").read_text())
    config_path.write_text(
        template.substitute({name: json.dumps(value) for name, value in values.items()})
    )


def command(
    config_path: Path, *options: str, concurrency: int = 1, log_level: str = "warning"
) -> list[str]:
    """The command that runs Envoy in the foreground; it ends at once on SIGTERM.

    Without further options nothing else takes part in it: no process of Envoy's before it, and none
    behind it.

    One thread is plenty for what the workers can serve, and means one connection to each of them,
    so that calls are spread evenly.
    """
    return [
        # Each connection is an open file, and what a login allows by default is a tenth of what the
        # machine does.
        "/bin/sh",
        "-c",
        'ulimit -S -n "$(ulimit -H -n)" && exec "$@"',
        "envoy",
        # The program itself, not the launcher that the wheel also brings.
        str(importlib.resources.files("envoy") / "_bin" / "envoy"),
        "--config-path",
        str(config_path),
        "--concurrency",
        str(concurrency),
        "--log-level",
        log_level,
        # Envoy logs an error for each body that is too large. The access log has these calls, up to
        # a rate.
        "--component-log-level",
        "http:critical",
        # Access log lines are seen soon, and still written many at a time.
        "--file-flush-interval-msec",
        "1000",
        *(options or ["--disable-hot-restart"]),
    ]


def validate(config_path: Path) -> None:
    """Asks Envoy itself whether it would start with this configuration.

    Raises EdgeConfigurationError with what Envoy says against it.
    """
    check = [*command(config_path), "--mode", "validate", "--log-format", "%v"]
    result = subprocess.run(check, check=False, capture_output=True, text=True)
    if result.returncode:
        # The last line of its log is the reason; a defect of Envoy's would leave none.
        reason = (result.stderr.strip().splitlines() or [f"it ended with {result.returncode}"])[-1]
        reason = reason.rpartition(f"'{config_path}': ")[2]
        if "KEY_VALUES_MISMATCH" in reason:
            reason = f"TLS_KEY_FILE does not belong to TLS_CERT_FILE. {reason}"
        raise EdgeConfigurationError(f"Envoy refuses its configuration: {reason}")


def _open_files_limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MAX_CONNECTIONS + _OTHER_FILES if hard == resource.RLIM_INFINITY else hard


def _transport_socket(tls: Tls | None, client_ca_file: Path | None) -> dict[str, object] | None:
    """What a listener speaks below HTTP."""
    if tls is None:
        return None
    for path in filter(None, (tls.cert_file, tls.key_file, client_ca_file)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise EdgeConfigurationError(
                f"A file of the TLS settings cannot be read: {path}: {error.strerror}."
            ) from error
    common: dict[str, object] = {
        "alpn_protocols": ["h2", "http/1.1"],
        # Stops clients from falling back to what can be broken.
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
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": common,
        "require_client_certificate": client_ca_file is not None,
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _endpoint(address: str) -> dict[str, object]:
    path = address.removeprefix("unix:")
    if path != address:
        return {"endpoint": {"address": {"pipe": {"path": path}}}}
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise EdgeConfigurationError(
            f"a worker's address is host:port or unix:/path, not {address!r}"
        )
    return {
        "endpoint": {
            "address": {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
        }
    }
