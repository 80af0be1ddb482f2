"""Use cases: create, list and delete webhooks, replace their secrets, replay deliveries."""

import json
import secrets
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol

from evershell.core import errors
from evershell.core.caller import Caller, Permission
from evershell.core.change import FirstCall, IdempotencyKey, KeyTakenError
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.idempotency import earlier_call
from evershell.core.ids import new_webhook_id
from evershell.core.ports import Clock, IdempotencyKeys, Sealing, Workspaces
from evershell.core.tasks import get_task
from evershell.core.validation import check_identifiers
from evershell.features.webhooks.ports import WebhookStore
from evershell.features.webhooks.rules import (
    MAX_TASK_WEBHOOKS,
    MAX_WEBHOOKS,
    READ_SCOPE,
    CreateWebhook,
    TaskScope,
    Webhook,
    WebhookDelivery,
)

_SCOPE = "webhooks:write"
# How long requests are also signed with a replaced secret.
_PREVIOUS_SECRET_KEPT = timedelta(hours=24)
# Standard Webhooks asks for 24 to 64 bytes.
_SECRET_BYTES = 32
_SECRET_PREFIX = "whsec_"  # noqa: S105


class CreateWebhookStore(IdempotencyKeys, Workspaces, Protocol):
    """What `create_webhook` needs from the store."""


async def create_webhook(
    caller: Caller,
    request: CreateWebhook,
    origin: Origin,
    store: CreateWebhookStore,
    webhooks: WebhookStore,
    sealing: Sealing,
    clock: Clock,
    key: IdempotencyKey | None = None,
) -> tuple[Webhook, str]:
    """Records a webhook. Returns it with its secret.

    If an earlier call had the same `key`, returns the webhook of that call, with an empty secret. A
    webhook of a task also gets the earlier events of the task, and replaces the task's webhook with
    the same name.

    Raises Failure: permission_denied, workspace_not_found, task_not_found, too_many_webhooks,
    idempotency_conflict, unavailable.
    """
    permission = _permission(caller)
    if request.task is not None:
        await get_task(caller, request.task.workspace_id, request.task.task_id, store)
    now = clock()
    webhook, secret = _new(caller, request, permission, sealing, now)
    call = None
    if key is not None:
        call = replace(key.first_call(caller, now, ""), answer=_answer(webhook))
    try:
        await webhooks.create_webhook(webhook, _limit(request.task), origin.audit, call)
    except (Failure, KeyTakenError) as refusal:
        first = await earlier_call(call, refusal, store)
        await webhooks.add_audit_entry(origin.audit)
        return _answered(first, webhook), ""
    return webhook, secret


def _permission(caller: Caller) -> Permission:
    """The permission to change webhooks.

    With only `workspace:read:own`, it covers the caller's own webhooks. Raises Failure
    permission_denied.
    """
    caller.require(_SCOPE)
    return caller.permission(READ_SCOPE)


def _limit(task: TaskScope | None) -> int:
    return MAX_WEBHOOKS if task is None else MAX_TASK_WEBHOOKS


def _new(
    caller: Caller,
    request: CreateWebhook,
    permission: Permission,
    sealing: Sealing,
    now: datetime,
) -> tuple[Webhook, str]:
    webhook_id, secret = new_webhook_id(now), secrets.token_bytes(_SECRET_BYTES)
    headers = json.dumps(dict(request.headers)).encode() if request.headers else None
    webhook = Webhook(
        id=webhook_id,
        org_id=caller.org_id,
        url=request.url,
        event_types=sorted(set(request.event_types)),
        description=request.description,
        created_by=caller.actor_id,
        created_at=now,
        # An API key has no user id. With the empty id, its webhook gets no events, because no
        # workspace has this creator.
        creator_user_id=(caller.user_id or "") if permission.own_only else None,
        task=request.task,
        payload_form=request.payload_form,
        sealed_headers=headers and sealing.seal(headers, webhook_id),
        sealed_secret=sealing.seal(secret, webhook_id),
    )
    return webhook, _secret_text(secret)


