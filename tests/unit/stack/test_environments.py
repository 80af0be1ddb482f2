"""Each program of the stack gets only the secrets that it uses."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from evershell.app.settings import Settings
from evershell.stack.environments import (
    edge_environment,
    edge_metrics_port,
    fleet_environment,
    foreign_environment,
    worker_environment,
)
from evershell.stack.envoy.config import Collector, Edge

SECRETS = {
    "DATABASE_URL": "postgresql://service:secret@host/db",
    "MIGRATION_DATABASE_URL": "postgresql://owner:secret@host/db",
    "OPENAI_API_KEY": "sk-secret",
    "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret",
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {**SECRETS, "PATH": "/bin", "METRICS_PORT": "9000"}.items():
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
    assert (environment["DATABASE_URL"], environment["METRICS_PORT"]) == (
        SECRETS["DATABASE_URL"],
        "9001",
    )
    assert "OPENAI_API_KEY" not in environment
    assert environment["MIGRATION_DATABASE_URL"] == ""


def test_the_controller_gets_the_key_of_the_model(settings: Settings) -> None:
    environment = fleet_environment(settings)
    assert settings.openai_api_key == SecretStr(environment["OPENAI_API_KEY"])
    assert environment["METRICS_PORT"] == str(9000 + settings.workers)
    assert edge_metrics_port(settings) == 9000 + settings.workers + 1
    assert environment["MIGRATION_DATABASE_URL"] == ""
