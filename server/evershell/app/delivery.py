"""The process in which a worker delivers webhooks (`deliver`): its parts, and how it runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

from evershell.api.a2a.encode import push_payload
from evershell.api.webhook_payload import event_payload
from evershell.app.program import signing_keys_of
from evershell.app.settings import Settings
from evershell.auth.sealing import SigningKeySealing
from evershell.core.webhook import PayloadForm
from evershell.store.background import running
from evershell.store.connections import open_pool
from evershell.store.schema import await_schema
from evershell.store.service_clock import ServiceClock
from evershell.store.webhook_deliveries import WebhookDeliveries
from evershell.telemetry import logs
from evershell.webhooks.deliverer import Deliverer
from evershell.webhooks.process import follow_worker, report
from evershell.webhooks.sender import Sender

# The process makes few statements.
_POOL_SIZE = 3


async def deliver(settings: Settings) -> None:
    """Delivers webhooks until the worker that has started it ends. Raises OperatorError."""
    logs.configure("deliver", settings.log_level)
    async with _deliverer(settings) as deliverer:
        delivering = asyncio.create_task(deliverer.run())
        reading = asyncio.create_task(follow_worker(deliverer.wake))
        await asyncio.wait((delivering, reading), return_when=asyncio.FIRST_COMPLETED)
        if delivering.done():
            # It ends only with an unexpected error, which makes the process fail.
            delivering.result()
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)


@asynccontextmanager
async def _deliverer(settings: Settings) -> AsyncIterator[Deliverer]:
    """The deliverer of webhooks, with its connections. Raises OperatorError."""
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
        sender = await stack.enter_async_context(Sender(settings.webhook_networks))
        await await_schema(pool)
        await clock.known()
        yield Deliverer(
            WebhookDeliveries(pool, clock, uuid4().hex),
            sender,
            SigningKeySealing(signing_keys),
            {PayloadForm.EVENT: event_payload, PayloadForm.A2A: push_payload},
            clock,
            report,
            clock.utc_seconds,
        )
