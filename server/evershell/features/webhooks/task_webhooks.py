"""The webhooks of tasks, for other rooms."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evershell.core.addresses import Network
from evershell.core.caller import Caller
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.ports import Clock, Sealing, Store
from evershell.core.tasks import get_task
from evershell.features.parts import TaskWebhook
from evershell.features.webhooks import use_cases
from evershell.features.webhooks.ports import WebhookStore
from evershell.features.webhooks.rules import CreateWebhook, TaskScope, Webhook


@dataclass(frozen=True, slots=True)
class StoredTaskWebhooks:
    """Implements parts.TaskWebhooks."""

    store: Store
    webhooks: WebhookStore
    sealing: Sealing
    clock: Clock
    # The networks whose addresses may be called although they are not public.
    allowed_networks: Sequence[Network] = ()

    def check(self, wanted: TaskWebhook) -> None:
        self._request(wanted)

    def _request(self, wanted: TaskWebhook) -> CreateWebhook:
        return CreateWebhook(
            url=wanted.url,
            event_types=wanted.event_types,
            task=TaskScope(
                workspace_id=wanted.workspace_id, task_id=wanted.task_id, name=wanted.name
            ),
            payload_form=wanted.form,
            headers=wanted.headers,
            allowed_networks=self.allowed_networks,
        )

    async def create(self, caller: Caller, wanted: TaskWebhook, origin: Origin) -> TaskWebhook:
        created, _ = await use_cases.create_webhook(
            caller,
            self._request(wanted),
            origin,
            self.store,
            self.webhooks,
            self.sealing,
            self.clock,
        )
        return self._shown(created)

    async def list_of_task(
        self, caller: Caller, workspace_id: str, task_id: str
    ) -> Sequence[TaskWebhook]:
        return [self._shown(each) for each in await self._list(caller, workspace_id, task_id)]

    async def _list(self, caller: Caller, workspace_id: str, task_id: str) -> Sequence[Webhook]:
        await get_task(caller, workspace_id, task_id, self.store)
        scope = TaskScope(workspace_id=workspace_id, task_id=task_id, name="")
        return await use_cases.list_webhooks(caller, self.webhooks, scope)

    async def delete(
        self, caller: Caller, workspace_id: str, task_id: str, name: str, origin: Origin
    ) -> None:
        listed = await self._list(caller, workspace_id, task_id)
        found = next((each for each in listed if each.task and each.task.name == name), None)
        if found is None:
            # A repeat finds no webhook and has no effect, but needs the same scope.
            caller.require("webhooks:write")
            return
        try:
            await use_cases.delete_webhook(caller, found.id, origin, self.webhooks)
        except Failure as failure:
            # webhook_not_found: another call has just deleted the webhook.
            if failure.slug != "webhook_not_found":
                raise

    def _shown(self, webhook: Webhook) -> TaskWebhook:
        task = webhook.task
        assert task is not None, "it is a webhook of a task"
        headers: Mapping[str, str] = {}
        if webhook.sealed_headers is not None:
            headers = json.loads(self.sealing.open(webhook.sealed_headers, webhook.id))
        return TaskWebhook(
            workspace_id=task.workspace_id,
            task_id=task.task_id,
            name=task.name,
            url=webhook.url,
            event_types=webhook.event_types,
            form=webhook.payload_form,
            headers=headers,
        )
