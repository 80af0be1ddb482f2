"""Gives each test a server of its own."""

from collections.abc import AsyncIterator

import pytest

from tests.support.world import World
from tests.wire.api.running import FailingStore, Running, running


@pytest.fixture
def store() -> FailingStore:
    return FailingStore()


@pytest.fixture
def world(store: FailingStore) -> World:
    return World(store=store)


@pytest.fixture
async def server(world: World) -> AsyncIterator[Running]:
    async with running(world) as started:
        yield started
