"""Webhooks in the process that a worker starts (`deliver`)."""

import asyncio
from uuid import uuid4

from evershell.features.parts import ProgramParts, Run
from evershell.features.webhooks.deliverer import Deliverer
from evershell.features.webhooks.deliveries import WebhookDeliveries
from evershell.features.webhooks.process import follow_worker, report
from evershell.features.webhooks.sender import Sender
from evershell.features.webhooks.settings import RoomSettings


def in_delivery(parts: ProgramParts) -> Run:
    """Delivers webhooks until the worker that has started the process ends."""
    settings = parts.settings
    assert isinstance(settings, RoomSettings)

    async def run() -> None:
        async with Sender(settings.webhook_networks) as sender:
            deliverer = Deliverer(
                WebhookDeliveries(parts.pool, parts.clock, uuid4().hex),
                sender,
                parts.sealing,
                parts.payloads,
                parts.clock,
                report,
                parts.clock.utc_seconds,
            )
            delivering = asyncio.create_task(deliverer.run())
            reading = asyncio.create_task(follow_worker(deliverer.wake))
            await asyncio.wait((delivering, reading), return_when=asyncio.FIRST_COMPLETED)
            if delivering.done():
                # The task ends only with an unexpected error. This line raises it.
                delivering.result()
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)

    return run
