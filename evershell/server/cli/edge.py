"""The command `edge`."""

import os
import tempfile
from pathlib import Path

import click

from evershell.server.cli.environment import read_settings
from evershell.server.stack.environments import edge_environment
from evershell.server.stack.envoy import config as envoy
from evershell.server.stack.envoy.collector import Collector

# Envoy's own share of the memory of its container.
_HEAP_SHARE = 0.8


@click.command(help="Run Envoy in front of the workers that EDGE_WORKERS names, until SIGTERM.")
def edge() -> None:
    """Writes the configuration, and becomes Envoy."""
    settings = read_settings()
    workers = [each.strip() for each in settings.edge_workers.split(",") if each.strip()]
    if not workers:
        raise click.ClickException("Set EDGE_WORKERS to host:port of the workers.")
    # It ends with the process, and a container has its own temporary folder.
    folder = Path(tempfile.mkdtemp(prefix="edge-"))
    tls = None
    if settings.tls_cert_file and settings.tls_key_file:
        tls = envoy.Tls(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
    try:
        wanted = envoy.Edge(
            rest_port=settings.rest_port,
            grpc_port=settings.grpc_port,
            workers=workers,
            admin_socket=folder / "admin.sock",
            host=settings.listen_host,
            tls=tls,
            max_heap_bytes=int(settings.program_memory_mb * 2**20 * _HEAP_SHARE),
            collector=Collector.of(settings.otel_exporter_otlp_endpoint, os.environ),
        )
        envoy.render(wanted, folder / "envoy.yaml")
        envoy.validate(folder / "envoy.yaml")
        command = envoy.command(folder / "envoy.yaml")
    except envoy.EdgeConfigurationError as error:
        raise click.ClickException(str(error)) from error
    # Becomes Envoy, which gets the signals.
    os.execve(command[0], command, edge_environment(wanted))  # noqa: S606 - no shell is needed
