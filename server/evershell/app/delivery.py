"""The process that a worker starts for deliveries (`deliver`): builds its parts and runs it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from evershell.app.program import signing_keys_of
from evershell.app.settings import Settings
from evershell.auth.sealing import SigningKeySealing
from evershell.features import registry
from evershell.features.parts import ProgramParts
from evershell.store.background import running
from evershell.store.pool import open_pool
from evershell.store.schema import await_schema
from evershell.store.service_clock import ServiceClock
from evershell.telemetry import logs

# The number of database connections: few, because the process executes few statements.
_POOL_SIZE = 3


async def deliver(settings: Settings) -> None:
    """Runs until the worker that started this process ends.

    Each room (features/) itself detects that the worker has ended.

    Raises OperatorError.
    """
    logs.configure("deliver", settings.log_level)
    async with _parts(settings) as parts:
        runs = [in_delivery(parts) for in_delivery in registry.in_delivery()]
        await asyncio.gather(*(run() for run in runs))


@asynccontextmanager
async def _parts(settings: Settings) -> AsyncIterator[ProgramParts]:
    """The parts that the rooms (features/) get, with open connections. Raises OperatorError."""
    signing_keys = signing_keys_of(settings)
    async with AsyncExitStack() as stack:
        behind_pooler = bool(settings.database_session_url)
        pool = await stack.enter_async_context(
            open_pool(
                settings.database_url,
                min_size=1,
                max_size=_POOL_SIZE,
                behind_pooler=behind_pooler,
            )
        )
        clock = ServiceClock(pool)
        await stack.enter_async_context(running(clock.run(), "clock"))
        await await_schema(pool)
        await clock.known()
        yield ProgramParts(
            settings=settings,
            pool=pool,
            clock=clock,
            sealing=SigningKeySealing(signing_keys),
            payloads=registry.payloads(),
        )
