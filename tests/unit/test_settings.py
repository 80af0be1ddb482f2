"""What settings mean together, and which values they refuse."""

import pytest
from pydantic import ValidationError

from evershell.app.settings import Settings
from evershell.app.worker import _rate_limits


def test_no_calls_a_second_is_no_limit() -> None:
    assert _rate_limits(Settings(rate_limit_per_second=0)) is None
    assert _rate_limits(Settings(rate_limit_per_second=2)) is not None


def test_all_ports_of_workers_exist() -> None:
    agents = Settings(server_port=65_434, workers=2, agent_tls=True).runtime_addresses
    assert agents == ["127.0.0.1:65534", "127.0.0.1:65535"]
    Settings(server_port=65_534, workers=2)
    with pytest.raises(ValidationError, match="the last port of a worker would be 65536"):
        Settings(server_port=65_535, workers=2)
    with pytest.raises(ValidationError, match="the last port of a worker would be 65536"):
        Settings(server_port=65_435, workers=2, agent_tls=True)
