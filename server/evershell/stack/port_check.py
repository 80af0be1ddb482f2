"""Checks the ports of a stack before it starts."""

import errno
import socket

from evershell.app.settings import AGENT_PORT_DISTANCE, Settings
from evershell.core.errors import OperatorError
from evershell.stack.environments import service_settings


def check_ports(settings: Settings) -> None:
    """Raises OperatorError if two ports are the same, or if a port cannot be used."""
    edge, workers = settings.listen_host, service_settings(settings).listen_host
    addresses = {"REST_PORT": (edge, settings.rest_port), "GRPC_PORT": (edge, settings.grpc_port)}
    for index in range(settings.workers):
        addresses[f"SERVER_PORT + {index}"] = workers, settings.server_port + index
        if settings.agent_tls:
            after = AGENT_PORT_DISTANCE + index
            addresses[f"SERVER_PORT + {after}"] = workers, settings.server_port + after
    if settings.metrics_port:
        for index in range(settings.workers + 3):
            port = settings.metrics_port + index
            addresses[f"METRICS_ADDRESS + {index}"] = settings.metrics_host, port
    if len({port for _, port in addresses.values()}) < len(addresses):
        message = (
            "Two of these ports are the same: REST_PORT, GRPC_PORT, WORKERS ports from SERVER_PORT "
            f"on, WORKERS ports from SERVER_PORT + {AGENT_PORT_DISTANCE} on (with AGENT_TLS), and "
            "WORKERS + 3 ports from METRICS_ADDRESS on."
        )
        raise OperatorError(message)
    for name, (host, port) in addresses.items():
        setting = name.split()[0]
        try:
            _bind(host, port, any_family=setting == "METRICS_ADDRESS")
        except OSError as error:
            raise OperatorError(_problem(error, setting, host, port)) from error


def _bind(host: str, port: int, *, any_family: bool) -> None:
    """Binds the port for a moment. Raises OSError."""
    wanted = socket.AF_UNSPEC if any_family else socket.AF_INET
    family, *_, address = socket.getaddrinfo(host, port, wanted, socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _problem(error: OSError, name: str, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        if name == "METRICS_ADDRESS":
            return f"{host} is not an address of this machine. Set METRICS_ADDRESS to one."
        return f"{host} is not an IPv4 address of this machine. Set LISTEN_HOST to one."
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} is taken. Set {name} to another one."
    return f"Port {port} cannot be used: {error.strerror}. Set {name} to another one."
