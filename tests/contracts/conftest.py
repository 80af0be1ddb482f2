"""The implementations of Store, for the contract suites."""

from collections.abc import AsyncIterator

import pytest

from server.core.ports import Store
from server.store.pool import open_pool
from server.store.postgres_store import PostgresStore
from tests.support.fakes import FakeStore


@pytest.fixture
def announced() -> list[str]:
    """The ids of the workspaces that the store has announced, in order."""
    return []


@pytest.fixture(params=["fake", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    """The database of the store under test; None for the store in memory."""
    return request.getfixturevalue("database_url") if request.param == "postgres" else None


@pytest.fixture
async def store(store_url: str | None, announced: list[str]) -> AsyncIterator[Store]:
    """Each implementation in turn."""
    if store_url is None:
        yield FakeStore(announced.append)
        return
    async with open_pool(store_url) as opened:
        yield PostgresStore(opened, announced.append)
