"""The implementations of Store, for the contract suites."""

from collections.abc import AsyncIterator

import pytest

from evershell.core.ports import Store
from evershell.store.memory.memory_store import MemoryStore
from evershell.store.pool import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.published import Published


@pytest.fixture
def published() -> Published:
    """What the store has published."""
    return Published()


@pytest.fixture(params=["memory", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of the store's database; None for the store in memory."""
    return request.getfixturevalue("database_url") if request.param == "postgres" else None


@pytest.fixture
async def store(store_url: str | None, published: Published) -> AsyncIterator[Store]:
    """Each implementation of Store in turn."""
    if store_url is None:
        yield MemoryStore(machine_clock, published)
        return
    async with open_pool(store_url) as opened:
        yield PostgresStore(opened, machine_clock, published)
