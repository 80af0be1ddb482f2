"""A2AService (https://a2a-protocol.org, version 1.0).

Each method decodes its request, calls the core and encodes the result. The `tenant` of a request is
the id of a workspace. docs/a2a.md says how A2A maps to the core, and what is refused.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import grpc
from a2a.types import a2a_pb2, a2a_pb2_grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import empty_pb2

from evershell.api import codec
from evershell.api.call import caller, current, origin
from evershell.core import deadline, errors, tasks, watch_events, workspaces
from evershell.core.cancel_task import CancelResult, Outcome, await_end, cancel_task
from evershell.core.errors import Failure
from evershell.core.event_feeds import EventFeeds
from evershell.core.ports import Agents, Clock, Store, Subscriptions
from evershell.core.task import Task
from evershell.core.workspace import Workspace
from evershell.features.a2a import decode, encode, push, use_cases
from evershell.features.a2a.card import Endpoints, cache_headers, encode_card
from evershell.features.parts import TaskWebhooks

# How long SendMessage waits for the end of the task, if the call has no deadline.
_FOREVER_SECONDS = 365 * 86_400.0
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class A2AServicer(a2a_pb2_grpc.A2AServiceServicer):
    """The public service of A2A."""

    store: Store
    agents: Agents
    subscriptions: Subscriptions
    feeds: EventFeeds
    clock: Clock
    endpoints: Endpoints
    # None if the service has no webhooks, and so no push notifications.
    task_webhooks: TaskWebhooks | None = None
    model_without_price: str = ""

    async def GetTask(self, request: a2a_pb2.GetTaskRequest, context: Context) -> a2a_pb2.Task:
        _check_version()
        decode.check_ids(tenant=request.tenant, id=request.id)
        decode.check_history_length(request)
        task = await tasks.get_task(caller(), request.tenant, request.id, self.store)
        return encode.encode_task(task, _history_length(request))

    async def CancelTask(
        self, request: a2a_pb2.CancelTaskRequest, context: Context
    ) -> a2a_pb2.Task:
        _check_version()
        decode.check_ids(tenant=request.tenant, id=request.id)
        # The audit entry is made from `current().request`, with the fields that the requests of
        # WorkspaceService have.
        current().request = native = decode.decode_cancel(request)
        result = await cancel_task(
            caller(),
            codec.decode_cancel(native, origin()),
            self.store,
            self.agents,
            self.subscriptions,
            self.clock,
        )
        return encode.encode_task(_cancelling(result))

    async def ListTasks(
        self, request: a2a_pb2.ListTasksRequest, context: Context
    ) -> a2a_pb2.ListTasksResponse | HttpBody:
        _check_version()
        page, wanted = decode.decode_list(request, caller().org_id)
        listed, next_token = await tasks.list_tasks(
            caller(), request.tenant, page, self.store, wanted
        )
        total = await tasks.count_tasks(caller(), request.tenant, self.store, wanted)
        reply = encode.encode_list(listed, next_token, total, page.size, request)
        if current().is_rest:
            return encode.list_json(reply, has_artifacts=request.include_artifacts)
        return reply

    async def SendMessage(
        self, request: a2a_pb2.SendMessageRequest, context: Context
    ) -> a2a_pb2.SendMessageResponse:
        _, task = await self._submit(request, "SendMessage")
        if not request.configuration.return_immediately:
            task = await await_end(
                task, deadline.bounded(_FOREVER_SECONDS), self.store, self.subscriptions
            )
        return a2a_pb2.SendMessageResponse(
            task=encode.encode_task(task, _history_length(request.configuration))
        )

    async def SendStreamingMessage(
        self, request: a2a_pb2.SendMessageRequest, context: Context
    ) -> AsyncIterator[Any]:
        workspace, task = await self._submit(request, "SendStreamingMessage")
        history_length = _history_length(request.configuration)
        async with aclosing(self._updates(task, workspace.last_seq, history_length)) as updates:
            async for update in updates:
                yield update

    async def _submit(
        self, request: a2a_pb2.SendMessageRequest, method: str
    ) -> tuple[Workspace, Task]:
        """Submits the task of a message, and reads it with its workspace.

        If the message was sent before, reads the task that it began.
        """
        _check_version()
        decode.check_ids(tenant=request.tenant)
        if request.message.task_id:
            await self._refuse_further(request)
        current().request = native = decode.decode_message(request)
        key = decode.message_key(request, method, caller())
        decoded = codec.decode_submit(native, origin(), key, self.model_without_price)
        # All scopes are checked before anything is recorded. The answer contains the task, so the
        # caller must be allowed to read it: get_workspace checks this.
        caller().permission("tasks:write")
        config = None
        if request.configuration.HasField("task_push_notification_config"):
            config = request.configuration.task_push_notification_config
            caller().require("webhooks:write")
            self._webhooks().check(push.decode_push(config, request.tenant, ""))
        await workspaces.get_workspace(caller(), request.tenant, self.store)
        try:
            task = await tasks.submit_task(
                caller(), decoded, self.store, self.agents, self.subscriptions, self.clock
            )
        except Failure as failure:
            raise decode.explained(failure, request) from failure
        if config is not None:
            # This also sends the events that the task already has.
            await self._create_push(config, request.tenant, task.id)
        return await tasks.read_task(caller(), request.tenant, task.id, self.store)

    async def _refuse_further(self, request: a2a_pb2.SendMessageRequest) -> None:
        """Refuses a message for a task that exists already. Raises Failure."""
        message = request.message
        decode.check_ids(**{"message.task_id": message.task_id})
        task = await tasks.get_task(caller(), request.tenant, message.task_id, self.store)
        if message.context_id not in ("", task.workspace_id):
            raise errors.invalid({"message.context_id": "is not the context of the task"})
        raise Failure(
            "unsupported_operation",
            f"Task {task.id} takes no further message. Send the message without a task id: it "
            "begins another task in the same workspace.",
            workspace_id=task.workspace_id,
            task_id=task.id,
        )

    async def CreateTaskPushNotificationConfig(
        self, request: a2a_pb2.TaskPushNotificationConfig, context: Context
    ) -> a2a_pb2.TaskPushNotificationConfig:
        _check_version()
        decode.check_ids(tenant=request.tenant, task_id=request.task_id)
        return await self._create_push(request, request.tenant, request.task_id)

    async def _create_push(
        self, config: a2a_pb2.TaskPushNotificationConfig, workspace_id: str, task_id: str
    ) -> a2a_pb2.TaskPushNotificationConfig:
        wanted = push.decode_push(config, workspace_id, task_id)
        return push.encode_push(await self._webhooks().create(caller(), wanted, origin()))

    async def GetTaskPushNotificationConfig(
        self, request: a2a_pb2.GetTaskPushNotificationConfigRequest, context: Context
    ) -> a2a_pb2.TaskPushNotificationConfig:
        _check_version()
        decode.check_ids(tenant=request.tenant, task_id=request.task_id, id=request.id)
        listed = await self._webhooks().list_of_task(caller(), request.tenant, request.task_id)
        for each in listed:
            if each.name == request.id:
                return push.encode_push(each)
        raise errors.webhook_not_found(request.id)

    async def ListTaskPushNotificationConfigs(
        self, request: a2a_pb2.ListTaskPushNotificationConfigsRequest, context: Context
    ) -> a2a_pb2.ListTaskPushNotificationConfigsResponse:
        _check_version()
        decode.check_ids(tenant=request.tenant, task_id=request.task_id)
        # A task has few configurations, so there is one page.
        listed = await self._webhooks().list_of_task(caller(), request.tenant, request.task_id)
        return a2a_pb2.ListTaskPushNotificationConfigsResponse(
            configs=[push.encode_push(each) for each in listed]
        )

    async def DeleteTaskPushNotificationConfig(
        self, request: a2a_pb2.DeleteTaskPushNotificationConfigRequest, context: Context
    ) -> empty_pb2.Empty:
        _check_version()
        decode.check_ids(tenant=request.tenant, task_id=request.task_id, id=request.id)
        await self._webhooks().delete(
            caller(), request.tenant, request.task_id, request.id, origin()
        )
        return empty_pb2.Empty()

    def _webhooks(self) -> TaskWebhooks:
        """The webhooks of tasks.

        Raises Failure push_notification_not_supported if the service has no webhooks.
        """
        if self.task_webhooks is None:
            raise Failure(
                "push_notification_not_supported",
                "This service sends no push notifications. Follow the task with SubscribeToTask.",
            )
        return self.task_webhooks

    async def GetExtendedAgentCard(
        self, request: a2a_pb2.GetExtendedAgentCardRequest, context: Context
    ) -> a2a_pb2.AgentCard:
        is_public = current().caller is None
        if is_public:
            stored = await use_cases.get_public_card(request.tenant, self.store)
        else:
            _check_version()
            decode.check_ids(tenant=request.tenant)
            stored = await use_cases.get_agent_card(caller(), request.tenant, self.store)
        card = await encode_card(*stored, self.endpoints, has_push=self.task_webhooks is not None)
        if current().is_rest:
            await context.send_initial_metadata(cache_headers(card, is_public=is_public))
        return card

    async def SubscribeToTask(
        self, request: a2a_pb2.SubscribeToTaskRequest, context: Context
    ) -> AsyncIterator[Any]:
        _check_version()
        decode.check_ids(tenant=request.tenant, id=request.id)
        workspace, task = await tasks.read_task(caller(), request.tenant, request.id, self.store)
        if task.status.is_terminal:
            message = (
                f"Task {task.id} has ended `{task.status}`, so it has no more updates. Read it "
                "with GetTask."
            )
            raise Failure(
                "unsupported_operation", message, workspace_id=workspace.id, task_id=task.id
            )
        async with aclosing(self._updates(task, workspace.last_seq)) as updates:
            async for update in updates:
                yield update

    async def _updates(
        self, task: Task, after_seq: int, history_length: int | None = None
    ) -> AsyncGenerator[Any, None]:
        """The task, then its updates after `after_seq`, until it has ended."""
        yield a2a_pb2.StreamResponse(task=encode.encode_task(task, history_length))
        if task.status.is_terminal:
            return
        watch = watch_events.watch_events(
            caller(),
            task.workspace_id,
            after_seq,
            self.store,
            self.feeds,
            encode.encode_updates,
            # A stream of A2A has no heartbeats.
            lambda _: encode.Update(None, is_end=False, messages=()),
        )
        try:
            async with aclosing(cast(AsyncGenerator[encode.Update, None], watch)) as updates:
                async for update in updates:
                    if update.task_id == task.id:
                        for message in update.messages:
                            yield message
                        if update.is_end:
                            return
        except Failure as failure:
            if failure.slug != "unavailable":
                raise
            advice = "The server is shutting down. Subscribe to the task again."
            raise Failure("unavailable", advice, retry_after_seconds=1) from failure


def _check_version() -> None:
    """Checks the version of A2A that the caller speaks. Raises Failure version_not_supported.

    Every method calls this first, except for a read of a public card without a credential.
    """
    decode.check_version(current().metadata)


def _history_length(request: Any) -> int | None:
    return request.history_length if request.HasField("history_length") else None


def _cancelling(result: CancelResult) -> Task:
    """The task that the call was to cancel.

    Raises Failure task_not_cancelable if the task had already ended, and no descendant was
    cancelled.
    """
    task = result.task
    assert task is not None, "the call names a task"
    if result.outcome is Outcome.ALREADY_FINISHED and not result.descendants_cancelled:
        raise Failure(
            "task_not_cancelable",
            f"Task {task.id} has ended `{task.status}`, so it cannot be cancelled.",
            workspace_id=task.workspace_id,
            task_id=task.id,
            status=str(task.status),
        )
    return task
