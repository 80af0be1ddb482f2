"""Gives each test its own server."""

from collections.abc import AsyncIterator

import pytest
from a2a.types import a2a_pb2_grpc

from tests.support.faulty_store import FaultyStore
from tests.support.world import World
from tests.wire.api.a2a_calls import A2A
from tests.wire.api.running import Running, running


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore()


@pytest.fixture
def world(store: FaultyStore) -> World:
    return World(store=store)


@pytest.fixture
async def server(world: World) -> AsyncIterator[Running]:
    async with running(world) as started:
        yield started


@pytest.fixture
async def a2a(server: Running) -> AsyncIterator[A2A]:
    workspace, task = await server.world.add_busy()
    yield A2A(server, a2a_pb2_grpc.A2AServiceStub(server.channel), workspace, task)
