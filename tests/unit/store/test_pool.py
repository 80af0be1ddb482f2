"""The connections of the pool: their order."""

from evershell.store.connections import Pool


async def test_the_connection_that_was_used_last_is_used_next(pool: Pool) -> None:
    connections = [await pool.getconn() for _ in range(5)]
    for each in connections:
        await pool.putconn(each)
    for _ in range(2):
        first, second = await pool.getconn(), await pool.getconn()
        assert [first, second] == connections[:-3:-1]
        await pool.putconn(second)
        await pool.putconn(first)
