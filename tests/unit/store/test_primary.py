"""Connections by a URL that names several hosts.

long/test_former_primary.py tests a former primary that comes back.
tests/stack/long/test_fail_over.py promotes the standby of a stack.
"""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from evershell.store.connections import PrimaryConnection, primary_conninfo, primary_of
from evershell.store.migrate import migrate
from evershell.store.pool import connected, open_pool

NOBODY = "/nonexistent"


@pytest.fixture
def host(empty_database_url: str) -> str:
    return str(conninfo_to_dict(empty_database_url)["host"])


@pytest.fixture
def url_of_two(empty_database_url: str, host: str) -> str:
    return make_conninfo(empty_database_url, host=f"{NOBODY},{host}")


async def test_a_host_that_does_not_answer_is_passed_over(url_of_two: str, host: str) -> None:
    async with open_pool(url_of_two, min_size=0) as pool, connected(pool) as connection:
        assert connection.info.host == host
    assert conninfo_to_dict(await primary_of(url_of_two))["host"] == host


def test_migrations_find_the_primary(url_of_two: str) -> None:
    migrate(url_of_two)
    with psycopg.connect(url_of_two) as connection:
        assert connection.execute("SELECT count(*) FROM workspaces").fetchone() == (0,)


async def test_without_a_primary_it_says_why(empty_database_url: str) -> None:
    url = make_conninfo(empty_database_url, host=f"{NOBODY},{NOBODY}")
    with pytest.raises(psycopg.OperationalError, match="No such file"):
        await PrimaryConnection.connect(url)


def test_a_host_without_a_port_is_not_left_out(empty_database_url: str, host: str) -> None:
    """The host without a port could be the promoted server."""
    url = make_conninfo(empty_database_url, host=f"{host},{host},{host}", port="1,2")
    with pytest.raises(psycopg.OperationalError, match="2 ports for 3 hosts"):
        primary_conninfo(url)


async def test_no_standby_is_taken(empty_database_url: str, host: str) -> None:
    """A server that accepts no writes counts as a standby."""
    url = make_conninfo(
        empty_database_url,
        host=f"{host},{host}",
        options="-c default_transaction_read_only=on",
    )
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        await PrimaryConnection.connect(url)
