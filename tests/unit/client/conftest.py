import pytest

from tests.support.fake_channel import Service


@pytest.fixture
def service() -> Service:
    return Service()
