"""A pool for each test, and each implementation of the store."""

from collections.abc import AsyncIterator

import pytest

from server.core.ports import Store
from server.store.pool import open_pool
from server.store.postgres_store import PostgresStore
from tests.support.fakes import FakeStore


@pytest.fixture(params=["fake", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """Where the store under test keeps its data; None: in memory."""
    return request.getfixturevalue("database_url") if request.param == "postgres" else None


@pytest.fixture
async def store(store_url: str | None) -> AsyncIterator[Store]:
    """Every implementation of the port in turn."""
    if store_url is None:
        yield FakeStore()
        return
    async with open_pool(store_url) as opened:
        yield PostgresStore(opened)
