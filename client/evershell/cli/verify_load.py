"""The load of `verify`: callers that submit tasks, cancel them and look at them.

The callers use workspaces that the load has created, and record everything that they see.
"""

import asyncio
import random
import secrets
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from evershell.cli import show
from evershell.cli.progress import Say
from evershell.cli.terminal import say
from evershell.client import Answer, AsyncClient, CallError, WorkspaceNotFoundError
from evershell.histories.recorder import Recorder

# How long the agents of new workspaces may take to register.
_START_SECONDS = 180.0
# How long the last tasks may take to end after their cancellation.
END_SECONDS = 120.0
# How long the removal of a workspace may take.
_REMOVAL_SECONDS = 60.0
_PAUSE_SECONDS = 0.25
# The longest pause before a caller cancels a task.
_CANCEL_SECONDS = 3.0
# The longest time for which a caller follows a task, and the longest pause after an error.
_LONGEST_SECONDS = 10.0
# How long a watcher stays on one connection.
_STAY_SECONDS = (1.0, 8.0)
# The client's method for each RPC.
_METHODS = {
    "CancelTask": "cancel",
    "CreateWorkspace": "create_workspace",
    "GetTask": "get_task",
    "GetWorkspace": "get_workspace",
    "ListTasks": "list_tasks",
    "ResumeWorkspace": "resume_workspace",
    "SubmitTask": "submit_task",
}

_chance = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class _Reply:
    """The result of a call: the answer as the REST API shows it, or an error."""

    answer: dict[str, Any] = field(default_factory=dict)
    error: CallError | None = None


class _Callers:
    """Makes each call once, and records the answer."""

    def __init__(self, client: AsyncClient, recorder: Recorder) -> None:
        # No retries: the history needs each attempt as a separate call.
        self._client, self._recorder = client.with_options(max_retries=0), recorder
        self.count = 0

    async def call(self, caller: str, rpc: str, description: str = "", **fields: Any) -> _Reply:
        """Makes a call with these fields, and records it without the description."""
        self.count += 1
        call_id = self._recorder.begin(caller, rpc, fields)
        answers: list[Answer] = []
        method = getattr(self._client.with_options(on_answer=answers.append), _METHODS[rpc])
        named = fields | ({"description": description} if description else {})
        try:
            if rpc == "ListTasks":
                page = await anext(method(**named).pages())
                answer = {
                    "tasks": [each.to_dict() for each in page.items],
                    "next_page_token": page.next_page_token or "",
                }
            else:
                answer = (await method(**named)).to_dict()
        except CallError as error:
            self._fail(call_id, error)
            await asyncio.sleep(min(error.retry_after or 0, _LONGEST_SECONDS))
            return _Reply(error=error)
        self._recorder.answer(call_id, answer, answers[-1].request_id)
        return _Reply(answer)

    async def watch(self, workspace_id: str, after: int, stay_seconds: float) -> int:
        """Watches the log on one connection, beginning after `after`. Returns the last `seq`."""
        self.count += 1
        fields = {"workspace_id": workspace_id, "after": after}
        call_id = self._recorder.begin("watcher", "WatchEvents", fields)
        stream = self._client.watch(workspace_id, after=after, reconnect_for=0)
        try:
            async with asyncio.timeout(stay_seconds), aclosing(stream) as events:
                async for event in events:
                    self._recorder.message(call_id, {"event": event.to_dict()})
                    after = event.seq
        except CallError as error:
            self._fail(call_id, error)
        except (TimeoutError, asyncio.CancelledError) as end:
            # The stream was ended by the watcher, not by the service.
            self._recorder.answer(call_id, {})
            if isinstance(end, asyncio.CancelledError):
                raise
        return after

    def _fail(self, call_id: str, error: CallError) -> None:
        # A code in parentheses means that the error is not from the service, so that the effect of
        # the call is unknown.
        code = error.code if error.is_from_service else f"({error.code})"
        self._recorder.fail(call_id, code, error.details, error.request_id)


