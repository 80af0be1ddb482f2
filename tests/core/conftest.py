"""A world for each test."""

import pytest

from tests.core.world import World


@pytest.fixture
def world() -> World:
    return World()
