"""Ends the sessions of a database, as a restart of PostgreSQL does."""

from psycopg import AsyncConnection


async def end_sessions(database_url: str) -> None:
    """Ends all sessions of the database except its own."""
    async with await AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
