"""No program uses a former primary that comes back, even if it is the first host of the URL.

tests/stack/long/test_fail_over.py tests the same with a whole stack.
"""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from evershell.store.connections import PrimaryConnection, primary_of
from evershell.store.pool import connected, open_pool
from tests.support.replication import Replication


@pytest.fixture
def replication(tmp_path: Path) -> Iterator[Replication]:
    """Two servers after a fail-over: the former primary runs again, and waits for no standby."""
    pair = Replication(tmp_path)
    try:
        pair.start()
        pair.primary.kill()
        pair.promote()
        pair.primary.start()
        for server in (pair.primary, pair.standby):
            with server.connect() as connection:
                connection.execute("CREATE TABLE written ()")
        yield pair
    finally:
        pair.stop()


async def test_it_is_never_used(replication: Replication) -> None:
    current = str(replication.standby.places.socket_dir)
    async with open_pool(replication.url, min_size=1) as pool, connected(pool) as connection:
        assert connection.info.host == current
    assert f"host={current}" in await primary_of(replication.url)
    # The former primary is not used even while the current primary is down.
    replication.standby.kill()
    with pytest.raises(psycopg.OperationalError, match="former primary"):
        await PrimaryConnection.connect(replication.url)


async def test_connections_to_it_are_not_used_once_the_process_knows_the_new_primary(
    replication: Replication,
) -> None:
    former, current = (
        str(server.places.socket_dir) for server in (replication.primary, replication.standby)
    )
    async with open_pool(replication.url, min_size=1) as pool:
        with replication.standby.frozen():
            async with connected(pool) as connection:
                assert connection.info.host == former
        assert f"host={current}" in await primary_of(replication.url)
        async with connected(pool) as connection:
            assert connection.info.host == current
