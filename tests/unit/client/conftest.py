import pytest

from tests.unit.client.fake_channel import Service


@pytest.fixture
def service() -> Service:
    return Service()
