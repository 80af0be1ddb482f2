"""The edge that the settings describe."""

import os
from collections.abc import Sequence
from pathlib import Path

from evershell.app.settings import Settings
from evershell.local.envoy.collector import Collector
from evershell.local.envoy.config import Edge, Tls


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
    headers for the collector of spans. Raises EdgeConfigurationError.
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
