"""The check of the ports of a stack, before anything is started."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from evershell.app.settings import Settings
from evershell.core.errors import OperatorError
from evershell.stack.port_check import check_ports
from tests.support.ports import free_ports


@pytest.fixture
def ports() -> dict[str, int]:
    rest, grpc, server, _, runtime, _, metrics, *_ = free_ports(10, in_a_row=8)
    return {
        "rest_port": rest,
        "grpc_port": grpc,
        "server_port": server,
        "runtime_port": runtime,
        "metrics_port": metrics,
    }


@pytest.fixture(params=["rest_port", "grpc_port", "server_port", "runtime_port", "metrics_port"])
def taken(request: pytest.FixtureRequest, ports: dict[str, int]) -> Iterator[str]:
    """The name of a port on which something listens."""
    name = str(request.param)
    with socket.create_server(("127.0.0.1", ports[name])):
        yield name


def problem(**settings: object) -> str:
    with pytest.raises(OperatorError) as refused:
        check_ports(Settings.model_validate(settings))
    return str(refused.value)


def test_free_ports_are_accepted(ports: dict[str, int]) -> None:
    check_ports(Settings.model_validate(ports | {"agent_tls": True}))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - nothing listens there
def test_a_taken_port_is_named(ports: dict[str, int], taken: str, host: str) -> None:
    said = problem(**ports, agent_tls=True, listen_host=host)
    assert said == f"Port {ports[taken]} is taken. Set {taken.upper()} to another one."


def test_ports_that_are_not_used_may_be_taken(ports: dict[str, int]) -> None:
    with socket.create_server(("127.0.0.1", ports["runtime_port"])):
        check_ports(Settings.model_validate(ports))


@pytest.mark.parametrize("host", ["192.0.2.1", "::1", "nowhere.invalid"])
def test_a_host_that_is_no_address_of_this_machine_is_refused(
    ports: dict[str, int], host: str
) -> None:
    said = problem(**ports, listen_host=host)
    assert said == f"{host} is not an IPv4 address of this machine. Set LISTEN_HOST to one."


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nowhere.invalid"])
def test_metrics_need_an_address_of_this_machine(ports: dict[str, int], host: str) -> None:
    said = problem(**ports, metrics_host=host)
    assert said == f"{host} is not an address of this machine. Set METRICS_HOST to one."


@pytest.mark.skipif(
    not Path("/proc/net/if_inet6").exists(), reason="this machine has no addresses of IPv6"
)
def test_metrics_may_have_an_address_of_ipv6(ports: dict[str, int]) -> None:
    check_ports(Settings.model_validate(ports | {"metrics_host": "::1"}))
