"""Webhooks in a worker: the methods, and the process that sends."""

from functools import partial

from evershell.workspace.v1 import workspace_service_pb2_grpc

from evershell.api.handlers import Service
from evershell.features.parts import WorkerParts, WorkerRoom
from evershell.features.webhooks.api import WebhookServicer
from evershell.features.webhooks.deliveries import webhooks_exist
from evershell.features.webhooks.metrics import DeliveryMetrics
from evershell.features.webhooks.process import DeliveryProcess
from evershell.features.webhooks.settings import RoomSettings
from evershell.features.webhooks.store import PostgresWebhooks
from evershell.features.webhooks.task_webhooks import StoredTaskWebhooks


def in_worker(parts: WorkerParts) -> WorkerRoom:
    """What webhooks add to a worker."""
    assert isinstance(parts.settings, RoomSettings)
    metrics = DeliveryMetrics(parts.registry)
    process = DeliveryProcess(partial(webhooks_exist, parts.pool), metrics.count)
    webhooks = PostgresWebhooks(parts.pool, process.created)
    shared = parts.store, webhooks, parts.sealing, parts.clock, parts.settings.webhook_networks
    return WorkerRoom(
        name="webhooks",
        service=Service(
            workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server,
            WebhookServicer(*shared),  # type: ignore[abstract] # a part of the service
        ),
        committed=process.committed,
        run=process.run,
        task_webhooks=StoredTaskWebhooks(*shared),
    )
