"""What settings mean together, and which values they refuse."""

import pytest
from pydantic import ValidationError

from evershell.app.removed_settings import renamed_settings
from evershell.app.settings import Settings
from evershell.app.worker import _rate_limits


def test_a_rate_limit_is_off_or_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, calls in (("off", 0), ("false", 0), ("0", 0), ("on", 100), ("2", 2)):
        monkeypatch.setenv("RATE_LIMIT", value)
        settings = Settings.read()
        assert settings.rate_limit == calls
        assert (_rate_limits(settings) is None) is (calls == 0)


def test_all_ports_of_workers_exist() -> None:
    agents = Settings(server_port=65_434, workers=2, agent_tls=True).runtime_addresses
    assert agents == ["127.0.0.1:65534", "127.0.0.1:65535"]
    Settings(server_port=65_534, workers=2)
    with pytest.raises(ValidationError, match="the last port of a worker would be 65536"):
        Settings(server_port=65_535, workers=2)
    with pytest.raises(ValidationError, match="the last port of a worker would be 65536"):
        Settings(server_port=65_435, workers=2, agent_tls=True)


def test_an_address_of_metrics_is_a_host_and_a_port() -> None:
    of_ipv6 = Settings(metrics_address="[::1]:9100")
    assert (of_ipv6.metrics_host, of_ipv6.metrics_port) == ("::1", 9100)
    for address in ("9100", ":9100", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:9100"):
        with pytest.raises(ValidationError, match="must be host:port"):
            Settings(metrics_address=address)


def test_a_program_of_an_earlier_up_reads_the_address_of_its_metrics() -> None:
    given = {"RUN_ID": "run_1", "METRICS_HOST": "::1", "METRICS_PORT": "9100"}
    assert renamed_settings(given) == {"METRICS_ADDRESS": "[::1]:9100"}
    assert renamed_settings(given | {"METRICS_PORT": "0"}) == {}


def test_pods_run_on_kubernetes_if_they_have_an_image() -> None:
    assert not Settings(runtime_service="workers:50151").on_kubernetes
    assert Settings(pod_image="image", runtime_service="workers:50151").on_kubernetes
    with pytest.raises(ValidationError, match="POD_IMAGE needs RUNTIME_SERVICE"):
        Settings(pod_image="image")
