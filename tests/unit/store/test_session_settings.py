"""The settings of sessions as defaults of a role."""

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from evershell.store.connections import connect_for_command
from evershell.store.migrate import migrate
from evershell.store.session_settings import SETTINGS, store_as_defaults


@pytest.fixture
def service_url(empty_database_url: str) -> Iterator[str]:
    """The URL of a role without any privilege."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN")
        yield make_conninfo(empty_database_url, user="plain")
        connection.execute("DROP ROLE plain")


def test_a_role_without_privileges_gets_the_settings(service_url: str) -> None:
    for _ in range(2):
        store_as_defaults(service_url)
        with psycopg.connect(service_url) as connection:
            for name, value in SETTINGS.items():
                assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)


def test_migrations_have_no_limits_although_their_role_has(empty_database_url: str) -> None:
    store_as_defaults(empty_database_url)
    with connect_for_command(empty_database_url) as connection:
        assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)
    migrate(empty_database_url)
