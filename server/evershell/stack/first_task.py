"""Waits until the demo workspace of a stack is ready."""

import asyncio
import os
from pathlib import Path

import httpx

from evershell.app.settings import Settings
from evershell.core import workspace_lifecycle
from evershell.core.errors import OperatorError, UnavailableError
from evershell.core.ports import Clock, Store
from evershell.core.task import TaskStatus
from evershell.core.workspace import WorkspaceStatus
from evershell.fleet.kubernetes.objects import WORKSPACE_LABEL
from evershell.fleet.local.pod_records import PodRecords
from evershell.stack.ready import Demo, trust

# How long the stack may take to get ready, in addition to the start of its agent.
_OTHER_SECONDS = 60.0
_POLL_SECONDS = 0.05
_SAVED_POLL_SECONDS = 0.2
_TASK = "echo ready"


class DemoFailedError(OperatorError):
    """The demo workspace has failed. The text says why, and where the log of its agent is."""


async def await_first_task(settings: Settings, demo: Demo, store: Store) -> None:
    """Waits until the demo workspace has completed a task in this run of the stack.

    If its agent is not the scripted one, waits only until the workspace can take a task. If the
    organization is on hold, waits only until the task is refused.

    Raises DemoFailedError and OperatorError.
    """
    problem = ""
    limit_seconds = settings.pod_start_seconds + _OTHER_SECONDS
    try:
        async with (
            asyncio.timeout(limit_seconds),
            httpx.AsyncClient(
                base_url=settings.rest_url,
                headers={
                    "authorization": f"Bearer {demo.tokens['full_access']}",
                    **({"host": demo.host} if demo.host else {}),
                },
                timeout=5.0,
                verify=trust(settings.tls_cert_file) if settings.tls_cert_file else True,
                trust_env=False,
            ) as client,
        ):
            while problem := await _problem(settings, demo, store, client):
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise OperatorError(
            f"The stack did not get ready within {limit_seconds:.0f} s ({problem}); "
            f"see {settings.logs_dir}/."
        ) from error


def saved_at(path: Path) -> int:
    """When the file was last saved, in nanoseconds; 0 if there is no file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


async def await_another_start(
    demo: Demo, store: Store, clock: Clock, path: Path, seen: int
) -> None:
    """Waits until the failed demo workspace gets another agent.

    Resumes the workspace once the file `path` was saved at another time than `seen`. A caller may
    resume it too.
    """
    while True:
        workspace = await store.get_workspace(demo.workspace_id)
        if workspace is None or workspace.status is not WorkspaceStatus.FAILED:
            return
        if saved_at(path) not in (seen, 0):
            await store.transition(
                demo.workspace_id, lambda locked: workspace_lifecycle.resume(locked, clock())
            )
            return
        await asyncio.sleep(_SAVED_POLL_SECONDS)


def _log_of(settings: Settings, workspace_id: str) -> str:
    """Where an operator finds the log of the workspace's agent."""
    if settings.on_kubernetes:
        # The pod of a failed workspace is deleted, and its log with it.
        labels = f"{WORKSPACE_LABEL}={workspace_id}"
        return f"while its pod runs: kubectl logs --follow --selector {labels}"
    return os.path.relpath(PodRecords(settings.state_dir).log_path(workspace_id))


async def _problem(settings: Settings, demo: Demo, store: Store, client: httpx.AsyncClient) -> str:
    """Why the stack is not ready; empty if it is. Raises OperatorError if it cannot get ready."""
    path = f"/v1/workspaces/{demo.workspace_id}"
    try:
        workspace = await store.get_workspace(demo.workspace_id)
        assert workspace is not None
        if workspace.status is WorkspaceStatus.FAILED:
            raise DemoFailedError(
                f"The demo workspace has failed: {workspace.status_reason.rstrip('.')}.\n"
                f"The log of its agent: {_log_of(settings, demo.workspace_id)}"
            )
        # A workspace that was idle in an earlier run is still shown as idle, although it has no
        # agent, until the controller assigns it to this run. Pods on Kubernetes are not tied to a
        # run of the stack.
        is_placed = workspace.run_id == settings.run_id or settings.on_kubernetes
        is_idle = workspace.status is WorkspaceStatus.IDLE and is_placed
        # The task wakes a suspended workspace.
        if not is_idle and workspace.status is not WorkspaceStatus.SUSPENDED:
            return "the demo workspace has no agent yet"
        if settings.model != "scripted" or settings.agent_command:
            # With another agent, the task would cost a model call, or could have any effect.
            (await client.get(path)).raise_for_status()
            return ""
        return await _task_problem(client, path)
    except (httpx.HTTPError, UnavailableError, ValueError) as error:
        return str(error) or repr(error)


async def _task_problem(client: httpx.AsyncClient, path: str) -> str:
    """Submits a task and awaits its end. Returns why the task is not completed; empty if it is.

    Also empty if the organization is on hold. Raises httpx.HTTPError and ValueError.
    """
    answer = await client.post(f"{path}/tasks", json={"description": _TASK})
    if answer.status_code == httpx.codes.CONFLICT:
        code = answer.json()["error"]["code"]
        # While the organization is on hold, tasks are refused, although all programs serve.
        return "" if code == "org_on_hold" else str(code)
    task_id = answer.raise_for_status().json()["task_id"]
    while True:
        task = (await client.get(f"{path}/tasks/{task_id}")).raise_for_status().json()
        status = TaskStatus(task["status"])
        if status is TaskStatus.COMPLETED:
            return ""
        if status.is_terminal:
            return f"a task of the demo workspace ended {status}: {task['reason']}"
        await asyncio.sleep(_POLL_SECONDS)
