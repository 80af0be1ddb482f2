"""The preparation of the database for a stack: the demo workspace."""

import time
from pathlib import Path

from evershell.app.settings import Settings
from evershell.core import workspace_lifecycle
from evershell.stack.database import seed
from evershell.store.keys import PostgresKeys
from evershell.store.pool import Pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.contracts.test_store_deletion import delete
from tests.support.store.examples import intent


async def test_a_deleted_demo_workspace_is_replaced(pool: Pool, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    store, keys = PostgresStore(pool, machine_clock), PostgresKeys(pool)

    async def demo() -> str:
        return (await seed(settings, store, keys, machine_clock, time.time)).workspace_id

    first = await demo()
    assert await demo() == first
    await store.transition(
        first, lambda locked: workspace_lifecycle.request_delete(locked, intent())
    )
    second = await demo()
    await delete(store, second)
    assert await store.remove_workspace(second) is True
    third = await demo()
    assert len({first, second, third}) == 3
    assert await demo() == third
