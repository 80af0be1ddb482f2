"""Envoy, the edge: its configuration from the template in envoy/, and the command that runs it."""

import importlib.resources
import json
import string
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.stack import documents

ROOT = Path(__file__).resolve().parents[2]

# What the kernel allows for a socket's path, with the final NUL.
SOCKET_PATH_BYTES = 108


class EdgeConfigurationError(Exception):
    """The edge cannot be configured like this; the text says why."""


@dataclass(frozen=True)
class Edge:
    """Where the edge listens, and what is behind it.

    `workers` are the gRPC addresses of the control plane's workers, one of each: `host:port`, with the host a numeric address, or
    `unix:/absolute/path`.
    """

    rest_port: int
    grpc_port: int
    workers: Sequence[str]
    admin_socket: Path
    host: str = "127.0.0.1"


def render(edge: Edge, config_path: Path) -> None:
    """Writes Envoy's configuration.

    Raises EdgeConfigurationError when the admin socket's path is too long for the kernel, or a worker's address is malformed.
    """
    if len(bytes(edge.admin_socket)) >= SOCKET_PATH_BYTES:
        raise EdgeConfigurationError(f"the path of Envoy's admin socket is too long for the kernel: {edge.admin_socket}")
    generated = json.loads((ROOT / "gen" / "routes.json").read_text())
    # JSON is YAML: what is filled in needs no indentation and no quoting of its own.
    values = {
        "host": edge.host,
        "rest_port": edge.rest_port,
        "grpc_port": edge.grpc_port,
        "admin_socket": str(edge.admin_socket),
        "workers": [_endpoint(address) for address in edge.workers],
        "descriptor_set": str(ROOT / "gen" / "workspace.binpb"),
        "envelope_lua": str(ROOT / "envoy" / "envelope.lua"),
        **generated,
        "routes": [*documents.routes(), *generated["routes"]],
        "max_document_bytes": documents.MAX_FILE_BYTES,
    }
    template = string.Template((ROOT / "envoy" / "envoy.yaml").read_text())
    config_path.write_text(template.substitute({name: json.dumps(value) for name, value in values.items()}))


def command(config_path: Path, *, concurrency: int = 1, log_level: str = "warning") -> list[str]:
    """The command that runs Envoy in the foreground; it ends at once on SIGTERM.

    One thread is plenty for what the workers can serve, and means one connection to each of them, so that calls are spread evenly.
    """
    return [
        # The program itself, not the launcher that the wheel also brings.
        str(importlib.resources.files("envoy") / "_bin" / "envoy"),
        "--config-path",
        str(config_path),
        "--concurrency",
        str(concurrency),
        "--log-level",
        log_level,
        # Two stacks on one machine share nothing, and Envoy does not end with whoever started its parent.
        "--disable-hot-restart",
        # Access log lines are seen soon, and still written many at a time.
        "--file-flush-interval-msec",
        "1000",
    ]


def validate(config_path: Path) -> None:
    """Asks Envoy itself whether it would start with this configuration.

    Raises EdgeConfigurationError with what Envoy says against it.
    """
    result = subprocess.run([*command(config_path), "--mode", "validate"], check=False, capture_output=True, text=True)
    if result.returncode:
        raise EdgeConfigurationError(f"Envoy refuses its configuration:\n{result.stderr}{result.stdout}")


def _endpoint(address: str) -> dict[str, object]:
    path = address.removeprefix("unix:")
    if path != address:
        return {"endpoint": {"address": {"pipe": {"path": path}}}}
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise EdgeConfigurationError(f"a worker's address is host:port or unix:/path, not {address!r}")
    return {"endpoint": {"address": {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}}}
