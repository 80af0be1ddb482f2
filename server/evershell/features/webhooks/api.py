"""The webhook methods of WorkspaceService.

Each method decodes its request, calls a use case and encodes the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from evershell.workspace.v1 import webhook_pb2, workspace_service_pb2, workspace_service_pb2_grpc

from evershell.api.call import caller, idempotency_key, origin
from evershell.core.addresses import Network
from evershell.core.ports import Clock, Sealing, Store
from evershell.features.webhooks import codec, use_cases
from evershell.features.webhooks.ports import WebhookStore

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class WebhookServicer(workspace_service_pb2_grpc.WorkspaceServiceServicer):
    """Implements the methods of WorkspaceService for webhooks."""

    store: Store
    webhooks: WebhookStore
    sealing: Sealing
    clock: Clock
    # The networks whose addresses may be called although they are not public.
    allowed_networks: Sequence[Network] = ()

    async def CreateWebhook(
        self, request: workspace_service_pb2.CreateWebhookRequest, context: Context
    ) -> workspace_service_pb2.CreateWebhookResponse:
        created, secret = await use_cases.create_webhook(
            caller(),
            codec.decode_create(request, self.allowed_networks),
            origin(),
            self.store,
            self.webhooks,
            self.sealing,
            self.clock,
            idempotency_key(request),
        )
        return workspace_service_pb2.CreateWebhookResponse(
            webhook=codec.encode_webhook(created), secret=secret
        )

    async def ListWebhooks(
        self, request: workspace_service_pb2.ListWebhooksRequest, context: Context
    ) -> workspace_service_pb2.ListWebhooksResponse:
        listed = await use_cases.list_webhooks(caller(), self.webhooks)
        return workspace_service_pb2.ListWebhooksResponse(
            webhooks=map(codec.encode_webhook, listed)
        )

    async def DeleteWebhook(
        self, request: workspace_service_pb2.DeleteWebhookRequest, context: Context
    ) -> webhook_pb2.Webhook:
        return codec.encode_webhook(
            await use_cases.delete_webhook(caller(), request.webhook_id, origin(), self.webhooks)
        )

    async def RotateWebhookSecret(
        self, request: workspace_service_pb2.RotateWebhookSecretRequest, context: Context
    ) -> workspace_service_pb2.RotateWebhookSecretResponse:
        rotated, secret = await use_cases.rotate_webhook_secret(
            caller(), request.webhook_id, origin(), self.webhooks, self.sealing, self.clock
        )
        return workspace_service_pb2.RotateWebhookSecretResponse(
            webhook=codec.encode_webhook(rotated), secret=secret
        )

    async def ReplayWebhook(
        self, request: workspace_service_pb2.ReplayWebhookRequest, context: Context
    ) -> workspace_service_pb2.ReplayWebhookResponse:
        replayed, remaining = await use_cases.replay_webhook(
            caller(),
            request.webhook_id,
            request.task_id or None,
            origin(),
            self.webhooks,
            self.clock,
        )
        return workspace_service_pb2.ReplayWebhookResponse(replayed=replayed, remaining=remaining)

    async def ListWebhookDeliveries(
        self, request: workspace_service_pb2.ListWebhookDeliveriesRequest, context: Context
    ) -> workspace_service_pb2.ListWebhookDeliveriesResponse:
        deliveries = await use_cases.list_webhook_deliveries(
            caller(), request.workspace_id, request.task_id, self.store, self.webhooks
        )
        return workspace_service_pb2.ListWebhookDeliveriesResponse(
            deliveries=map(codec.encode_delivery, deliveries)
        )
