"""Checks the ports of a stack before it starts."""

import errno
import socket

from evershell.server.config import Settings
from evershell.server.stack.environments import inside


class PortError(Exception):
    """The stack cannot listen on its ports. The message names the setting to change."""


def check_ports(settings: Settings) -> None:
    """Raises PortError if two programs have the same port, or if a port cannot be used."""
    edge, workers = settings.listen_host, inside(settings).listen_host
    addresses = {"REST_PORT": (edge, settings.rest_port), "GRPC_PORT": (edge, settings.grpc_port)}
    for index in range(settings.workers):
        addresses[f"SERVER_PORT + {index}"] = workers, settings.server_port + index
        if settings.agent_tls:
            addresses[f"RUNTIME_PORT + {index}"] = workers, settings.runtime_port + index
    if settings.metrics_port:
        for index in range(settings.workers + 1):
            port = settings.metrics_port + index
            addresses[f"METRICS_PORT + {index}"] = settings.metrics_host, port
    if len({port for _, port in addresses.values()}) < len(addresses):
        message = (
            "REST_PORT, GRPC_PORT, the WORKERS ports from SERVER_PORT on, with AGENT_TLS the "
            "WORKERS from RUNTIME_PORT on, and the WORKERS + 1 from METRICS_PORT on must differ."
        )
        raise PortError(message)
    for name, (host, port) in addresses.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise PortError(_problem(error, name.split()[0], host, port)) from error


def _problem(error: OSError, name: str, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        setting = "METRICS_HOST" if name == "METRICS_PORT" else "LISTEN_HOST"
        return f"{host} is not an IPv4 address of this machine. Set {setting} to one."
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is taken. Set {name} to another one."
    return f"Port {port} cannot be used: {error.strerror}. Set {name} to another one."