def _secret_text(secret: bytes) -> str:
    return _SECRET_PREFIX + b64encode(secret).decode()


def _answer(webhook: Webhook) -> str:
    """What a repeat needs, in addition to its request, to return the same webhook."""
    return json.dumps(
        {
            "id": webhook.id,
            "created_by": webhook.created_by,
            "created_at": webhook.created_at.isoformat(),
        }
    )


def _answered(first: FirstCall, webhook: Webhook) -> Webhook:
    """The webhook of the first call, made from the webhook of its repeat."""
    answer = json.loads(first.answer)
    return replace(
        webhook,
        id=answer["id"],
        created_by=answer["created_by"],
        created_at=datetime.fromisoformat(answer["created_at"]),
    )


async def list_webhooks(
    caller: Caller, webhooks: WebhookStore, task: TaskScope | None = None
) -> Sequence[Webhook]:
    """The webhooks of the organization or of a task, newest first.

    With only `workspace:read:own`, the webhooks that the caller created. Raises Failure
    permission_denied.
    """
    permission = caller.permission(READ_SCOPE)
    listed = await webhooks.list_webhooks(caller.org_id, task)
    return [each for each in listed if permission.includes(each.created_by)]


async def delete_webhook(
    caller: Caller, webhook_id: str, origin: Origin, webhooks: WebhookStore
) -> Webhook:
    """Deletes the webhook, and returns it. Raises Failure permission_denied, webhook_not_found."""
    check_identifiers(webhook_id=webhook_id)
    deleted = await webhooks.delete_webhook(_permission(caller), webhook_id, origin.audit)
    if deleted is None:
        raise errors.webhook_not_found(webhook_id)
    return deleted


async def rotate_webhook_secret(
    caller: Caller,
    webhook_id: str,
    origin: Origin,
    webhooks: WebhookStore,
    sealing: Sealing,
    clock: Clock,
) -> tuple[Webhook, str]:
    """Replaces the secret of the webhook. Returns the webhook with the new secret.

    Requests are also signed with the previous secret for 24 hours. Within this time, a further call
    replaces only the newest secret. Raises Failure permission_denied, webhook_not_found.
    """
    check_identifiers(webhook_id=webhook_id)
    permission = _permission(caller)
    now = clock()
    secret = secrets.token_bytes(_SECRET_BYTES)
    rotated = await webhooks.rotate_secret(
        permission,
        webhook_id,
        sealing.seal(secret, webhook_id),
        now,
        now + _PREVIOUS_SECRET_KEPT,
        origin.audit,
    )
    if rotated is None:
        raise errors.webhook_not_found(webhook_id)
    return rotated, _secret_text(secret)


async def replay_webhook(
    caller: Caller,
    webhook_id: str,
    task_id: str | None,
    origin: Origin,
    webhooks: WebhookStore,
    clock: Clock,
) -> tuple[int, int]:
    """Makes failed deliveries pending again, and enables the webhook.

    Returns how many deliveries this call made pending, and how many need a further call. Raises
    Failure permission_denied, webhook_not_found.
    """
    check_identifiers(webhook_id=webhook_id, **({"task_id": task_id} if task_id else {}))
    counts = await webhooks.replay(_permission(caller), webhook_id, task_id, clock(), origin.audit)
    if counts is None:
        raise errors.webhook_not_found(webhook_id)
    return counts


async def list_webhook_deliveries(
    caller: Caller, workspace_id: str, task_id: str, store: Workspaces, webhooks: WebhookStore
) -> Sequence[WebhookDelivery]:
    """The deliveries of the task's events, the newest webhook first.

    Raises Failure permission_denied, workspace_not_found, task_not_found.
    """
    await get_task(caller, workspace_id, task_id, store)
    return await webhooks.list_deliveries(workspace_id, task_id)
