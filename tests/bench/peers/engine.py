"""The engine of SQLAlchemy with which a peer's server opens its connections."""

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.bench.peers.settings import PeerSettings


def create_engine(settings: PeerSettings) -> AsyncEngine:
    """An engine on asyncpg that keeps `pool_size` connections open, and never opens more."""
    return create_async_engine(
        "postgresql+asyncpg://",
        connect_args={
            "host": settings.database_host,
            "port": settings.database_port,
            "user": settings.database_user,
            "password": settings.database_password,
            "database": settings.database_dbname,
        },
        pool_size=settings.pool_size,
        max_overflow=0,
    )
