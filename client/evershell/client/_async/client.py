"""The client, with its calls about the organization and its workspaces."""

from collections.abc import Mapping
from datetime import datetime

from evershell.client._async.caller import AsyncPages
from evershell.client._async.tasks import AsyncTaskCalls
from evershell.client._async.webhooks import AsyncWebhooks
from evershell.client._calls import (
    call,
    idempotent,
    only,
    optional,
    page,
    timestamp,
    with_id,
)
from evershell.client.types import (
    AuditEntry,
    CallerInfo,
    Hold,
    HoldResult,
    Workspace,
)


class AsyncClient(AsyncTaskCalls):
    """Calls an evershell service over gRPC, within one event loop.

        async with AsyncClient("https://acme.evershell.ai", "sk_…") as client:
            await client.cancel("ws_…", reason="it has gone wrong")

    Reads, submissions, creations, and cancellations that name their task are repeated if the
    service is unavailable or has refused the call for its rate limit, after the pause that the
    service asks for. A stop or a resumption is repeated only after a refusal for its rate limit,
    which has no effect. A cancellation without a task id is never repeated.

    Args:
        url: Where the service listens for gRPC: `https://host:port`, or `http://host:port` for
            plain text. Without a scheme, only a loopback address is plain text. Default: the
            variable EVERSHELL_URL.
        credential: An API key, a session token, or a callable that returns one, also as an
            awaitable, and is called before each call. Default: the variable EVERSHELL_API_KEY.
        timeout: The limit of each call with its retries, in seconds or as a timedelta.
        timeouts: The same for single methods, by name: `{"CancelTask": 2}`.
        max_retries: How often a call that may be repeated is repeated; 0 for never.
        metadata: Headers that are added to each call. The service ignores names that it does not
            know.
        on_answer: Called with the Answer to each attempt of a call, even a failed one, except of
            `watch`: its request id and its metadata. It must not block or raise.
        ca_file: A PEM file with the authorities to trust instead of the system's.
        cert_file: A PEM file with a client certificate, for a service that asks for one.
        key_file: The PEM file with its key.
        interceptors: Client interceptors of grpc.aio, for example to measure calls.

    Raises:
        ConfigurationError: There is no address or no credential, or one is not valid.
    """

    @property
    def webhooks(self) -> AsyncWebhooks:
        """The calls about webhooks."""
        return AsyncWebhooks(self)

    async def hold(self, *, reason: str = "", cancel_running: bool = False) -> HoldResult:
        """Puts the caller's organization on hold: it gets no new task and no new agent.

        Tasks that run go on, unless they are to be cancelled; cancelling, stopping and reading
        work. A hold in force does not change. Needs the scope `org:hold`.

        Args:
            reason: Human-readable; at most 500 characters. The refused calls show it.
            cancel_running: Cancels all tasks that have not ended, which also needs the scope
                `workspace:write`. If tasks remain, call again.

        Returns:
            The hold in force, with its first caller, time and reason, and what was cancelled.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(
            call("HoldOrg", with_id(HoldResult), reason=reason, cancel_running=cancel_running)
        )

    async def release(self) -> Hold:
        """Ends the hold of the caller's organization. Needs the scope `org:hold`.

        Returns:
            The hold, which is not in force.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(call("ReleaseOrg", only(Hold)))

    async def get_hold(self) -> Hold:
        """Reads whether the caller's organization is on hold.

        Returns:
            The hold; `on_hold` says whether it is in force.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(call("GetHold", only(Hold)))

    async def get_caller(self) -> CallerInfo:
        """Reads whose credential this is, and what it allows.

        Returns:
            The caller, with the scopes and the expiry of the credential.

        Raises:
            CallError: The call has failed.
        """
        return await self._call(call("GetCaller", only(CallerInfo)))

    async def create_workspace(
        self,
        name: str = "",
        *,
        description: str = "",
        skills: Mapping[str, str] | None = None,
        public_card: bool = False,
        idempotency_key: str | None = None,
    ) -> Workspace:
        """Creates a workspace and starts its agent.

        The call is repeated if the service is unavailable: its idempotency key makes sure that
        there is only one workspace.

        Args:
            name: Human-readable; at most 200 characters.
            description: What its agent does, for its agent card of A2A; at most 2,000 characters.
            skills: The skills on the agent card: a description for each name.
            public_card: Whether anyone may read the agent card, without a credential.
            idempotency_key: 1 to 255 printable characters. For 24 hours, a call of the same user or
                API key with this key and the same request has no effect and gets the first answer.
                None for a new key: then only the repeats of this call share it.

        Returns:
            The workspace, which is `provisioning` until its agent has registered.

        Raises:
            IdempotencyConflictError: The key was used for another request.
            CallError: Any other failure.
        """
        return await self._call(
            call(
                "CreateWorkspace",
                only(Workspace),
                idempotent(idempotency_key),
                name=name,
                description=description,
                skills=skills,
                public_card=public_card,
            )
        )

    async def get_workspace(self, workspace_id: str) -> Workspace:
        """Reads one workspace.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace as it is now.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            CallError: Any other failure.
        """
        return await self._call(call("GetWorkspace", only(Workspace), workspace_id=workspace_id))

    def list_workspaces(
        self, *, page_size: int | None = None, page_token: str | None = None
    ) -> AsyncPages[Workspace]:
        """Lists the workspaces of the caller's organization, newest first.

        Args:
            page_size: The number of workspaces in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the page after which the list begins.

        Returns:
            The workspaces, which are fetched page by page during the iteration.

        Raises:
            CallError: The call has failed. Raised by the iteration.
        """
        return self._pages("ListWorkspaces", page("workspaces", Workspace), page_size, page_token)

    async def stop_workspace(self, workspace_id: str) -> Workspace:
        """Stops a workspace: ends its agent and keeps its files.

        A running task is cancelled, and its iteration is interrupted after 10 seconds. A call on a
        stopping or stopped workspace changes nothing.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace, which is `stopping`, then `stopped`.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            WorkspaceFailedError: Its agent died or could not start.
            WorkspaceDeletingError: It is being deleted.
            CallError: Any other failure.
        """
        return await self._call(call("StopWorkspace", only(Workspace), workspace_id=workspace_id))

    async def resume_workspace(self, workspace_id: str) -> Workspace:
        """Starts a new agent for a stopped or failed workspace.

        A call on a workspace that is provisioning or up changes nothing.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace, which is `provisioning`, then `idle`.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            InvalidStateError: The workspace is still stopping.
            WorkspaceDeletingError: The workspace is being deleted.
            CallError: Any other failure.
        """
        return await self._call(call("ResumeWorkspace", only(Workspace), workspace_id=workspace_id))

    async def delete_workspace(self, workspace_id: str) -> Workspace:
        """Deletes a workspace, in any state, with its files, tasks, events and webhooks.

        A running task is cancelled, and its iteration is interrupted after 10 seconds. A repeated
        call changes nothing, also when the workspace is gone.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace, which is `deleting` until it is gone.

        Raises:
            WorkspaceNotFoundError: The caller's organization has never had such a workspace.
            CallError: Any other failure.
        """
        return await self._call(call("DeleteWorkspace", only(Workspace), workspace_id=workspace_id))

    def list_audit_entries(
        self,
        *,
        workspace_id: str | None = None,
        task_id: str | None = None,
        actor_id: str | None = None,
        rpc: str | None = None,
        outcome: str | None = None,
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        page_size: int | None = None,
        page_token: str | None = None,
    ) -> AsyncPages[AuditEntry]:
        """Lists the audit log, newest first: who changed what, or was refused.

        Args:
            workspace_id: Only calls about this workspace.
            task_id: Only calls about this task.
            actor_id: Only calls of this user or API key, by id.
            rpc: Only calls of this method, for example `CancelTask`.
            outcome: Only calls with this outcome, for example `accepted` or `permission_denied`.
            start_time: Only calls from this time on. A time without a zone is local time.
            end_time: Only calls before this time.
            page_size: The number of entries in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the page after which the list begins.

        Returns:
            The entries, which are fetched page by page during the iteration.

        Raises:
            WorkspaceNotFoundError: There is no such workspace. Raised by the iteration.
            CallError: Any other failure. Raised by the iteration.
        """
        return self._pages(
            "ListAuditEntries",
            page("entries", AuditEntry),
            page_size,
            page_token,
            workspace_id=optional("workspace_id", workspace_id),
            task_id=optional("task_id", task_id),
            actor_id=optional("actor_id", actor_id),
            rpc=optional("rpc", rpc),
            outcome=optional("outcome", outcome),
            start_time=timestamp("start_time", start_time),
            end_time=timestamp("end_time", end_time),
        )
