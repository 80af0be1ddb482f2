"""WorkspaceService, which callers use. Each method decodes, calls the core, encodes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from evershell.workspace.v1 import (
    caller_pb2,
    hold_pb2,
    task_pb2,
    workspace_pb2,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)

from evershell.api import codec, event_codec, event_stream
from evershell.api.call import caller, idempotency_key, origin, send_status_200
from evershell.api.codec import encode_page
from evershell.core import hold, tasks, watch_events, watch_organization, workspaces
from evershell.core.audit import list_audit_entries
from evershell.core.cancel_task import cancel_task
from evershell.core.cancel_tasks import cancel_tasks
from evershell.core.event_feeds import EventFeeds
from evershell.core.list_events import list_events
from evershell.core.ports import Agents, Clock, Store, Subscriptions
from evershell.core.resume_workspaces import resume_workspaces

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class WorkspaceServicer(workspace_service_pb2_grpc.WorkspaceServiceServicer):
    """The public service. workspace_service.proto has the contract of each method.

    The rooms (features/) implement the methods that are missing here.
    """

    store: Store
    agents: Agents
    subscriptions: Subscriptions
    feeds: EventFeeds
    clock: Clock
    # The model of the agents, if it has no price; otherwise empty.
    model_without_price: str = ""

    async def CancelTask(
        self, request: workspace_service_pb2.CancelTaskRequest, context: Context
    ) -> workspace_service_pb2.CancelTaskResponse:
        decoded = codec.decode_cancel(request, origin())
        result = await cancel_task(
            caller(), decoded, self.store, self.agents, self.subscriptions, self.clock
        )
        if decoded.wait_seconds is not None and result.saw_end:
            await send_status_200(context)
        return codec.encode_cancel(result)

    async def SubmitTask(
        self, request: workspace_service_pb2.SubmitTaskRequest, context: Context
    ) -> workspace_service_pb2.SubmitTaskResponse:
        decoded = codec.decode_submit(
            request, origin(), idempotency_key(request), self.model_without_price
        )
        task = codec.encode_task(
            await tasks.submit_task(
                caller(), decoded, self.store, self.agents, self.subscriptions, self.clock
            )
        )
        return workspace_service_pb2.SubmitTaskResponse(
            task_id=task.id, workspace_id=task.workspace_id, status=task.status
        )

    async def GetTask(
        self, request: workspace_service_pb2.GetTaskRequest, context: Context
    ) -> task_pb2.Task:
        return codec.encode_task(
            await tasks.get_task(caller(), request.workspace_id, request.task_id, self.store)
        )

    async def GetCurrentIteration(
        self, request: workspace_service_pb2.GetCurrentIterationRequest, context: Context
    ) -> task_pb2.CurrentIteration:
        workspace, task = await tasks.read_task(
            caller(), request.workspace_id, request.task_id, self.store
        )
        phase, current = await tasks.get_current_iteration(workspace, task, self.agents)
        return codec.encode_current_iteration(request, phase, current)

    async def ListTasks(
        self, request: workspace_service_pb2.ListTasksRequest, context: Context
    ) -> workspace_service_pb2.ListTasksResponse:
        page = codec.decode_page(request, caller().org_id)
        wanted = codec.decode_list_filter(request)
        if wanted.is_of_workspace:
            listed = await tasks.list_tasks(caller(), request.workspace_id, page, self.store)
        else:
            listed = await tasks.list_org_tasks(caller(), wanted, page, self.store)
        page_of_tasks, next_token = listed
        return workspace_service_pb2.ListTasksResponse(
            tasks=await encode_page(page_of_tasks, codec.encode_task), next_page_token=next_token
        )

    def WatchEvents(
        self, request: workspace_service_pb2.WatchEventsRequest, context: Context
    ) -> AsyncIterator[Any]:
        return watch_events.watch_events(
            caller(),
            request.workspace_id,
            request.after,
            self.store,
            self.feeds,
            event_codec.encode_events,
            event_codec.encode_heartbeat,
        )

    def StreamEvents(
        self, request: workspace_service_pb2.StreamEventsRequest, context: Context
    ) -> AsyncIterator[Any]:
        return watch_events.watch_events(
            caller(),
            request.workspace_id,
            event_stream.position(request.after),
            self.store,
            self.feeds,
            event_stream.Frames,
            lambda _: event_stream.HEARTBEAT,
            opening=(event_stream.OPENING,),
        )

    async def ListEvents(
        self, request: workspace_service_pb2.ListEventsRequest, context: Context
    ) -> workspace_service_pb2.ListEventsResponse:
        events, next_before = await list_events(
            caller(),
            request.workspace_id,
            request.before,
            request.page_size,
            self.store,
            omit_outputs=request.omit_outputs,
        )
        encoded = await encode_page(events, event_codec.encode_event)
        return workspace_service_pb2.ListEventsResponse(
            events=[each.event for each in encoded], next_before=next_before
        )

    def WatchOrganization(
        self, request: workspace_service_pb2.WatchOrganizationRequest, context: Context
    ) -> AsyncIterator[Any]:
        return watch_organization.watch_organization(
            caller(),
            request.after,
            self.store,
            self.feeds,
            self.clock,
            event_codec.encode_organization_events,
            event_codec.encode_organization_heartbeat,
        )

    def StreamOrganization(
        self, request: workspace_service_pb2.StreamOrganizationRequest, context: Context
    ) -> AsyncIterator[Any]:
        return watch_organization.watch_organization(
            caller(),
            event_stream.position(request.after),
            self.store,
            self.feeds,
            self.clock,
            event_stream.OrganizationFrames,
            event_stream.organization_heartbeat,
            opening=(event_stream.OPENING,),
        )

    async def CreateWorkspace(
        self, request: workspace_service_pb2.CreateWorkspaceRequest, context: Context
    ) -> workspace_pb2.Workspace:
        return codec.encode_workspace(
            await workspaces.create_workspace(
                caller(),
                request.name,
                origin(),
                self.store,
                self.clock,
                idempotency_key(request),
                codec.decode_card(request),
            )
        )

    async def GetWorkspace(
        self, request: workspace_service_pb2.GetWorkspaceRequest, context: Context
    ) -> workspace_pb2.Workspace:
        return codec.encode_workspace(
            await workspaces.get_workspace(caller(), request.workspace_id, self.store)
        )

    async def ListWorkspaces(
        self, request: workspace_service_pb2.ListWorkspacesRequest, context: Context
    ) -> workspace_service_pb2.ListWorkspacesResponse:
        page = codec.decode_page(request, caller().org_id)
        page_of_workspaces, next_token = await workspaces.list_workspaces(
            caller(), page, self.store, request.workspace_ids
        )
        return workspace_service_pb2.ListWorkspacesResponse(
            workspaces=await encode_page(page_of_workspaces, codec.encode_workspace),
            next_page_token=next_token,
        )

    async def StopWorkspace(
        self, request: workspace_service_pb2.StopWorkspaceRequest, context: Context
    ) -> workspace_pb2.Workspace:
        stopped = await workspaces.stop_workspace(
            caller(),
            request.workspace_id,
            origin(),
            self.store,
            self.agents,
            self.clock,
        )
        return codec.encode_workspace(stopped)

    async def ResumeWorkspace(
        self, request: workspace_service_pb2.ResumeWorkspaceRequest, context: Context
    ) -> workspace_pb2.Workspace:
        return codec.encode_workspace(
            await workspaces.resume_workspace(
                caller(), request.workspace_id, origin(), self.store, self.clock
            )
        )

    async def DeleteWorkspace(
        self, request: workspace_service_pb2.DeleteWorkspaceRequest, context: Context
    ) -> workspace_pb2.Workspace:
        return codec.encode_workspace(
            await workspaces.delete_workspace(
                caller(),
                request.workspace_id,
                origin(),
                self.store,
                self.agents,
                self.clock,
            )
        )

    async def ListAuditEntries(
        self, request: workspace_service_pb2.ListAuditEntriesRequest, context: Context
    ) -> workspace_service_pb2.ListAuditEntriesResponse:
        page = codec.decode_page(request, caller().org_id)
        entries, next_token = await list_audit_entries(
            caller(), codec.decode_audit_filter(request), page, self.store
        )
        return workspace_service_pb2.ListAuditEntriesResponse(
            entries=await encode_page(entries, codec.encode_audit_entry),
            next_page_token=next_token,
        )

    async def CancelTasks(
        self, request: workspace_service_pb2.CancelTasksRequest, context: Context
    ) -> workspace_service_pb2.CancelTasksResponse:
        decoded = codec.decode_cancel_tasks(request, origin(), idempotency_key(request))
        return codec.encode_cancel_tasks(
            await cancel_tasks(caller(), decoded, self.store, self.clock)
        )

    async def ResumeWorkspaces(
        self, request: workspace_service_pb2.ResumeWorkspacesRequest, context: Context
    ) -> workspace_service_pb2.ResumeWorkspacesResponse:
        decoded = codec.decode_resume_workspaces(request, origin(), idempotency_key(request))
        return codec.encode_resume_workspaces(
            await resume_workspaces(caller(), decoded, self.store, self.clock)
        )

    async def HoldOrg(
        self, request: workspace_service_pb2.HoldOrgRequest, context: Context
    ) -> workspace_service_pb2.HoldOrgResponse:
        decoded = codec.decode_hold(request, origin())
        held, cancelled = await hold.hold_org(caller(), decoded, self.store, self.clock)
        return codec.encode_held(held, cancelled)

    async def ReleaseOrg(
        self, request: workspace_service_pb2.ReleaseOrgRequest, context: Context
    ) -> hold_pb2.Hold:
        await hold.release_org(caller(), origin(), self.store)
        return codec.encode_hold(caller().org_id, None)

    async def GetHold(
        self, request: workspace_service_pb2.GetHoldRequest, context: Context
    ) -> hold_pb2.Hold:
        return codec.encode_hold(caller().org_id, await hold.get_hold(caller(), self.store))

    async def GetCaller(
        self, request: workspace_service_pb2.GetCallerRequest, context: Context
    ) -> caller_pb2.Caller:
        return codec.encode_caller(caller())
