"""A second role of the service replaces the first one, for a new password without an outage."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from evershell.store.connections import open_pool
from evershell.store.migrate import migrate
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support.store.examples import intent, permission, with_task

ROLES = ("service_a", "service_b")


@pytest.fixture
def role_urls(empty_database_url: str) -> Iterator[list[str]]:
    with psycopg.connect(empty_database_url, autocommit=True) as owner:
        for role in ROLES:
            owner.execute(f"CREATE ROLE {role} LOGIN")
        yield [make_conninfo(empty_database_url, user=role) for role in ROLES]
        for role in ROLES:
            owner.execute(f"DROP OWNED BY {role}")
            owner.execute(f"DROP ROLE {role}")


async def test_two_roles_serve_at_the_same_time(
    empty_database_url: str, role_urls: list[str]
) -> None:
    for url in role_urls:
        migrate(empty_database_url, url)
    async with (
        open_pool(role_urls[0], min_size=1) as first,
        open_pool(role_urls[1], min_size=1) as second,
    ):
        busy, _ = await with_task(PostgresStore(first, machine_clock))
        found = await PostgresStore(second, machine_clock).record_cancellation(
            permission(), busy.id, None, intent()
        )
        assert found.recorded
        again, _ = await with_task(PostgresStore(second, machine_clock))
        found = await PostgresStore(first, machine_clock).record_cancellation(
            permission(), again.id, None, intent()
        )
        assert found.recorded
