"""What `up` decides before it starts programs: their environments, the sandbox and the ports."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from pydantic import SecretStr

from evershell.app.settings import AGENT_PORT_DISTANCE, Settings
from evershell.core.errors import OperatorError
from evershell.fleet.local import isolation
from evershell.stack import up
from evershell.stack.environments import (
    edge_environment,
    edge_metrics_port,
    fleet_environment,
    foreign_environment,
    render_environment,
    worker_environment,
)
from evershell.stack.envoy.collector import Collector
from evershell.stack.envoy.config import Edge
from evershell.stack.port_check import check_ports
from tests.support.ports import free_ports

SECRETS = {
    "DATABASE_URL": "postgresql://service:secret@host/db",
    "MIGRATION_DATABASE_URL": "postgresql://owner:secret@host/db",
    "OPENAI_API_KEY": "sk-secret",
    "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret",
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {**SECRETS, "PATH": "/bin", "METRICS_ADDRESS": "127.0.0.1:9000"}.items():
        monkeypatch.setenv(name, value)
    return Settings.read()


def test_programs_of_others_get_no_setting_of_the_service(settings: Settings) -> None:
    environment = foreign_environment()
    assert environment["PATH"] == "/bin"
    assert not {name.upper() for name in Settings.model_fields} & set(environment)
    assert not any("secret" in value for value in environment.values())


def test_envoy_gets_the_headers_for_the_collector_of_spans(settings: Settings) -> None:
    collector = Collector.of("http://127.0.0.1:4318", SECRETS)
    environment = edge_environment(Edge(1, 2, [], Path("admin.sock"), collector=collector))
    without = edge_environment(Edge(1, 2, [], Path("admin.sock")))
    assert environment == without | {"EVERSHELL_COLLECTOR_HEADER_0": "secret"}
    assert without == foreign_environment()


def test_a_worker_gets_no_key_of_a_model_and_no_role_that_migrates(settings: Settings) -> None:
    environment = worker_environment(settings, 1)
    assert (environment["DATABASE_URL"], environment["METRICS_ADDRESS"]) == (
        SECRETS["DATABASE_URL"],
        "127.0.0.1:9001",
    )
    assert "OPENAI_API_KEY" not in environment
    assert environment["MIGRATION_DATABASE_URL"] == ""


def test_the_controller_gets_the_key_of_the_model(settings: Settings) -> None:
    environment, standby = fleet_environment(settings, 0), fleet_environment(settings, 1)
    assert settings.openai_api_key == SecretStr(environment["OPENAI_API_KEY"])
    first = 9000 + settings.workers
    assert environment["METRICS_ADDRESS"] == f"127.0.0.1:{first}"
    assert edge_metrics_port(settings) == first + 1
    assert render_environment(settings)["METRICS_ADDRESS"] == f"127.0.0.1:{first + 1}"
    assert standby == environment | {"METRICS_ADDRESS": f"127.0.0.1:{first + 2}"}
    assert environment["MIGRATION_DATABASE_URL"] == ""


@pytest.fixture
def _no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(*_: object) -> isolation.Isolation:
        raise OperatorError("the reason and the remedy")

    monkeypatch.setattr(isolation, "choose", choose)


@pytest.mark.usefixtures("_no_sandbox")
def test_a_stack_that_only_its_machine_can_call_starts_with_a_warning(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert up._choose_isolation(Settings()) == "none"
    said = capfd.readouterr().out
    assert "WARNING: the reason and the remedy" in said
    assert "Isolation of pods: none. It lacks any boundary" in said


@pytest.mark.usefixtures("_no_sandbox")
def test_pods_on_kubernetes_need_no_sandbox_here() -> None:
    elsewhere = Settings(
        pod_image="image",
        runtime_service="workers:1",
        listen_host="192.0.2.1",
    )
    assert up._choose_isolation(elsewhere) == "auto"


@pytest.mark.usefixtures("_no_sandbox")
@pytest.mark.parametrize(("wanted", "host"), [("sandbox", "127.0.0.1"), ("auto", "192.0.2.1")])
def test_another_stack_is_refused(wanted: Literal["auto", "sandbox"], host: str) -> None:
    with pytest.raises(OperatorError, match="the reason"):
        up._choose_isolation(Settings(pod_isolation=wanted, listen_host=host))


@pytest.fixture
def ports() -> dict[str, str]:
    rest, grpc, server, _ = free_ports(4, distance=AGENT_PORT_DISTANCE)
    metrics, *_ = free_ports(5, in_a_row=5)
    return {
        "rest_port": str(rest),
        "grpc_port": str(grpc),
        "server_port": str(server),
        "metrics_address": f"127.0.0.1:{metrics}",
    }


@pytest.fixture(
    params=[
        ("rest_port", 0),
        ("grpc_port", 0),
        ("server_port", 1),
        ("server_port", AGENT_PORT_DISTANCE),
        ("metrics_address", 0),
    ]
)
def taken(request: pytest.FixtureRequest, ports: dict[str, str]) -> Iterator[tuple[str, int]]:
    """The name of a setting, and a port that belongs to it and is taken."""
    name, distance = request.param
    port = int(ports[name].rpartition(":")[2]) + distance
    with socket.create_server(("127.0.0.1", port)):
        yield name, port


def problem(**settings: object) -> str:
    with pytest.raises(OperatorError) as refused:
        check_ports(Settings.model_validate(settings))
    return str(refused.value)


def test_free_ports_are_accepted(ports: dict[str, str]) -> None:
    check_ports(Settings.model_validate(ports | {"agent_tls": True}))


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - nothing listens there
def test_a_taken_port_is_named(ports: dict[str, str], taken: tuple[str, int], host: str) -> None:
    said, (name, port) = problem(**ports, agent_tls=True, listen_host=host), taken
    assert said == f"Port {port} is taken. Set {name.upper()} to another one."


@pytest.mark.parametrize("host", ["192.0.2.1", "::1", "nowhere.invalid"])
def test_a_host_that_is_no_address_of_this_machine_is_refused(
    ports: dict[str, str], host: str
) -> None:
    said = problem(**ports, listen_host=host)
    assert said == f"{host} is not an IPv4 address of this machine. Set LISTEN_HOST to one."


def test_ports_that_are_not_used_may_be_taken(ports: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(ports["server_port"]) + AGENT_PORT_DISTANCE)):
        check_ports(Settings.model_validate(ports))


@pytest.mark.parametrize("host", ["192.0.2.1", "[2001:db8::1]", "nowhere.invalid"])
def test_metrics_need_an_address_of_this_machine(ports: dict[str, str], host: str) -> None:
    said = problem(**ports | {"metrics_address": f"{host}:9100"})
    address = host.strip("[]")
    assert said == f"{address} is not an address of this machine. Set METRICS_ADDRESS to one."


@pytest.mark.skipif(
    not Path("/proc/net/if_inet6").exists(), reason="this machine has no addresses of IPv6"
)
def test_metrics_may_have_an_address_of_ipv6(ports: dict[str, str]) -> None:
    port = ports["metrics_address"].rpartition(":")[2]
    check_ports(Settings.model_validate(ports | {"metrics_address": f"[::1]:{port}"}))
