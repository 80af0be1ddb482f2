"""The synchronous calls about workspaces and the audit log, and the client as a whole."""

from datetime import datetime

from evershell.client import _calls
from evershell.client._emergency import EmergencyCalls
from evershell.client._tasks import TaskCalls
from evershell.client.pages import Pages
from evershell.client.types import AuditEntry, Workspace


class Client(TaskCalls, EmergencyCalls):
    """Calls an evershell service over gRPC. Thread-safe.

        with Client("https://acme.evershell.ai", "sk_…") as client:
            client.cancel("ws_…", reason="it has gone wrong")

    Reads, submissions, creations, and cancellations that name their task are repeated if the
    service is unavailable or has refused the call for its rate limit, after the pause that the
    service asks for. A stop or a resumption is repeated only after a refusal for its rate limit,
    which has no effect. A cancellation without a task id is never repeated.

    Args:
        url: Where the service listens for gRPC: `https://host:port`, or `http://host:port` for
            plain text. Without a scheme, only a loopback address is plain text. Default: the
            variable EVERSHELL_URL.
        credential: An API key, a session token, or a callable that returns one and is called before
            each call. Default: the variable EVERSHELL_API_KEY.
        insecure: Plain text even without `http://`, to any host.
        timeout: The limit of each call with its retries, in seconds or as a timedelta.
        timeouts: The same for single methods, by name: `{"CancelTask": 2}`.
        max_retries: How often a call that may be repeated is repeated; 0 for never.
        metadata: Headers that are added to each call. The service ignores names that it does not
            know.
        on_answer: Called with the Answer to each attempt of a call, also a failed one, except of
            `watch`: its request id and its metadata. It must not block or raise.
        ca_file: A PEM file with the authorities to trust instead of the system's.
        cert_file: A PEM file with a client certificate, for a service that asks for one.
        key_file: The PEM file with its key.
        channel: A gRPC channel to use instead of `url`, for special cases. The client does not
            close it.
        interceptors: gRPC client interceptors, for example to measure calls.

    Raises:
        ConfigurationError: There is no address or no credential, or one is not valid.
    """

    def create_workspace(self, name: str = "", *, idempotency_key: str | None = None) -> Workspace:
        """Creates a workspace and starts its agent.

        The call is repeated if the service is unavailable: its idempotency key makes sure that
        there is only one workspace.

        Args:
            name: Human-readable; at most 200 characters.
            idempotency_key: 1 to 255 printable characters. For 24 hours, a call of the organization
                with the same key and the same request has no effect and gets the first answer.
                None for a new key: then only the repeats of this call share it.

        Returns:
            The workspace, which is `provisioning` until its agent has registered.

        Raises:
            IdempotencyConflictError: The key was used for another request.
            CallError: Any other failure.
        """
        return self._call(_calls.create_workspace(name, idempotency_key))

    def get_workspace(self, workspace_id: str) -> Workspace:
        """Reads one workspace.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace as it is now.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            CallError: Any other failure.
        """
        return self._call(_calls.get_workspace(workspace_id))

    def list_workspaces(
        self, *, page_size: int | None = None, page_token: str | None = None
    ) -> Pages[Workspace]:
        """Lists the workspaces of the caller's organization, newest first.

        Args:
            page_size: The number of workspaces in one answer, 1 to 200. None for the default, 50.
            page_token: The `next_page_token` of the page after which the list begins.

        Returns:
            The workspaces, which are fetched page by page during the iteration.

        Raises:
            CallError: The call has failed. Raised by the iteration.
        """
        return Pages(
            lambda token: self._call(_calls.list_workspaces(page_size or 0, token)),
            page_token or "",
        )

    def stop_workspace(self, workspace_id: str) -> Workspace:
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
            CallError: Any other failure.
        """
        return self._call(_calls.stop_workspace(workspace_id))

    def resume_workspace(self, workspace_id: str) -> Workspace:
        """Starts a new agent for a stopped or failed workspace.

        A call on a workspace that is provisioning or up changes nothing.

        Args:
            workspace_id: The workspace.

        Returns:
            The workspace, which is `provisioning`, then `idle`.

        Raises:
            WorkspaceNotFoundError: The caller's organization has no such workspace.
            InvalidStateError: The workspace is still stopping.
            CallError: Any other failure.
        """
        return self._call(_calls.resume_workspace(workspace_id))

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
    ) -> Pages[AuditEntry]:
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
        matching = _calls.AuditFilter(
            workspace_id, task_id, actor_id, rpc, outcome, start_time, end_time
        )
        return Pages(
            lambda token: self._call(_calls.list_audit_entries(matching, page_size or 0, token)),
            page_token or "",
        )
