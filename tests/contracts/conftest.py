"""Each implementation of each port."""

from collections.abc import AsyncIterator

import pytest

from server.core.ports import Store
from server.store.pool import open_pool
from server.store.postgres_store import PostgresStore
from tests.support.fakes import FakeStore


@pytest.fixture
def announced() -> list[str]:
    """The workspaces that the store has announced."""
    return []


@pytest.fixture(params=["fake", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """Where the store under test keeps its data; None: in memory."""
    return request.getfixturevalue("database_url") if request.param == "postgres" else None


@pytest.fixture
async def store(store_url: str | None, announced: list[str]) -> AsyncIterator[Store]:
    """Every implementation of the port in turn."""
    if store_url is None:
        yield FakeStore(announced.append)
        return
    async with open_pool(store_url) as opened:
        yield PostgresStore(opened, announced.append)