class Load:
    """Creates workspaces, makes calls on them, and deletes them."""

    def __init__(self, client: AsyncClient, recorder: Recorder, description: str) -> None:
        """`description` is the description of every task."""
        self._client, self._description = client, description
        self._callers = _Callers(client, recorder)
        # The names of the load's workspaces begin with this text.
        self._name = f"verify-{secrets.token_hex(4)}"
        self._workspace_ids: list[str] = []
        self._over = asyncio.Event()
        # By workspace, the task that had not ended within END_SECONDS after the load.
        self.not_ended: dict[str, str] = {}
        # At the end, the workspaces that could not be read or whose task could not be cancelled.
        self.unknown: list[str] = []
        self.is_interrupted = False

    async def run(self, workspaces: int, seconds: float, progress: Say) -> None:
        """Makes calls, then deletes the workspaces. If `run` is cancelled, the calls end early.

        Raises CallError or click.ClickException if the load could not begin.
        """
        try:
            progress("waiting for the agents")
            await self._begin(workspaces)
            until = show.time(datetime.now(UTC) + timedelta(seconds=seconds))
            say(f"The agents are ready. Inject faults now, and end them by {until}.", error=True)
            async with asyncio.TaskGroup() as group:
                watchers = [group.create_task(self._watch(each)) for each in self._workspace_ids]
                await self._work_for(seconds, progress)
                progress("waiting for the ends of the tasks")
                await asyncio.gather(*map(self._settle, self._workspace_ids))
                for each in watchers:
                    each.cancel()
        except asyncio.CancelledError:
            self.is_interrupted = True
        finally:
            progress("deleting the workspaces")
            await self._delete()

    async def _begin(self, workspaces: int) -> None:
        """Creates the workspaces, and waits until each can take a task."""
        for number in range(1, workspaces + 1):
            name = f"{self._name}-{number}"
            created = await self._callers.call("creator", "CreateWorkspace", name=name)
            if created.error:
                raise created.error
            self._workspace_ids.append(created.answer["id"])
        try:
            async with asyncio.timeout(_START_SECONDS):
                for each in self._workspace_ids:
                    while (status := (await self._read(each)).get("status")) != "idle":
                        if status == "failed":
                            raise click.ClickException(f"The agent of workspace {each} has failed.")
                        await asyncio.sleep(_PAUSE_SECONDS)
        except TimeoutError:
            text = f"Not every new workspace has an agent after {_START_SECONDS:.0f} s."
            raise click.ClickException(text) from None

    async def _work_for(self, seconds: float, progress: Say) -> None:
        async with asyncio.TaskGroup() as group:
            for each in self._workspace_ids:
                group.create_task(self._work(each))
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                progress(f"{self._callers.count} calls, {left:.0f} s left")
                await asyncio.sleep(min(left, 1.0))
            self._over.set()

    async def _work(self, workspace_id: str) -> None:
        """Submits one task after another, and cancels most of them."""
        while not self._over.is_set():
            match (await self._read(workspace_id)).get("status"):
                case "idle" | "suspended":
                    await self._run_task(workspace_id)
                case "busy":
                    # The task runs too long, or the answer to its submission was lost.
                    await self._cancel("canceller", workspace_id)
                case "stopped" | "failed":
                    fields = {"workspace_id": workspace_id}
                    await self._callers.call("resumer", "ResumeWorkspace", **fields)
            await self._pause(_PAUSE_SECONDS)

    async def _run_task(self, workspace_id: str) -> None:
        submitted = await self._callers.call(
            "submitter", "SubmitTask", self._description, workspace_id=workspace_id
        )
        if task_id := submitted.answer.get("task_id"):
            cancels = (
                self._cancel(f"canceller {each + 1}", workspace_id, task_id)
                for each in range(_chance.choice((0, 1, 1, 2, 3)))
            )
            await asyncio.gather(self._follow(workspace_id, task_id), *cancels)

    async def _cancel(self, caller: str, workspace_id: str, task_id: str = "") -> None:
        """Cancels the task, sometimes without its id. Sometimes repeats the call."""
        await self._pause(_chance.uniform(0, _CANCEL_SECONDS))
        fields: dict[str, Any] = {"workspace_id": workspace_id}
        if task_id and _chance.random() < 0.5:
            fields["task_id"] = task_id
        if _chance.random() < 0.15:
            fields["force_after"] = _chance.choice((0.0, 0.3))
        if _chance.random() < 0.3:
            fields["wait"] = 2.0
        for _ in range(_chance.choice((1, 1, 2))):
            await self._callers.call(caller, "CancelTask", **fields)

    async def _follow(self, workspace_id: str, task_id: str) -> None:
        """Reads the task until it or the load ends, but for at most _LONGEST_SECONDS."""
        fields = {"workspace_id": workspace_id}
        until = time.monotonic() + _LONGEST_SECONDS
        while not self._over.is_set() and time.monotonic() < until:
            await self._pause(_chance.uniform(0, 1))
            if _chance.random() < 0.3:
                active = _chance.random() < 0.5
                await self._callers.call("lister", "ListTasks", **fields, active=active)
            read = await self._callers.call("reader", "GetTask", **fields, task_id=task_id)
            if read.answer.get("completed_at"):
                return

    async def _read(self, workspace_id: str) -> dict[str, Any]:
        return (
            await self._callers.call("reader", "GetWorkspace", workspace_id=workspace_id)
        ).answer

    async def _watch(self, workspace_id: str) -> None:
        seq = 0
        while True:
            seq = await self._callers.watch(workspace_id, seq, _chance.uniform(*_STAY_SECONDS))
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Waits, but at most until the end of the load."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()

    async def _settle(self, workspace_id: str) -> None:
        """Cancels the running task, interrupts its iteration, and waits until the task ends."""
        workspace: dict[str, Any] = {}
        task_id = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                while True:
                    workspace = await self._read(workspace_id)
                    if workspace and not workspace.get("current_task_id"):
                        return
                    asked = await self._callers.call(
                        "canceller", "CancelTask", workspace_id=workspace_id, force_after=0.0
                    )
                    task_id = asked.answer.get("task_id") or task_id
                    await asyncio.sleep(_PAUSE_SECONDS)
        if workspace and task_id:
            self.not_ended[workspace_id] = task_id
        else:
            self.unknown.append(workspace_id)

    async def _delete(self) -> None:
        """Deletes the workspaces.

        Prints the workspaces that are left, even if the deletion is interrupted.
        """
        left = dict.fromkeys(self._workspace_ids, "could not be deleted")
        try:
            with suppress(CallError):
                # Also finds workspaces whose creation was not answered.
                async for each in self._client.list_workspaces(page_size=200):
                    if each.name.startswith(self._name) and each.status != "deleting":
                        left[each.id] = "could not be deleted"
            await asyncio.gather(*(self._delete_one(each, left) for each in list(left)))
        finally:
            for workspace_id, state in left.items():
                say(f"Workspace {workspace_id} {state}.", error=True)

    async def _delete_one(self, workspace_id: str, left: dict[str, str]) -> None:
        # Does not record these calls: the load may have ended because the disk is full.
        with suppress(TimeoutError):
            async with asyncio.timeout(_REMOVAL_SECONDS):
                while workspace_id in left:
                    try:
                        await self._client.delete_workspace(workspace_id)
                        left[workspace_id] = "is still being deleted"
                        await self._client.get_workspace(workspace_id)
                    except WorkspaceNotFoundError:
                        del left[workspace_id]
                    except CallError:
                        # The loop tries to delete the workspace again.
                        pass
                    await asyncio.sleep(_PAUSE_SECONDS)
