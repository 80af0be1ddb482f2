"""Checks the ports of a stack before it starts."""

import socket

from evershell.server.config import Settings


class PortError(Exception):
    """The stack cannot listen on its ports. The message names the setting to change."""


def check_ports(settings: Settings) -> None:
    """Raises PortError if two programs have the same port, or if a port is taken."""
    ports = {"REST_PORT": settings.rest_port, "GRPC_PORT": settings.grpc_port}
    ports |= {
        f"SERVER_PORT + {index}": settings.server_port + index for index in range(settings.workers)
    }
    if settings.agent_tls:
        ports |= {
            f"RUNTIME_PORT + {index}": settings.runtime_port + index
            for index in range(settings.workers)
        }
    if settings.metrics_port:
        ports |= {
            f"METRICS_PORT + {index}": settings.metrics_port + index
            for index in range(settings.workers + 1)
        }
    if len(set(ports.values())) < len(ports):
        message = (
            "REST_PORT, GRPC_PORT, the WORKERS ports from SERVER_PORT on, with AGENT_TLS the "
            "WORKERS from RUNTIME_PORT on, and the WORKERS + 1 from METRICS_PORT on must differ."
        )
        raise PortError(message)
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.listen_host, port))
            except OSError as error:
                raise PortError(
                    f"Port {port} is taken. Set {name.split()[0]} to another one."
                ) from error
